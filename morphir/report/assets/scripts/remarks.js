// All remarks of the run, searchable: every word has to be in the code, the space, the node or the text.

const SITE = { kind: 0, code: 1, space: 2, node: 3, source: 4, suggestion: 5 };
const PAGE = 30;
const allRemarks = run.positions.flatMap(({ remarks = [] }, position) => remarks.map(([site, message, index]) => ({ site, message, index, position })));
let shownRemarks = PAGE;

const partOf = ({ site, message }, name) => textOf(name === "message" ? message : run.sites[site][SITE[name]]);

function siteOf(remark) {
  return partOf(remark, "space") + (remark.index < 0 ? "" : `[${remark.index}]`);
}

/** What is searched, made when it is first needed. */
function haystack(remark) {
  remark.text ??= [siteOf(remark), ...["kind", "code", "message", "node", "source", "suggestion"].map((name) => partOf(remark, name))]
    .join(" ").toLowerCase();
  return remark.text;
}

function foundRemarks() {
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const kind = byId("kind").value;
  const here = byId("this-phase").checked;
  return allRemarks.filter((remark) => (!here || remark.position === state.position)
    && (!kind || partOf(remark, "kind") === kind) && words.every((word) => haystack(remark).includes(word)));
}

function remarkItem(remark) {
  const [kind, code, message, node, source, hint] = ["kind", "code", "message", "node", "source", "suggestion"]
    .map((name) => partOf(remark, name));
  const number = spaceNumbers.get(partOf(remark, "space"));
  const site = number === undefined ? null : spaceButton(number, {}, siteOf(remark));
  return make("li", {},
    make("span", { class: `tag ${kind}` }, kind), make("span", { class: "quiet" }, `phase ${remark.position + 1} `), site,
    `${site ? ": " : ""}${message} `, make("code", {}, `[${code}]`),
    node ? make("span", { class: "quiet" }, ` at %${node}${source ? ` (${source})` : ""}`) : null,
    hint ? make("div", { class: "quiet" }, `hint: ${hint}`) : null);
}

function drawRemarks() {
  const found = foundRemarks();
  const drawn = found.slice(0, shownRemarks);
  byId("count").textContent = `${whole.format(found.length)} of ${count(allRemarks.length, "remark")}` +
    (found.length > drawn.length ? `, the first ${drawn.length} are shown` : "");
  byId("remarks").replaceChildren(...drawn.map(remarkItem));
  byId("more").hidden = found.length <= drawn.length;
}

function drawFromTheFirst() {
  shownRemarks = PAGE;
  drawRemarks();
}

function setUpRemarks() {
  byId("search").addEventListener("input", drawFromTheFirst);
  for (const id of ["kind", "this-phase"]) byId(id).addEventListener("change", drawFromTheFirst);
  byId("search-form").addEventListener("submit", (event) => event.preventDefault());
  byId("more").addEventListener("click", () => {
    shownRemarks += PAGE;
    drawRemarks();
  });
  follow(["position"], drawFromTheFirst);
}
