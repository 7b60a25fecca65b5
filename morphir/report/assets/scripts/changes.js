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
      diffLines(rewrite.diff.map(textOf))));
}

function diffClass(line) {
  if (line.startsWith("+++") || line.startsWith("---") || line.startsWith("@@")) return "hunk";
  if (line.startsWith("+")) return "added";
  return line.startsWith("-") ? "removed" : "";
}

/** A line in parts: the words that differ from a line beside it are marked. */
function marked(line, beside) {
  const [words, others] = [line, beside].map((text) => text.slice(1).split(/([\w.]+)/));
  if (words.length !== others.length) return [line];
  return [line[0], ...words.map((word, at) => (word === others[at] ? word : make("b", {}, word)))];
}

/** A line that went and one that came right after it, of the same node or space, are shown word by word. */
function diffLines(lines) {
  const name = (line) => line.slice(1).split(":", 1)[0];
  const pairs = (went, came) => went?.[0] === "-" && came?.[0] === "+" && name(went) === name(came);
  return lines.map((line, at) => {
    const before = at > 0 ? lines[at - 1] : "";
    const after = at + 1 < lines.length ? lines[at + 1] : "";
    const beside = pairs(line, after) ? after : pairs(before, line) ? before : null;
    const parts = beside === null ? [line || " "] : marked(line, beside);
    return make("span", { class: diffClass(line) }, parts);
  });
}

/** Whether an IR line names the chosen space. */
function isOfSpace(line) {
  if (state.space === null) return false;
  const { name } = spaces[state.space];
  return line.includes(`{${name}:`) || line.includes(`+${name}:`) || line.replace(/^[-+ ] */, "").startsWith(`${name}: `);
}

function drawText() {
  const diff = document.querySelector("input[name=text]:checked").value === "diff";
  const lines = (diff ? here().diff ?? [] : here().ir).map(textOf);
  const spans = diff ? diffLines(lines) : lines.map((line) => make("span", {}, line || " "));
  spans.forEach((span, at) => span.classList.toggle("lit", isOfSpace(lines[at])));
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
