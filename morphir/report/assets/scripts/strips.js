// The paper's figure 2: a strip of channels for each space, red where one will be split, blue where it will be pruned.
//
// The tradeoff of a morphism is its net gain, -dL - sum of prices times dR, for each unit of the chosen cost.

const UNITS = { parameters: [1e3, "1,000 parameters"], macs: [1e6, "million MACs"] };
const KINDS = ["split", "prune"];
const FAINTEST = 0.3;
const CELL = { least: 7, most: 40, gap: 2 };

const entry = (column, at) => (Array.isArray(column) ? column[at] : column);

/** One estimate for each group of a space: `[{split, prune}]`, of what there is. */
function estimatesOf(position, space, width) {
  const found = Array.from({ length: width }, () => ({}));
  const { scores = {}, prices = {} } = run.positions[position];
  for (const [kind, columns] of Object.entries(scores[space] ?? {})) {
    columns.groups.forEach((group, at) => {
      const [loss, parameters, macs] = ["loss", "parameters", "macs"].map((name) => entry(columns[name], at));
      const spent = { parameters, macs };
      const paid = Object.entries(prices).reduce((sum, [name, price]) => sum + price * spent[name], 0);
      const gain = loss === null ? null : -loss - paid;
      found[group][kind] = { loss, gain, ...spent, applied: columns.applied.includes(group) };
    });
  }
  return found;
}

/** Net gain for each unit of cost; infinite for what costs nothing. */
function tradeoff(estimate) {
  if (estimate.gain === null) return null;
  const cost = Math.abs(estimate[state.cost]) / UNITS[state.cost][0];
  return cost ? estimate.gain / cost : Infinity;
}

/** What a group is marked as: what was applied to it, or the better of what would pay. */
function markOf(estimates) {
  const kinds = KINDS.filter((kind) => estimates[kind]);
  const applied = kinds.find((kind) => estimates[kind].applied);
  if (applied || state.shown === "applied") return applied ?? null;
  const paying = kinds.filter((kind) => estimates[kind].gain > 0);
  return paying.sort((one, other) => estimates[other].gain - estimates[one].gain)[0] ?? null;
}

/** From tradeoffs to intensities in [FAINTEST, 1], by their logarithm. */
function scaleOf(values) {
  const finite = values.filter((value) => value > 0 && Number.isFinite(value));
  const [least, most] = [Math.min(...finite), Math.max(...finite)];
  const span = Math.log(most / least);
  const of = (value) => {
    if (!(value > 0)) return FAINTEST;
    const share = span > 0 ? Math.min(Math.log(value / least) / span, 1) : 1;
    return FAINTEST + (1 - FAINTEST) * share;
  };
  return { of, least, most, any: finite.length > 0 };
}

/** All that is drawn at the chosen position. */
function stripData() {
  const rows = spaces.map(({ name }, number) => {
    const groups = estimatesOf(state.position, name, here().widths[number]);
    return groups.map((estimates) => ({ estimates, mark: markOf(estimates) }));
  });
  const marked = rows.flat().filter(({ mark }) => mark);
  return { rows, scale: scaleOf(marked.map(({ estimates, mark }) => tradeoff(estimates[mark]))) };
}

function cellOf({ estimates, mark }, scale) {
  const known = KINDS.some((kind) => estimates[kind]);
  if (!mark) return make("i", { class: known || state.position === lastPosition ? "cell" : "cell still" });
  const applied = estimates[mark].applied ? " applied" : "";
  const strength = scale.of(tradeoff(estimates[mark])).toFixed(3);
  return make("i", { class: `cell ${mark}${applied}`, style: `--t: ${strength}` });
}

function stripLabel(number, groups) {
  const marked = KINDS.map((kind) => `${groups.filter(({ mark }) => mark === kind).length} ${kind}`);
  return `${spaces[number].name}: ${count(groups.length, "channel group")}, marked: ${marked.join(", ")}`;
}

function widthText(number) {
  const width = here().widths[number];
  const next = state.position < lastPosition ? run.positions[state.position + 1].widths[number] : width;
  return next === width ? `${width}` : `${width} \u2192 ${next}`;
}

/** What is known of one channel, in words. */
function channelText(number, index) {
  const { name } = spaces[number];
  const estimates = estimatesOf(state.position, name, here().widths[number])[index];
  const lines = [`${name}, channel ${index}: ${ancestryText(state.position, name, index)}.`];
  const applied = KINDS.find((kind) => estimates[kind]?.applied);
  const after = descendants(state.position, name, index);
  if (applied === "split") lines.push(`Split in this phase into ${after.join(" and ")}.`);
  if (applied === "prune") lines.push("Pruned in this phase.");
  for (const kind of KINDS.filter((one) => estimates[one])) {
    const { loss, parameters, macs } = estimates[kind];
    const each = `${digits(tradeoff(estimates[kind]))} per ${UNITS[state.cost][1]}`;
    lines.push(`A ${kind}: loss ${loss > 0 ? "+" : ""}${digits(loss)}, ${signed(parameters)} parameters, ` +
      `${signed(macs)} MACs; tradeoff ${each}.`);
  }
  return lines.join(" ");
}

function showChannel(cells, number, index) {
  cells.querySelector(".current")?.classList.remove("current");
  cells.children[index]?.classList.add("current");
  cells.dataset.current = index;
  byId("channel").textContent = channelText(number, index);
}

const STEPS = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };

function moveInStrip(event, number) {
  if (!(event.key in STEPS)) return;
  event.preventDefault();
  event.stopPropagation();
  const cells = event.currentTarget;
  const at = cells.dataset.current === undefined ? -1 : Number(cells.dataset.current);
  const index = Math.max(0, Math.min(cells.children.length - 1, at + STEPS[event.key]));
  showChannel(cells, number, index);
}

function stripRow(number) {
  const cells = make("div", {
    class: "cells", tabindex: 0, role: "group",
    onkeydown: (event) => moveInStrip(event, number),
    onpointerover: (event) => {
      const index = [...cells.children].indexOf(event.target);
      if (index >= 0) showChannel(cells, number, index);
    },
  });
  cells.dataset.cells = number;
  return make("div", { class: "strip" },
    spaceButton(number, { class: "link name" }), cells, make("span", { class: "width" }));
}

function drawLegend(scale) {
  const ramp = (kind) => make("span", { class: "ramp", "aria-hidden": "true" },
    [0.3, 0.53, 0.77, 1].map((t) => make("i", { class: `cell ${kind}`, style: `--t: ${t}` })));
  const range = scale.any ? ` (${digits(scale.least)} to ${digits(scale.most)} per ${UNITS[state.cost][1]})` : "";
  const done = (kind) => make("i", { class: `cell ${kind} applied`, style: "--t: 1", "aria-hidden": "true" });
  const last = state.position === lastPosition;
  byId("legend").replaceChildren(...(last
    ? [make("span", {}, `The network after ${count(lastPosition, "phase")}; nothing is marked in it.`)]
    : [
      make("span", {}, ramp("split"), "split"), make("span", {}, ramp("prune"), "prune"),
      make("span", {}, `weak to strong tradeoff${range}`),
      make("span", {}, done("split"), done("prune"), "applied"),
      make("span", {}, make("i", { class: "cell still", "aria-hidden": "true" }), "not estimated"),
    ]));
}

const HINT = byId("channel").textContent;

function drawStrips() {
  const { rows, scale } = stripData();
  byId("channel").textContent = HINT;
  drawLegend(scale);
  for (const cells of document.querySelectorAll("[data-cells]")) {
    const number = Number(cells.dataset.cells);
    cells.replaceChildren(...rows[number].map((group) => cellOf(group, scale)));
    cells.setAttribute("aria-label", stripLabel(number, rows[number]));
    delete cells.dataset.current;
    cells.nextElementSibling.textContent = widthText(number);
  }
}

/** One size of cells for the whole run, so that the widest strip fits on a line where it can. */
function sizeCells() {
  const widest = Math.max(...run.positions.flatMap(({ widths }) => widths));
  const room = document.querySelector(".cells").clientWidth / widest - CELL.gap;
  const size = Math.max(CELL.least, Math.min(CELL.most, Math.floor(room)));
  byId("strips").style.setProperty("--size", `${size}px`);
}

function setUpStrips() {
  byId("strips").append(...spaces.map((_, number) => stripRow(number)));
  for (const id of ["shown", "cost"]) byId(id).addEventListener("change", (event) => choose({ [id]: event.target.value }));
  follow(["position", "shown", "cost"], drawStrips);
  new ResizeObserver(sizeCells).observe(byId("strips"));
}
