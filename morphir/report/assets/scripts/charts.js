// Small line charts over epochs, as SVG; the chosen phase is a band behind the lines.

const WIDE = 360;
const HIGH = 150;
const EDGE = { left: 44, right: 8, top: 8, bottom: 20 };

/** First and last epoch of every phase that has begun. */
function phaseSpans() {
  const spans = new Map();
  run.epochs.phase.forEach((phase, at) => {
    const [first] = spans.get(phase) ?? [run.epochs.epoch[at]];
    spans.set(phase, [first, run.epochs.epoch[at]]);
  });
  return spans;
}

const spans = phaseSpans();
const lastEpoch = Math.max(1, ...run.epochs.epoch);

/** Values of an epoch column, without the epochs that have none. */
function overEpochs(name, wanted = () => true) {
  return run.epochs[name].flatMap((value, at) =>
    value === null || !wanted(run.epochs.stage[at]) ? [] : [[run.epochs.epoch[at], value]]);
}

/** A value for each position, as steps that last as long as their phase. */
function overPhases(valueOf) {
  const points = [];
  run.positions.forEach((_, position) => {
    const [first, end] = spans.get(position + 1) ?? [lastEpoch + 1, lastEpoch];
    if (first <= end) points.push([first - 1, valueOf(position)], [end, valueOf(position)]);
  });
  return points.length ? points : [[0, valueOf(0)]];
}

function sizeAt(position, name) {
  const { phases } = run;
  if (position < phases.length) return phases[position][name];
  return phases.length ? phases[phases.length - 1][`next_${name}`] : null;
}

/** Round numbers that cover [low, high]. */
function ticksOf(low, high) {
  const rough = (high - low || 1) / 3;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((one) => one >= rough);
  const first = Math.floor(low / step + 1e-9);
  const last = Math.ceil(high / step - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, at) => (first + at) * step);
}

function frame(series, format) {
  const values = series.flatMap(({ points }) => points.map(([, y]) => y));
  const ticks = ticksOf(Math.min(0, ...values), Math.max(...values));
  const [low, high] = [ticks[0], ticks[ticks.length - 1]];
  const x = (epoch) => EDGE.left + ((WIDE - EDGE.left - EDGE.right) * epoch) / lastEpoch;
  const y = (value) => HIGH - EDGE.bottom - ((HIGH - EDGE.top - EDGE.bottom) * (value - low)) / (high - low || 1);
  const grid = ticks.flatMap((tick) => [
    draw("line", { class: "grid", x1: EDGE.left, x2: WIDE - EDGE.right, y1: y(tick), y2: y(tick) }),
    draw("text", { x: EDGE.left - 5, y: y(tick) + 3.5, "text-anchor": "end" }, format(tick)),
  ]);
  const across = ticksOf(0, lastEpoch).filter((tick) => tick <= lastEpoch && Number.isInteger(tick));
  const labels = across.map((tick) => draw("text", { x: x(tick), y: HIGH - 5, "text-anchor": "middle" }, String(tick)));
  return { x, y, elements: [...grid, ...labels] };
}

/** The value of a series at an epoch: the last point that is not after it. */
function valueAt(points, epoch) {
  let found = points[0];
  for (const point of points) if (point[0] <= epoch) found = point;
  return found[1];
}

/** A chart: `{id, title, series: [{name, points, colour, thin, space}], format}`. */
function chart({ id, title, series, format }) {
  const drawn = series.filter(({ points }) => points.length);
  if (!drawn.length) return make("div", { class: "chart" }, make("h3", {}, title), make("p", { class: "quiet" }, "no values"));
  const { x, y, elements } = frame(drawn, format);
  const band = draw("rect", { class: "now", y: EDGE.top, height: HIGH - EDGE.top - EDGE.bottom });
  const cross = draw("line", { class: "cross", y1: EDGE.top, y2: HIGH - EDGE.bottom, visibility: "hidden" });
  const lines = drawn.map(({ points, colour, thin, space }) => {
    const shown = points.length > 1 ? points : [points[0], points[0]]; // a lone point is a dot
    const path = shown.map(([epoch, value]) => `${x(epoch).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
    const line = draw("polyline", { class: thin ? "line thin" : "line", points: path, stroke: colour });
    if (space !== undefined) line.dataset.line = space;
    return line;
  });
  const named = drawn.filter(({ thin }) => !thin);
  const read = make("p", { class: "read" });
  const tell = (epoch) => read.replaceChildren(...reading(named, epoch, format, drawn));
  const latest = `${title}; latest: ${named.map((one) => `${one.name} ${format(one.points.at(-1)[1])}`).join(", ")}`;
  const svg = draw("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": latest }, band, elements, lines, cross);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * WIDE;
    const epoch = Math.round(((at - EDGE.left) / (WIDE - EDGE.left - EDGE.right)) * lastEpoch);
    const held = Math.max(1, Math.min(lastEpoch, epoch));
    fill(cross, { x1: x(held), x2: x(held), visibility: "visible" }, []);
    tell(held);
  });
  svg.addEventListener("pointerleave", () => {
    cross.setAttribute("visibility", "hidden");
    tell(null);
  });
  follow(["position"], () => {
    const [first, end] = spans.get(state.position + 1) ?? [lastEpoch, lastEpoch];
    fill(band, { x: x(first - 1), width: Math.max(2, x(end) - x(first - 1)) }, []);
  });
  tell(null);
  return make("div", { class: "chart", id }, make("h3", {}, title), read, svg);
}

function reading(named, epoch, format, drawn) {
  const when = epoch === null ? "" : `epoch ${epoch}: `;
  const parts = named.flatMap(({ name, points, colour }, at) => [
    at ? ", " : when, make("i", { class: "key", style: `color: ${colour}` }),
    `${name} ${format(epoch === null ? points.at(-1)[1] : valueAt(points, epoch))}`,
  ]);
  const thin = drawn.length - named.length;
  return thin ? [...parts, make("span", {}, `; a line for each of ${count(thin, "space")}`)] : parts;
}

function setUpCharts() {
  const total = (position) => run.positions[position]?.widths.reduce((sum, width) => sum + width, 0);
  const one = (name, points, colour = "var(--accent)") => [{ name, points, colour }];
  const mean = (position) => total(position) / Math.max(1, spaces.length);
  const widths = spaces.map(({ name }, space) => ({
    name, space, thin: true, colour: "var(--quiet)", points: overPhases((position) => run.positions[position].widths[space]),
  }));
  const trained = (stage) => stage !== "learn";
  byId("charts").append(
    chart({ id: "chart-widths", title: "Width of every space, in channel groups",
      series: [...widths, ...one("mean", overPhases(mean))], format: (value) => digits(value) }),
    chart({ id: "chart-parameters", title: "Parameters", series: one("parameters", overPhases((at) => sizeAt(at, "parameters"))),
      format: (value) => short.format(value) }),
    chart({ id: "chart-macs", title: "MACs of one sample", series: one("MACs", overPhases((at) => sizeAt(at, "macs"))),
      format: (value) => short.format(value) }),
    chart({ id: "chart-loss", title: "Loss, while weights are trained", format: digits, series: [
      ...one("training", overEpochs("loss", trained)), ...one("test", overEpochs("test_loss", trained), "var(--y)")] }),
    chart({ id: "chart-error", title: "Test error", series: one("test error", overEpochs("test_error", trained), "var(--y)"),
      format: (share) => `${digits(100 * share)}%` }),
  );
  drawNumbers();
  follow(["space"], () => {
    for (const line of document.querySelectorAll("[data-line]")) {
      line.classList.toggle("chosen", Number(line.dataset.line) === state.space);
    }
  });
}

function drawNumbers() {
  const columns = ["phase", "parameters", "MACs", "training loss", "test error", "splits", "prunes", "theta factor", "seconds"];
  const rows = run.phases.map((phase) => [
    phase.stage === "final" ? "final" : phase.phase, whole.format(phase.parameters), whole.format(phase.macs),
    digits(phase.train_loss), percent(phase.test_error), phase.splits, phase.prunes, digits(phase.theta_factor),
    phase.seconds.toFixed(1),
  ]);
  byId("numbers").append(make("table", {},
    make("thead", {}, make("tr", {}, columns.map((name) => make("th", { scope: "col" }, name)))),
    make("tbody", {}, rows.map((row) => make("tr", {}, row.map((cell) => make("td", {}, String(cell))))))));
}
