"use strict";

// Traces and data are hostile text: nothing here makes markup of a string. Text becomes text nodes, and that is all.

const { html, render, useState, useEffect, useLayoutEffect, useRef, useMemo } = htmPreact;
// What would hide, reorder or interrupt text: control, format, direction and half characters, line separators.
const HIDDEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/u;

/** Text as nodes: hidden characters become their code points, and where `ends` is set, line ends are marked. */
function visible(text, ends = false) {
  if (!HIDDEN.test(text)) return [text];
  const nodes = [];
  let plain = "";
  for (const character of text) {
    if (character === "\n" || character === "\t" || !HIDDEN.test(character)) {
      plain += ends && character === "\n" ? "⏎\n" : character;
      continue;
    }
    const code = character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    nodes.push(plain, html`<span class="code">U+${code}</span>`);
    plain = "";
  }
  nodes.push(plain);
  return nodes;
}

const SOME = 2000; // characters of a text that are shown before one asks for more

/** A text as it stands; a long one begins with what a screen has room for. */
function Words({ text }) {
  const [whole, setWhole] = useState(false);
  if (!text) return html`<p class="verbatim none">(empty)</p>`;
  const cut = !whole && text.length > SOME + 200;
  return html`<p class="verbatim">${visible(cut ? text.slice(0, SOME) : text)}</p>
    ${cut && html`<button type="button" class="more" onClick=${() => setWhole(true)}>Show all ${text.length.toLocaleString("en")} characters</button>`}`;
}

/** A number to `digits` significant digits, or a dash where nothing was measured. */
function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(digits - 1).replace("-", "−");
  return String(Number(value.toPrecision(digits))).replace("-", "−");
}

const signed = (value, digits = 3) => (value > 0 ? "+" : "") + number(value, digits);
const percent = (value) => (value === null || value === undefined ? "–" : `${number(100 * value)} %`);
/** The class of a number that is good, bad or neither. */
const turn = (value) => (value > 0 ? "up" : value < 0 ? "down" : null);
const nats = (value) => `${signed(value)} nats`;

/** A labelled <select> of [value, text] pairs. */
const Choice = ({ label, options, value, change }) => html`<label>${label}<select value=${value} onChange=${(event) => change(event.target.value)}>
  ${options.map(([key, text]) => html`<option value=${key} selected=${key === value}>${visible(text)}</option>`)}</select></label>`;

// --- light or dark

function Theme() {
  const root = document.documentElement, system = matchMedia("(prefers-color-scheme: dark)");
  const [dark, set] = useState(() => root.dataset.theme === "dark" || (!root.dataset.theme && system.matches));
  useEffect(() => {
    const tell = () => { if (!root.dataset.theme) set(system.matches); };
    system.addEventListener("change", tell);
    return () => system.removeEventListener("change", tell);
  }, []);
  return html`<button type="button" id="theme" aria-pressed=${String(dark)} onClick=${() => { root.dataset.theme = dark ? "light" : "dark"; remember(root.dataset.theme); set(!dark); }}>Dark</button>`;
}
const remember = (value) => { try { localStorage.setItem("nrt-theme", value); } catch { /* pages from disk may have no storage */ } };
try { const chosen = localStorage.getItem("nrt-theme"); if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen; } catch { /* the same */ }

// --- addresses: what is shown is what stands after the #

function here() {
  const [path, rest = ""] = location.hash.startsWith("#/") ? location.hash.slice(2).split("?") : [""];
  return { screen: path, given: new URLSearchParams(rest) };
}

/** The address of a screen; what is null, undefined or "" is left out, and a list is given once for each. */
function address(screen, given) {
  const found = new URLSearchParams();
  for (const [key, value] of given instanceof URLSearchParams ? given : Object.entries(given)) {
    for (const one of Array.isArray(value) ? value : [value]) if (one !== null && one !== undefined && one !== "") found.append(key, one);
  }
  const text = found.toString();
  return `#/${screen}${text ? `?${text}` : ""}`;
}

/** The same address with some parameters changed. */
const but = (given, changes) => ({ ...Object.fromEntries([...new Set(given.keys())].map((key) => [key, given.getAll(key)])), ...changes });

/** Go to an address; small moves, as along a slider, leave one entry in the history. */
function go(to, replace = false) {
  if (replace) history.replaceState(null, "", to);
  else history.pushState(null, "", to);
  dispatchEvent(new Event("hashchange"));
}

function useAddress() {
  const [at, set] = useState(here);
  useEffect(() => {
    const changed = () => { if (!location.hash || location.hash.startsWith("#/")) set(here()); };
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return at;
}

/** What a source answers to an address, the last answer while a new one is on its way. */
function useAnswer(source, path, tick = 0) {
  const [state, set] = useState({});
  useEffect(() => {
    let late = false;
    source.query(path).then((found) => { if (!late) set({ path, found }); }, (error) => { if (!late) set({ path, error: error.message }); });
    return () => { late = true; };
  }, [source, path, tick]);
  return { ...state, waiting: state.path !== path };
}

const Missing = ({ error }) => html`<p class="reason" role="status">${visible(error || "Reading …")}</p>`;
