// What a phase changed: its rewrites with their index maps, and the unified diff of the textual IR.

const MARKS = { 0: "", 1: "+", "-1": "\u2212" };

/** An index map in words: every new group by the old one that it comes from. */
function mapText(space, { sources, signs }) {
  return `${space}: ${sources.map((source, at) => `${source}${MARKS[signs[at]]}`).join(" ")}`;
}

function rewriteItem(rewrite) {
  const maps = Object.entries(rewrite.maps);
  const title = `#${rewrite.number} ${rewrite.name}: ${signed(rewrite.delta_parameters)} parameters, ${count(maps.length, "space")}`;
  return make("details", {}, make("summary", {}, title),
    make("p", { class: "quiet" }, "For every new channel, the old one that it comes from; 3+ and 3\u2212 are the halves of a split."),
    make("ul", {}, maps.map(([space, map]) => make("li", {}, mapText(space, map)))),
    make("pre", { class: "ir scroll", tabindex: 0, role: "region", "aria-label": `What rewrite ${rewrite.number} changed` },
      rewrite.diff.map((line) => diffLine(textOf(line)))));
}

function diffClass(line) {
  if (line.startsWith("+++") || line.startsWith("---") || line.startsWith("@@")) return "hunk";
  if (line.startsWith("+")) return "added";
  return line.startsWith("-") ? "removed" : "";
}

function diffLine(line) {
  return make("span", { class: diffClass(line) }, line || " ");
}

/** Whether an IR line names the chosen space. */
function isOfSpace(line) {
  if (state.space === null) return false;
  const { name } = spaces[state.space];
  return line.includes(`{${name}:`) || line.includes(`+${name}:`) || line.trim().startsWith(`${name}: `);
}

function drawText() {
  const diff = document.querySelector("input[name=text]:checked").value === "diff";
  const lines = (diff ? here().diff ?? [] : here().ir).map(textOf);
  const spans = lines.map((line) => {
    const kind = diff ? diffClass(line) : "";
    return make("span", { class: `${kind}${isOfSpace(line) ? " lit" : ""}` }, line || " ");
  });
  const nothing = state.position === lastPosition ? "Nothing was rewritten after the last phase." : "The IR did not change.";
  byId("text").replaceChildren(...(spans.length ? spans : [make("span", { class: "hunk" }, nothing)]));
}

function drawRewrites() {
  const rewrites = here().rewrites ?? [];
  byId("rewrites").replaceChildren(...(rewrites.length
    ? rewrites.map(rewriteItem) : [make("p", { class: "quiet" }, `${hereTitle()}: no rewrites.`)]));
}

function setUpChanges() {
  for (const radio of document.querySelectorAll("input[name=text]")) radio.addEventListener("change", drawText);
  follow(["position"], drawRewrites);
  follow(["position", "space"], drawText);
}
