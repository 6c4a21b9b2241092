"use strict";

// Traces and data are hostile text: nothing here makes markup of a string. Text becomes text nodes, and that is all.

const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
// What would hide, reorder or interrupt text: control, format, direction and half characters, line separators.
const HIDDEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/u;

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const el = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);
const svg = (name, attributes = {}, ...children) => fill(document.createElementNS(SVG, name), attributes, children);

/** Text as nodes: hidden characters become their code points, and where `ends` is set, line ends are marked. */
function visible(text, ends = false) {
  const nodes = [];
  let plain = "";
  for (const character of text) {
    if (character === "\n" || character === "\t" || !HIDDEN.test(character)) {
      plain += ends && character === "\n" ? "⏎\n" : character;
      continue;
    }
    const code = character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    nodes.push(plain, el("span", { class: "code" }, `U+${code}`));
    plain = "";
  }
  nodes.push(plain);
  return nodes;
}

const words = (text) => el("p", { class: text ? "verbatim" : "verbatim none" }, ...visible(text || "(empty)"));

/** A number to `digits` significant digits, or a dash where nothing was measured. */
function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(digits - 1).replace("-", "−");
  return String(Number(value.toPrecision(digits))).replace("-", "−");
}

const signed = (value, digits = 3) => (value > 0 ? "+" : "") + number(value, digits);

/** A labelled <select> of [value, text] pairs. */
function choice(label, options, change) {
  const select = el("select", {}, ...options.map(([value, text]) => el("option", { value }, text)));
  select.addEventListener("change", () => change(select.value));
  return [el("label", {}, label, select), select];
}

const method = (run) => `c${DATA.runs[run].colour}`;
