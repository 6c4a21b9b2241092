/** The traces browser: a list on one side, on the other a trace and its answer, each token on a shade of what it did. */
const FULL = 3; // nats at which a shade is full: 20 times as probable, or a 20th
const CERTAIN = 3; // nats of entropy at which it is full
const ENDS = { end: "by itself", eos: "by eos", cap: "cut at the cap", given: "given" };

const share = (value, full) => Math.min(1, Math.abs(value) / full);
/** The class of a number that is good, bad or neither. */
const turn = (value) => (value > 0 ? "up" : value < 0 ? "down" : null);
const nats = (value) => `${signed(value)} nats`;

/** What tokens can be shaded by: the class and strength of each token's shade, and what is said of it. */
const SHADES = {
  gain: {
    name: "gain",
    long: "gain over the null trace",
    scale: ["both", `−${FULL}`, `+${FULL} nats`],
    shade: (group, trace, i) => { const gain = trace.logp[i] - group.base[i]; return [gain > 0 ? "gain" : "loss", share(gain, FULL)]; },
  },
  chance: {
    name: "probability",
    long: "probability after the trace",
    scale: ["one", "0", "1"],
    shade: (group, trace, i) => ["gain", Math.exp(trace.logp[i])],
  },
  signal: {
    name: "token signal",
    long: "token signal, its weight in the loss",
    scale: ["one", "0", "largest"],
    shade: (group, trace, i) => ["gain", trace.signal[i] / Math.max(...trace.signal, 1e-300)],
  },
};

function tokens(texts, shade, say, title) {
  const output = el("output", { class: "readout" });
  const spans = texts.map((text, i) => {
    const span = el("span", {}, ...visible(text, true));
    const [kind, strength] = shade(i) || [];
    if (kind && Number.isFinite(strength)) {
      span.classList.add(kind);
      span.style.setProperty("--share", Math.max(0, Math.min(1, strength)).toFixed(3));
    }
    return span;
  });
  const text = el("div", { class: "verbatim tokens", tabindex: 0, role: "group", "aria-label": title }, ...spans);
  let at = -1;
  function show(i) {
    if (i < 0 || i >= spans.length) return;
    spans[at]?.classList.remove("at");
    at = i;
    spans[at].classList.add("at");
    output.replaceChildren(...visible(`“${texts[at]}” `.replaceAll("\n", "⏎")), say(at));
  }
  for (const event of ["pointerover", "click"]) text.addEventListener(event, ({ target }) => show(spans.indexOf(target.closest(".tokens > span"))));
  text.addEventListener("focus", () => { if (at < 0 && text.matches(":focus-visible")) show(0); });
  text.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: spans.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    show(to);
  });
  return [text, output];
}

const scale = ([kind, low, high]) => el("span", { class: "scale" }, el("span", { class: kind }, low, el("i"), high));

function sayTrace(trace, i) {
  if (i === trace.tokens.length) return trace.stop === "end" ? `the end of the trace, entropy ${number(trace.entropy[i])} nats` : "the end, appended since the model did not end the trace";
  return trace.entropy[i] === undefined || trace.entropy[i] === null ? "" : `entropy ${number(trace.entropy[i])} nats`;
}

function sayAnswer(group, trace, i) {
  if (trace.logp[i] === undefined) return "";
  const signal = trace.signal?.[i];
  return `P after the trace ${number(Math.exp(trace.logp[i]))}, after the null trace ${number(Math.exp(group.base[i]))}: gain ${nats(trace.logp[i] - group.base[i])}`
    + (signal === undefined || signal === null ? "" : `, token signal ${number(signal)}`);
}

function facts(group, trace) {
  const pairs = [
    ["gain", nats(trace.gain), turn(trace.gain)],
    ["reward R", number(trace.reward, 4)],
    ["R, null trace", number(trace.reward_base, 4)],
    ["advantage", trace.dead ? "dead group" : signed(trace.advantage), trace.dead ? null : turn(trace.advantage)],
    ["length", `${trace.length} tokens`],
    ["end", ENDS[trace.stop] || trace.stop],
  ];
  return el("dl", { class: "numbers" }, ...pairs.map(([name, value, kind]) => el("div", {}, el("dt", {}, name), el("dd", { class: kind }, value))));
}

function detail(entry, by, scheme) {
  const { group } = entry;
  const trace = entry.trace.schemes ? { ...entry.trace, ...entry.trace.schemes[scheme] } : entry.trace;
  const known = trace.logp.length > 0;
  const mode = SHADES[by];
  const cut = trace.length > trace.tokens.length && trace.entropy.length > 0;
  const ending = trace.entropy.length > trace.tokens.length ? [...trace.tokens, " ⏹"] : trace.tokens;
  const [thought, saidThought] = tokens(ending, (i) => trace.entropy[i] === undefined || trace.entropy[i] === null ? null : ["doubt", share(trace.entropy[i], CERTAIN)], (i) => sayTrace(trace, i), "Trace, token by token");
  const [answer, saidAnswer] = tokens(group.answer, (i) => known && i < trace.logp.length ? mode.shade(group, trace, i) : null, (i) => sayAnswer(group, trace, i), "Reference answer, token by token");
  return [
    facts(group, trace),
    el("h3", {}, "Question"), words(group.question),
    el("h3", {}, "Trace", trace.entropy.length ? scale(["doubts", "certain", `${CERTAIN} nats of entropy`]) : ""),
    trace.tokens.join("") ? thought : words(""), saidThought,
    cut ? el("p", { class: "none" }, `The first ${trace.tokens.length} of ${trace.length} tokens.`) : null,
    el("h3", {}, `Reference answer, shaded by ${mode.long}`, known ? scale(mode.scale) : ""),
    answer, saidAnswer,
    known ? null : el("p", { class: "none" }, "Single tokens cannot be shown: the model's tokenizer was not where the run says."),
  ];
}

/** Every trace of the page as one entry, with what the list needs to filter and sort it. */
function entries() {
  return DATA.traces.sets.flatMap((set) => set.groups.flatMap((group) => group.traces.map((trace) => ({
    set, group, trace,
    source: set.name ?? String(set.run),
    advantage: trace.schemes ? null : trace.advantage,
    found: (group.question + "\n" + trace.tokens.join("") + "\n" + group.answer.join("")).toLowerCase(),
  }))));
}

const ORDERS = {
  stored: ["as stored", () => 0],
  best: ["largest gain first", (a, b) => b.trace.gain - a.trace.gain],
  worst: ["largest loss first", (a, b) => a.trace.gain - b.trace.gain],
  advantage: ["largest advantage first", (a, b) => (b.advantage ?? -Infinity) - (a.advantage ?? -Infinity)],
  longest: ["longest first", (a, b) => b.trace.length - a.trace.length],
};

function option(entry, i) {
  const { set, group, trace } = entry;
  const which = `${trace.k + 1}/${group.traces.length}`;
  const where = set.name ? `trace ${which}` : `step ${set.step}, question ${group.example}, ${which}`;
  const said = trace.tokens.join("").trim().slice(0, 80).replace(/\s+/g, " ") || "(empty)";
  return el("div", { role: "option", id: `trace-${i}`, "aria-selected": "false" },
    el("b", { class: turn(trace.gain) }, signed(trace.gain)), " ", ...visible(where), el("span", { class: "said" }, ...visible(said)));
}

function browse(host) {
  const all = entries();
  if (!all.length) {
    host.append(el("p", { class: "reason" }, "No traces of training steps are stored: SFT samples none, and train.trace_groups says how many a step keeps."));
    return;
  }
  const sources = [...new Map(all.map((entry) => [entry.source, entry.set.name ?? DATA.runs[entry.set.run].label]))];
  const state = { source: (sources.find(([source]) => source === String(DATA.traces.start)) ?? sources[0])[0], step: "", order: "stored", text: "", by: "gain", scheme: "", at: 0 };
  let shown = [];
  const list = el("div", { class: "list", role: "listbox", tabindex: 0, "aria-label": "Traces; arrow keys choose one" });
  const card = el("article", { class: "trace", "aria-live": "polite", "aria-label": "The chosen trace" });
  const count = el("span", { class: "unit", role: "status" });
  const back = el("button", { type: "button" }, "Previous"), on = el("button", { type: "button" }, "Next");

  function filter() {
    const text = state.text.toLowerCase();
    shown = all.filter((entry) => entry.source === state.source && (!state.step || String(entry.set.step) === state.step) && entry.found.includes(text));
    shown.sort(ORDERS[state.order][1]);
    list.replaceChildren(...shown.map(option));
    pick(0);
  }
  function pick(i) {
    state.at = Math.max(0, Math.min(shown.length - 1, i));
    list.querySelector('[aria-selected="true"]')?.setAttribute("aria-selected", "false");
    const chosen = list.children[state.at];
    count.replaceChildren(shown.length ? `${state.at + 1} of ${shown.length} traces` : "no trace is like that");
    back.disabled = state.at <= 0;
    on.disabled = state.at >= shown.length - 1;
    list.toggleAttribute("aria-activedescendant", false);
    if (!chosen) { card.replaceChildren(el("p", { class: "none" }, "No trace is like that.")); return; }
    chosen.setAttribute("aria-selected", "true");
    list.setAttribute("aria-activedescendant", chosen.id);
    // Only the list scrolls: scrollIntoView would move the page too.
    if (chosen.offsetTop < list.scrollTop) list.scrollTop = chosen.offsetTop;
    else if (chosen.offsetTop + chosen.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = chosen.offsetTop + chosen.offsetHeight - list.clientHeight;
    card.replaceChildren(el("div", { class: "turn" }, back, count, on), ...detail(shown[state.at], state.by, state.scheme).filter(Boolean));
  }
  back.addEventListener("click", () => { pick(state.at - 1); (back.disabled ? on : back).focus(); });
  on.addEventListener("click", () => { pick(state.at + 1); (on.disabled ? back : on).focus(); });
  list.addEventListener("click", ({ target }) => { const chosen = target.closest('[role="option"]'); if (chosen) pick([...list.children].indexOf(chosen)); });
  list.addEventListener("keydown", (event) => {
    const to = { ArrowUp: state.at - 1, ArrowDown: state.at + 1, PageUp: state.at - 8, PageDown: state.at + 8, Home: 0, End: shown.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    pick(to);
  });

  const [stepLabel, stepSelect] = choice("Step", [], (value) => { state.step = value; filter(); });
  const [schemeLabel, schemeSelect] = choice("Scheme", [], (value) => { state.scheme = value; pick(state.at); });
  function refine() {
    const mine = all.filter((entry) => entry.source === state.source);
    const steps = [...new Set(mine.map((entry) => entry.set.step))].filter((step) => step !== undefined);
    const schemes = Object.keys(mine[0].trace.schemes || {});
    stepSelect.replaceChildren(el("option", { value: "" }, "all"), ...steps.map((step) => el("option", { value: step }, String(step))));
    schemeSelect.replaceChildren(...schemes.map((name) => el("option", { value: name }, name)));
    [state.step, state.scheme] = ["", schemes[0]];
    stepLabel.hidden = !steps.length;
    schemeLabel.hidden = !schemes.length;
    filter();
  }
  const search = el("input", { type: "search", placeholder: "words in it" });
  search.addEventListener("input", () => { state.text = search.value; filter(); });
  const [runLabel, runSelect] = choice("Run", sources, (value) => { state.source = value; refine(); });
  runSelect.value = state.source;
  host.append(el("div", { class: "bar", role: "search", "aria-label": "Which traces" }, runLabel, stepLabel, schemeLabel,
    choice("Order", Object.entries(ORDERS).map(([key, [name]]) => [key, name]), (value) => { state.order = value; filter(); })[0],
    choice("Shade the answer by", Object.entries(SHADES).map(([key, { name }]) => [key, name]), (value) => { state.by = value; pick(state.at); })[0],
    el("label", {}, "Search", search)), el("div", { class: "browser" }, list, card));
  refine();
}

browse(document.getElementById("browser"));
