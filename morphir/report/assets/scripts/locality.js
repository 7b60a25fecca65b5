// What is known of the chosen space or node: who makes and reads it, with the user's lines, and the locality.

const MEANING = {
  x: "inputs of the producers", y: "outputs of the producers", region: "region, channelwise",
  a: "inputs of the consumers", z: "affected activations",
};

/** A node's name as a button, with the user's line. */
function nodeLine(number, more = "") {
  const node = nodes[number];
  const source = textOf(node.source);
  const pick = () => choose({ node: number, space: null });
  return make("li", {},
    make("button", { type: "button", class: "link", onclick: pick }, `%${node.name}`),
    more ? make("code", {}, ` ${more}`) : null,
    source ? make("span", { class: "quiet" }, ` ${source}`) : null,
    textOf(node.code) ? make("code", { class: "code" }, textOf(node.code)) : null);
}

function listed(title, items) {
  return [make("h3", {}, title), items.length ? make("ul", {}, items) : make("p", { class: "quiet" }, "none")];
}

/** Several nodes on one line, for lists where the user's lines would only repeat. */
function nodeNames(part, numbers) {
  const names = numbers.flatMap((number, at) => [
    at ? ", " : "", make("button", { type: "button", class: "link", onclick: () => choose({ node: number, space: null }) },
      `%${nodes[number].name}`)]);
  return make("li", {}, make("span", { class: `part ${part}` }, part === "region" ? "\u03c3" : part),
    make("span", { class: "quiet" }, ` ${MEANING[part]}: `), names.length ? names : "none");
}

function spaceLine(name) {
  const found = here().ir.map((number) => textOf(number).trim()).find((line) => line.startsWith(`${name}: `));
  return found ? found.slice(name.length + 2).split("; producers")[0] : "";
}

function drawSpace(number) {
  const space = spaces[number];
  const uses = (list) => list.map(([node, parameter]) => nodeLine(node, `@${parameter}`));
  byId("picked").replaceChildren(
    make("h3", {}, "Space ", make("code", {}, space.name)),
    make("p", {}, `${hereTitle()}: ${spaceLine(space.name)}`),
    make("p", {}, `Width over the phases: ${run.positions.map(({ widths }) => widths[number]).join(", ")}`),
    ...listed("Producers", uses(space.producers)), ...listed("Consumers", uses(space.consumers)),
    ...listed("Locality", PARTS.map((part) => nodeNames(part, space[part]))));
}

function drawNode(number) {
  const node = nodes[number];
  const readers = nodes.flatMap((other, at) => (other.inputs.includes(number) ? [at] : []));
  const line = linesByNode().get(node.name) ?? here().ir.map(textOf).find((one) => one.includes(`%${node.name}`)) ?? "";
  byId("picked").replaceChildren(
    make("h3", {}, "Node ", make("code", {}, `%${node.name}`)),
    make("code", {}, line.split("      # ")[0]),
    make("p", { class: "quiet" }, textOf(node.source)), make("code", { class: "code" }, textOf(node.code)),
    ...listed("Carries", node.spaces.map((space) => make("li", {}, spaceButton(space)))),
    ...listed("Reads", node.inputs.map((from) => nodeLine(from))), ...listed("Read by", readers.map((to) => nodeLine(to))));
}

function drawPicked() {
  if (state.space !== null) drawSpace(state.space);
  else if (state.node !== null) drawNode(state.node);
  else byId("picked").replaceChildren(make("p", { class: "quiet" }, "Choose a space or a node."));
}

function setUpLocality() {
  follow(["space", "node", "position"], drawPicked);
}
