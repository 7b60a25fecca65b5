// The program as a list of nodes in program order, folded by module; arcs are reads that pass over other nodes.

const PARTS = ["x", "y", "region", "a", "z"];
const MANY = 150;

/** The IR lines of the chosen position, by node name. */
function linesByNode() {
  const found = new Map();
  for (const number of here().ir) {
    const line = textOf(number).trim();
    const name = /^%([^:\s]+):/.exec(line)?.[1];
    if (name) found.set(name, line);
  }
  return found;
}

/** `conv2d` of `%a: f32[...] = conv2d(...)`; what has no such line is an input or the output. */
function operatorOf(node, line) {
  const found = / = (@?[^\s({]+)/.exec(line ?? "")?.[1];
  if (found) return found;
  return node.inputs.length ? "output" : "input";
}

/** Paths of the modules that hold a node, outermost first. */
function blocksOf(node) {
  const names = textOf(node.block).split(".").filter(Boolean);
  return names.map((_, at) => names.slice(0, at + 1).join("."));
}

function nodeRow(number) {
  const node = nodes[number];
  const made = new Set(spaces.flatMap((space, at) => (space.y.includes(number) ? [at] : [])));
  const chips = node.spaces.map((space) => spaceButton(space, { class: made.has(space) ? "chip makes" : "chip" }));
  const pick = () => choose({ node: number, space: null });
  const row = make("div", { class: "node" },
    make("span", { class: "parts" }),
    make("button", { type: "button", class: "link", onclick: pick }, `%${node.name}`),
    make("span", { class: "operator" }), chips, make("span", { class: "source" }, textOf(node.source)));
  row.dataset.node = number;
  return row;
}

/** Nests the rows into a `details` for each run of nodes of one module. */
function foldedRows() {
  const root = make("div");
  const open = [{ path: "", body: root }];
  nodes.forEach((node, number) => {
    const blocks = blocksOf(node);
    while (open.length > 1 && blocks[open.length - 2] !== open.at(-1).path) open.pop();
    for (const path of blocks.slice(open.length - 1)) {
      const body = make("div");
      const block = make("details", { open: nodes.length <= MANY || open.length === 1, ontoggle: drawArcs },
        make("summary", {}, path), body);
      open.at(-1).body.append(block);
      open.push({ path, body });
    }
    open.at(-1).body.append(nodeRow(number));
  });
  return root;
}

function countBlocks() {
  for (const block of document.querySelectorAll("#program details")) {
    const inside = block.querySelectorAll(".node").length;
    block.querySelector("summary").append(make("span", { class: "quiet" }, `  ${count(inside, "node")}`));
  }
}

const rowOf = (number) => document.querySelector(`[data-node="${number}"]`);

/** What is seen of a node: its row, or the summary of the outermost closed block around it. */
function seenRow(row) {
  let seen = row;
  for (let block = row.parentElement.closest("details"); block; block = block.parentElement.closest("details")) {
    if (!block.open) seen = block.querySelector("summary");
  }
  return seen;
}

let arcsAreDue = false;

/** Draws the arcs again with the next frame, once however often it was asked for. */
function drawArcs() {
  if (arcsAreDue) return;
  arcsAreDue = true;
  requestAnimationFrame(() => {
    arcsAreDue = false;
    drawArcsNow();
  });
}

function drawArcsNow() {
  const view = byId("program");
  const rows = nodes.map((_, number) => seenRow(rowOf(number)));
  const order = new Map([...new Set(rows)].map((row, at) => [row, at]));
  const top = view.getBoundingClientRect().top - view.scrollTop;
  const middle = (row) => {
    const box = row.getBoundingClientRect();
    return box.top - top + Math.min(box.height, 24) / 2;
  };
  const heights = new Map([...order.keys()].map((row) => [row, middle(row)]));
  const arcs = new Map();
  nodes.forEach((node, to) => node.inputs.forEach((from) => {
    const rowsApart = order.get(rows[to]) - order.get(rows[from]);
    if (rowsApart < 2) return;
    const lit = state.node === to || state.node === from;
    const key = `${order.get(rows[from])}-${order.get(rows[to])}`;
    arcs.set(key, { from: rows[from], to: rows[to], rowsApart, lit: lit || arcs.get(key)?.lit });
  }));
  const svg = view.querySelector("svg");
  const wide = svg.getBoundingClientRect().width;
  svg.setAttribute("height", view.scrollHeight);
  svg.style.height = `${view.firstElementChild.offsetHeight}px`;
  svg.replaceChildren(...[...arcs.values()].map(({ from, to, rowsApart, lit }) => {
    const [y1, y2] = [heights.get(from), heights.get(to)];
    const bulge = wide - Math.min(wide - 3, 8 + 7 * Math.log2(rowsApart)) * 1.3;
    return draw("path", { class: lit ? "lit" : "", d: `M${wide},${y1} C${bulge},${y1} ${bulge},${y2} ${wide},${y2}` });
  }));
}

/** Operators and full IR lines, which rewrites change. */
function drawLines() {
  const lines = linesByNode();
  nodes.forEach((node, number) => {
    const row = rowOf(number);
    row.title = lines.get(node.name) ?? "";
    row.querySelector(".operator").textContent = operatorOf(node, lines.get(node.name));
  });
}

/** Opens the blocks around a node. */
function reveal(number) {
  for (let block = rowOf(number).closest("details"); block; block = block.parentElement.closest("details")) block.open = true;
}

/** Scrolls the list, and never the page, to a node. */
function scrollTo(number) {
  const view = byId("program");
  const offset = rowOf(number).getBoundingClientRect().top - view.getBoundingClientRect().top;
  if (offset < 0 || offset > view.clientHeight - 40) view.scrollTop += offset - view.clientHeight / 3;
}

function drawLocality() {
  const space = state.space === null ? null : spaces[state.space];
  nodes.forEach((_, number) => {
    const parts = space ? PARTS.filter((part) => space[part].includes(number)) : [];
    const row = rowOf(number);
    row.classList.toggle("lit", parts.length > 0);
    row.classList.toggle("at", number === state.node);
    row.dataset.parts = parts.join(" ");
    row.querySelector(".parts").replaceChildren(
      ...parts.map((part) => make("span", { class: `part ${part}` }, part === "region" ? "\u03c3" : part)));
    if (parts.length || number === state.node) reveal(number);
  });
  for (const button of document.querySelectorAll("button[data-space]")) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.space) === state.space));
  }
  const first = space ? (space.y[0] ?? space.x[0]) : state.node;
  if (first !== null && first !== undefined) scrollTo(first);
  drawArcs();
}

function setUpProgram() {
  byId("program").append(foldedRows(), draw("svg", { "aria-hidden": "true" }));
  countBlocks();
  const openAll = (open) => () => document.querySelectorAll("#program details").forEach((block) => { block.open = open; });
  byId("unfold").addEventListener("click", openAll(true));
  byId("fold").addEventListener("click", openAll(false));
  window.addEventListener("resize", drawArcs);
  follow(["position"], drawLines);
  follow(["space", "node"], drawLocality);
}
