// Heading, phase bar and keys; then everything is drawn for the first time.

function drawHeading() {
  const { model, data, run: name } = run.title;
  byId("title").textContent = model ? `${model} on ${data}` : name;
  const done = run.epochs.epoch.length;
  const progress = done === run.planned_epochs ? `finished, ${count(done, "epoch")}` : `${whole.format(done)} of ${count(run.planned_epochs, "epoch")} so far`;
  byId("subtitle").textContent = `Run ${name}; ${progress}. Made by MorphIR.`;
  byId("tiles").append(...tiles().flatMap(([term, before, after]) => make("div", {}, make("dt", {}, term),
    make("dd", {}, make("small", {}, `${before} \u2192 `), after))));
}

/** What the first phase trained, and what there is now. */
function tiles() {
  if (!run.phases.length) return [];
  const [first, latest] = [run.phases[0], run.phases.at(-1)];
  const widest = (position) => whole.format(run.positions[position].widths.reduce((sum, width) => sum + width, 0));
  const errors = run.epochs.test_error.filter((error) => error !== null);
  const sizes = [
    ["Channel groups", widest(0), widest(lastPosition)],
    ["Parameters", whole.format(first.parameters), whole.format(latest.next_parameters)],
    ["MACs", short.format(first.macs), short.format(latest.next_macs)],
  ];
  return errors.length ? [...sizes, ["Test error", percent(first.test_error), percent(errors.at(-1))]] : sizes;
}

function phaseText() {
  if (state.position === lastPosition) return `${positionName(state.position)}, after ${count(lastPosition, "phase")}`;
  const { splits, prunes, theta_factor: factor } = run.phases[state.position];
  const scaled = factor === null ? "" : `, theta times ${factor}`;
  return `phase ${state.position + 1} of ${lastPosition}: ${count(splits, "split")}, ${count(prunes, "prune")}${scaled}`;
}

function drawPhaseBar() {
  const slider = byId("slider");
  slider.value = state.position;
  slider.setAttribute("aria-valuetext", phaseText());
  byId("phase").textContent = phaseText();
  byId("previous").disabled = state.position === 0;
  byId("next").disabled = state.position === lastPosition;
}

function moveBy(steps) {
  choose({ position: Math.max(0, Math.min(lastPosition, state.position + steps)) });
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, .scroll")) return;
  if (event.key === "/") {
    event.preventDefault();
    byId("search").focus();
  } else if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
    event.preventDefault();
    moveBy(event.key === "ArrowLeft" ? -1 : 1);
  }
}

function setUpPhaseBar() {
  byId("slider").max = lastPosition;
  byId("slider").addEventListener("input", (event) => choose({ position: Number(event.target.value) }));
  byId("previous").addEventListener("click", () => moveBy(-1));
  byId("next").addEventListener("click", () => moveBy(1));
  document.addEventListener("keydown", onKey);
  follow(["position"], drawPhaseBar);
}

/** `#phase=3&space=features.0` opens the report at that phase with that space chosen. */
function readAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const phase = Number(asked.get("phase"));
  const space = spaceNumbers.get(asked.get("space"));
  if (Number.isInteger(phase) && phase >= 1) state.position = Math.min(phase - 1, lastPosition);
  if (space !== undefined) state.space = space;
}

readAddress();
drawHeading();
setUpPhaseBar();
setUpStrips();
setUpCharts();
setUpProgram();
setUpLocality();
setUpChanges();
setUpRemarks();
for (const view of views) view.draw();
document.documentElement.dataset.ready = "true";
