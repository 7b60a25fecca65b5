// Elements from names, attributes and children. All text goes in as text: nothing from a run is read as HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null));
  return element;
}

/** An HTML element; attributes whose names start with `on` are listeners. */
function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** An SVG element. */
function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

const byId = (id) => document.getElementById(id);
const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

/** A number with three digits, or a dash for none. */
function digits(value) {
  if (value === null || value === undefined) return "-";
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5)) return value.toExponential(2);
  return String(Number(value.toPrecision(3)));
}

/** A number with its sign. */
function signed(value) {
  return value > 0 ? `+${whole.format(value)}` : whole.format(value).replace("-", "\u2212");
}

function percent(share) {
  return share === null ? "-" : `${(100 * share).toFixed(2)}%`;
}

/** `1 split`, `2 splits`. */
function count(number, word) {
  return `${whole.format(number)} ${word}${number === 1 ? "" : "s"}`;
}

/** A button that chooses a space. */
function spaceButton(number, attributes = {}, label = spaces[number].name) {
  const pressed = String(state.space === number);
  const onclick = () => choose({ space: state.space === number ? null : number, node: null });
  const button = make("button", { type: "button", class: "link", "aria-pressed": pressed, onclick, ...attributes }, label);
  button.dataset.space = number;
  return button;
}
