// The run as it was embedded, and one state that every view follows.

const run = JSON.parse(document.getElementById("data").textContent);
const { nodes, spaces } = run.program;
const spaceNumbers = new Map(spaces.map((space, number) => [space.name, number]));
const lastPosition = run.positions.length - 1;

/** What is chosen. `space` and `node` are numbers or null; `position` is a phase, or past the last one. */
const state = { position: 0, space: null, node: null, cost: "parameters", shown: "applied" };
const views = [];

/** Calls `draw` once at the start, and after every change to one of the keys. */
function follow(keys, draw) {
  views.push({ keys, draw });
}

/** Changes the state, and draws every view that follows what changed. */
function choose(changes) {
  const changed = Object.keys(changes).filter((key) => state[key] !== changes[key]);
  Object.assign(state, changes);
  for (const view of views) {
    if (view.keys.some((key) => changed.includes(key))) view.draw();
  }
}

/** A string by its number in the table; nothing for -1. */
function textOf(number) {
  return number < 0 ? "" : run.strings[number];
}

/** The data of the chosen position. */
function here() {
  return run.positions[state.position];
}

/** The name of the chosen position at the beginning of a line. */
function hereTitle() {
  const name = positionName(state.position);
  return name[0].toUpperCase() + name.slice(1);
}

/** The name of a position, in words. */
function positionName(position) {
  if (position < lastPosition) return `phase ${position + 1}`;
  return run.epochs.epoch.length === run.planned_epochs ? "the result" : "now";
}
