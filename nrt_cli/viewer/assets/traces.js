/** The list of traces, and the group view: one question's traces side by side, each token on a shade of what it did. */
const FULL = 3; // nats at which a shade is full: 20 times as probable, or a 20th
const CERTAIN = 3; // nats of entropy at which it is full
const ENDS = { end: "by itself", eos: "by eos", cap: "cut at the cap", given: "given" };
const KIND_NAMES = { step: "training", "held-out": "held-out", direct: "direct answers" };

const share = (value, full) => Math.min(1, Math.abs(value) / full);

/** What an answer's tokens can be shaded by: the class and strength of each token's shade. */
const SHADES = {
  gain: {
    name: "gain",
    long: "gain over the null trace",
    scale: ["both", `−${FULL}`, `+${FULL} nats`],
    shade: (group, trace, i) => { const gain = trace.after[i] - group.base[i]; return [gain > 0 ? "gain" : "loss", share(gain, FULL)]; },
  },
  chance: {
    name: "probability",
    long: "probability after the trace",
    scale: ["one", "0", "1"],
    shade: (group, trace, i) => ["gain", Math.exp(trace.after[i])],
  },
  signal: {
    name: "token signal",
    long: "token signal, its weight in the loss",
    scale: ["one", "0", "largest"],
    shade: (group, trace, i) => ["gain", trace.signal[i] / Math.max(...trace.signal, 1e-300)],
  },
};
/** A shade of the steps that an X-ray looked at. */
function ofSteps(key, name) {
  const scale = ["both", `−${FULL}`, `+${FULL} nats of the answer`];
  return { name, scale, steps: true, known: (trace) => trace.xray?.[key].length, shade: ({ xray }, i) => [xray[key][i] > 0 ? "gain" : "loss", share(xray[key][i], FULL)] };
}

/** The same for a trace's own tokens, or for its steps where an X-ray found what each does for the answer. */
const TRACE_SHADES = {
  needed: ofSteps("needed", "what is needed"),
  necessity: ofSteps("necessity", "necessity"),
  chance: {
    name: "surprise",
    scale: ["doubts", "expected", `${CERTAIN} nats of surprise`],
    known: (trace) => trace.chance?.length,
    shade: (trace, i) => (trace.chance[i] === null || trace.chance[i] === undefined ? null : ["doubt", share(trace.chance[i], CERTAIN)]),
  },
  entropy: {
    name: "entropy",
    scale: ["doubts", "certain", `${CERTAIN} nats of entropy`],
    known: (trace) => trace.entropy?.length,
    shade: (trace, i) => (trace.entropy[i] === null || trace.entropy[i] === undefined ? null : ["doubt", share(trace.entropy[i], CERTAIN)]),
  },
};

/** Texts of tokens, each shaded, with a line below that says what is known of the one that is pointed at. */
function Tokens({ texts, shade, say, title }) {
  const [at, set] = useState(-1);
  const host = useRef();
  const show = (i) => { if (i >= 0 && i < texts.length) set(i); };
  const spot = ({ target }) => { const found = target.closest(".tokens > span"); if (found) show([...host.current.children].indexOf(found)); };
  const keys = (event) => {
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: texts.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    show(to);
  };
  return html`<div class="verbatim tokens" ref=${host} tabindex="0" role="group" aria-label=${title} onPointerOver=${spot} onClick=${spot} onKeyDown=${keys}
      onFocus=${() => { if (at < 0 && host.current.matches(":focus-visible")) show(0); }}>
    ${texts.map((text, i) => {
      const [kind, strength] = shade(i) || [];
      const known = kind && Number.isFinite(strength);
      return html`<span class=${`${known ? kind : ""} ${i === at ? "at" : ""}`.trim() || null} style=${known ? { "--share": Math.max(0, Math.min(1, strength)).toFixed(3) } : null}>${visible(text, true)}</span>`;
    })}</div>
    <output class="readout">${at >= 0 && at < texts.length ? [...visible(`“${texts[at]}” `.replaceAll("\n", "⏎").slice(0, 200)), say(at)] : ""}</output>`;
}

const Scale = ({ of: [kind, low, high] }) => html`<span class="scale"><span class=${kind}>${low}<i></i>${high}</span></span>`;
const measured = (value) => value !== undefined && value !== null;

function sayTrace(trace, i) {
  const said = [];
  if (i === trace.tokens.length) said.push(trace.stop === "end" ? "the end of the trace" : "the end, appended since the model did not end the trace");
  if (measured(trace.chance?.[i])) said.push(`P ${number(Math.exp(trace.chance[i]))}`);
  if (measured(trace.entropy?.[i]) && (i < trace.tokens.length || trace.stop === "end")) said.push(`entropy ${number(trace.entropy[i])} nats`);
  return said.join(", ");
}

function sayStep({ xray }, i) {
  const kept = measured(xray.kept[i + 1]) ? `; log P(y*) with the first ${i + 1}: ${number(xray.kept[i + 1])}` : "";
  const needed = measured(xray.needed[i]) ? `; with other numbers in it, or through later steps, ${nats(xray.needed[i])}` : "";
  return `${xray.unit} ${i + 1} of ${xray.steps.length}: without it the answer loses ${nats(xray.necessity[i])}${needed}${kept}`;
}

/** When the answer is decided: log P(y*) given the first steps alone, from none to all. */
function Decided({ xray }) {
  const known = xray.kept.map((value, i) => [i, value]).filter(([, value]) => value !== null);
  if (known.length < 2) return null;
  const x = axis([0, xray.kept.length - 1], 6, 194, false), y = axis(known.map(([, value]) => value), 42, 6, false);
  const said = measured(xray.decided) ? `decided after ${xray.decided} of ${xray.steps.length} ${xray.unit}s` : "log P(y*) as more is kept";
  return html`<figure class="decided"><svg viewBox="0 0 200 48" role="img" aria-label=${`${said}; from ${number(known[0][1])} to ${number(known.at(-1)[1])} nats`}>
    <path d=${known.map(([i, value], n) => `${n ? "L" : "M"}${x.place(i).toFixed(1)} ${y.place(value).toFixed(1)}`).join("")} />
    ${known.map(([i, value]) => html`<circle class=${i === xray.decided ? "at" : null} cx=${x.place(i)} cy=${y.place(value)} r=${i === xray.decided ? 4 : 2}><title>first ${i}: ${number(value)} nats</title></circle>`)}</svg>
    <figcaption>${said}${measured(xray.smuggled) ? `; ${percent(xray.smuggled)} of what it gained was smuggled` : ""}</figcaption></figure>`;
}

function sayAnswer(group, trace, i) {
  if (!measured(trace.after[i])) return "";
  const after = `P after the trace ${number(Math.exp(trace.after[i]))}`;
  const gain = measured(group.base[i]) ? `, after the null trace ${number(Math.exp(group.base[i]))}: gain ${nats(trace.after[i] - group.base[i])}` : "";
  return after + gain + (measured(trace.signal?.[i]) ? `, token signal ${number(trace.signal[i])}` : "");
}

function Facts({ trace }) {
  const rightness = measured(trace.right) ? [["answer", trace.right >= 1 ? "right" : trace.right <= 0 ? "wrong" : `score ${number(trace.right)}`, trace.right >= 1 ? "up" : "down"]] : [];
  const pairs = [
    ...(measured(trace.gain) ? [["gain", nats(trace.gain), turn(trace.gain)]] : []),
    ...(measured(trace.reward) ? [["reward R", number(trace.reward, 4)], ["R, null trace", number(trace.reward_base, 4)]] : []),
    ...(measured(trace.advantage) ? [["advantage", trace.dead ? "dead group" : signed(trace.advantage), trace.dead ? null : turn(trace.advantage)]] : []),
    ...(trace.clipped ? [["R − baseline", "clipped to 0"]] : []),
    ...(measured(trace.length) ? [["length", `${trace.length} tokens`]] : []),
    ...(trace.stop ? [["end", ENDS[trace.stop] || trace.stop]] : []),
    ...rightness,
  ];
  return html`<dl class="numbers">${pairs.map(([name, value, kind]) => html`<div><dt>${name}</dt><dd class=${kind}>${value}</dd></div>`)}</dl>`;
}

/** Where the rewards of a group lie, on a log scale where all are above 0; a line at the baseline. */
function Rewards({ group, k, choose }) {
  const logs = group.traces.every((trace) => measured(trace.log_reward)) && measured(group.traces[0].log_baseline);
  const value = (trace) => (logs ? trace.log_reward : trace.reward), base = logs ? group.traces[0].log_baseline : group.traces[0].reward_base;
  if (group.traces.length < 2 || !group.traces.every((trace) => measured(value(trace)))) return null;
  const width = 480, x = axis([...group.traces.map(value), ...(measured(base) ? [base] : [])], 14, width - 14, false);
  // Traces that would hide each other stand in rows.
  const rows = [], row = new Map();
  for (const trace of [...group.traces].sort((a, b) => value(a) - value(b))) {
    let i = rows.findIndex((end) => x.place(value(trace)) - end >= 18);
    if (i < 0) i = rows.length;
    rows[i] = x.place(value(trace));
    row.set(trace.k, 14 + 19 * i);
  }
  const bottom = 6 + 19 * rows.length;
  const ten = (log) => (logs ? number(Math.exp(log), 2) : number(log));
  return html`<figure class="strip-plot"><figcaption><b>Reward of each trace</b>${logs ? ", log scale" : ""}; the line is the baseline, R of the null trace</figcaption>
    <svg viewBox="0 0 ${width} ${bottom + 18}" role="img" aria-label=${`Rewards: ${group.traces.map((trace) => `trace ${trace.k + 1} ${number(trace.reward)}`).join(", ")}; baseline ${number(group.traces[0].reward_base)}`}>
      ${x.marks.map((mark) => html`<line class="grid" x1=${x.place(mark)} x2=${x.place(mark)} y1="2" y2=${bottom} /><text x=${x.place(mark)} y=${bottom + 14} text-anchor="middle">${ten(mark)}</text>`)}
      ${measured(base) && html`<line class="baseline" x1=${x.place(base)} x2=${x.place(base)} y1="2" y2=${bottom} />`}
      ${group.traces.map((trace) => html`<g class=${`lot ${trace.k === k ? "chosen" : ""} ${trace.advantage > 0 ? "gained" : trace.advantage < 0 ? "lost" : ""}`} onClick=${() => choose(trace.k)}>
        <circle cx=${x.place(value(trace))} cy=${row.get(trace.k)} r="8" /><text x=${x.place(value(trace))} y=${row.get(trace.k) + 4} text-anchor="middle">${trace.k + 1}</text><title>trace ${trace.k + 1}: R ${number(trace.reward, 4)}</title></g>`)}
    </svg></figure>`;
}

function Trace({ group, trace, mode, traceMode, chosen, choose, size }) {
  const known = trace.after.length > 0, texts = trace.tokens, host = useRef();
  const shown = traceMode.known(trace) ? traceMode : Object.values(TRACE_SHADES).find((one) => one.known(trace));
  const shaded = mode.long === SHADES.signal.long && !trace.signal.length ? SHADES.gain : mode;
  const opened = useRef(false);
  useEffect(() => { if (opened.current && chosen && size > 1) host.current.scrollIntoView({ block: "nearest" }); opened.current = true; }, [chosen]);
  const cut = texts && trace.length > texts.length && known;
  const compares = known && (shaded !== SHADES.gain || group.base.length);
  return html`<article ref=${host} class=${`trace ${chosen ? "chosen" : ""} ${trace.dead ? "dead" : ""}`} aria-label=${`Trace ${trace.k + 1}`} aria-current=${chosen ? "true" : null} onClick=${() => choose(trace.k)}>
    ${size > 1 && html`<h3 class="which">Trace ${trace.k + 1} of ${size}${trace.dead ? html`<span class="tag">dead group</span>` : null}${["cap", "eos"].includes(trace.stop) ? html`<span class="tag wrong">forced end</span>` : null}${trace.clipped ? html`<span class="tag">clipped</span>` : null}</h3>`}
    <${Facts} trace=${trace} />
    ${texts && html`<h4>Trace ${shown ? html`<${Scale} of=${shown.scale} />` : ""}</h4>
      ${shown?.steps ? html`<${Tokens} texts=${trace.xray.steps} shade=${(i) => shown.shade(trace, i)} say=${(i) => sayStep(trace, i)} title="Trace, step by step" /><${Decided} xray=${trace.xray} />` : texts.join("") ? (shown || known ? html`<${Tokens} texts=${cut ? texts : [...texts, trace.stop === "end" ? "■" : "□"]} shade=${(i) => shown?.shade(trace, i)} say=${(i) => sayTrace(trace, i)} title="Trace, token by token" />` : html`<${Words} text=${texts.join("")} />`) : html`<${Words} text="" />`}
      ${cut && html`<p class="none">The first ${texts.length} of ${trace.length} tokens.</p>`}`}
    <h4>Reference answer${known ? `, shaded by ${compares ? shaded.long : SHADES.chance.long}` : ""} ${known ? html`<${Scale} of=${compares ? shaded.scale : SHADES.chance.scale} />` : ""}</h4>
    ${known ? html`<${Tokens} texts=${group.answer} shade=${(i) => (i < trace.after.length ? (compares ? shaded : SHADES.chance).shade(group, trace, i) : null)} say=${(i) => sayAnswer(group, trace, i)} title="Reference answer, token by token" />` : html`<${Words} text=${group.answer.join("")} />`}
    ${!known && html`<p class="none">Single tokens cannot be shown: their numbers are not stored, or the model's tokenizer was not where the run says.</p>`}
    ${measured(trace.reply) && html`<h4>The model's greedy answer</h4><${Words} text=${trace.reply} />`}
  </article>`;
}

const around = (values, value, by) => { const i = values.indexOf(value) + by; return i >= 0 && i < values.length ? values[i] : null; };

/** Whether a key press is meant for the screen and for nothing on it. */
const free = (event) => !event.defaultPrevented && !event.ctrlKey && !event.metaKey && !event.altKey && !event.target.closest("input, select, textarea, .tokens, svg[tabindex], [role=listbox], .rows");

function Group({ source, given, tick, runs }) {
  const k = Number(given.get("k") ?? 0), mode = SHADES[given.get("by")] ?? SHADES.gain, traceMode = TRACE_SHADES[given.get("shade")] ?? TRACE_SHADES.needed;
  const asked = new URLSearchParams(given);
  for (const name of ["k", "by", "shade"]) asked.delete(name);
  const { found, error } = useAnswer(source, `/group?${asked}`, tick);
  const move = (changes, replace = true) => go(address("group", but(given, changes)), replace);
  const choose = (to) => { if (to !== k) move({ k: to }); };
  useLayoutEffect(() => { // no key is missed that is pressed as soon as there is something to see
    const keys = (event) => {
      if (!found || !free(event)) return;
      const [steps, examples] = [event.shiftKey ? 0 : { ArrowLeft: -1, ArrowRight: 1 }[event.key], { PageUp: -1, PageDown: 1 }[event.key] ?? (event.shiftKey && { ArrowLeft: -1, ArrowRight: 1 }[event.key])];
      const traces = { ArrowUp: -1, ArrowDown: 1 }[event.key];
      const step = steps && around(found.steps, found.step, steps), example = examples && around(found.examples, found.example, examples);
      const to = traces && around(found.traces.map((trace) => trace.k), k, traces);
      if (!steps && !examples && !traces) return;
      event.preventDefault();
      if (measured(step) && steps) move({ step, example: found.example });
      else if (measured(example) && examples) move({ example, step: found.step, k: null });
      else if (measured(to) && traces) choose(to);
    };
    addEventListener("keydown", keys);
    return () => removeEventListener("keydown", keys);
  });
  if (!found) return html`<${Missing} error=${error} />`;
  const at = found.steps.indexOf(found.step), size = found.traces.length;
  const shades = Object.entries(TRACE_SHADES).filter(([, one]) => found.traces.some(one.known));
  const question = (by, text) => {
    const to = around(found.examples, found.example, by);
    return html`<button type="button" disabled=${to === null} onClick=${() => move({ example: to, step: found.step, k: null })}>${text}</button>`;
  };
  return html`<section class="group" aria-label="One question's traces">
    <div class="bar">
      <a class="back" href=${address("list", { run: given.get("run"), kind: given.get("kind"), step: found.step })}>All traces of ${visible(found.run)}, step ${found.step}</a>
      ${runs?.length > 1 && html`<${Choice} label="Run" value=${found.run} change=${(run) => go(address("group", { run, kind: found.kind, ...(found.kind === "step" ? {} : { example: found.example }) }))} options=${runs.map(({ run }) => [run, run])} />`}
      <${Choice} label="Shade the trace by" value=${given.get("shade") ?? shades[0]?.[0] ?? ""} change=${(shade) => move({ shade })} options=${shades.map(([key, one]) => [key, one.name])} />
      <${Choice} label="Shade the answer by" value=${given.get("by") ?? "gain"} change=${(by) => move({ by })} options=${Object.entries(SHADES).map(([key, one]) => [key, one.name])} />
    </div>
    <div class="turn">${question(-1, "Previous question")}<h2>${KIND_NAMES[found.kind] ?? found.kind} question ${found.example}</h2>${question(1, "Next question")}</div>
    <label class="steps"><span>${found.scheme ?? html`Step <b>${found.step}</b>`}<span class="unit"> · ${at + 1} of ${found.steps.length} with this question</span></span>
      <input type="range" min="0" max=${found.steps.length - 1} value=${at} disabled=${found.steps.length < 2} aria-valuetext=${`step ${found.step}`} onInput=${(event) => move({ step: found.steps[event.target.value], example: found.example })} /></label>
    ${error && html`<${Missing} error=${error} />`}
    <div class="asked"><div><h3>Question</h3><${Words} text=${found.question} /></div><div><h3>Reference answer</h3><${Words} text=${found.answer.join("")} /></div></div>
    <${Rewards} group=${found} k=${k} choose=${choose} />
    <div class=${`traces ${size > 1 ? "many" : ""}`}>${found.traces.map((trace) => html`<${Trace} key=${trace.k} group=${found} trace=${trace} mode=${mode} traceMode=${traceMode} size=${size} chosen=${trace.k === k} choose=${choose} />`)}</div>
    <p class="hint"><kbd>←</kbd> <kbd>→</kbd> steps, <kbd>↑</kbd> <kbd>↓</kbd> traces, <kbd>PageUp</kbd> <kbd>PageDown</kbd> questions. The address says what is shown.</p>
  </section>`;
}

// --- the list

const LINES = [
  ["gain", "gain", (line) => html`<b class=${turn(line.gain)}>${line.gain === null ? "–" : signed(line.gain)}</b>`],
  ["step", "step", (line) => number(line.step, 9)],
  ["example", "question", (line) => number(line.example, 9)],
  ["k", "trace", (line) => (line.k === null ? "–" : String(line.k + 1))],
  ["reward", "reward", (line) => number(line.reward)],
  ["advantage", "adv.", (line) => (line.dead ? "dead" : line.advantage === null ? "–" : signed(line.advantage))],
  ["length", "length", (line) => number(line.length, 9)],
];
const FLAGS = { forced: "forced end", dead: "dead group", leaked: "answer in trace", clipped: "clipped", right: "right" };
const RANGES = { step: "Step", gain: "Gain" }, MORE = { reward: "Reward", length: "Length", example: "Question" };

/** A range as it is typed: sent once it is left or Enter is pressed. */
function Range({ name, label, value, change }) {
  return html`<label>${label}<input type="text" name=${name} value=${value ?? ""} placeholder="5, 2..9, 0.." inputmode="text" onChange=${(event) => change({ [name]: event.target.value.trim(), at: null })} /></label>`;
}

function List({ source, given, tick, runs }) {
  const text = given.get("text") ?? "";
  const path = `/list?${new URLSearchParams(address("list", but(given, { text: null })).split("?")[1] ?? "")}`;
  const { found, error } = useAnswer(source, path, tick);
  const [hits, setHits] = useState(null);
  const sort = given.get("sort") ?? "-step", at = Number(given.get("at") ?? 0);
  const set = (changes) => go(address("list", but(given, changes)), true);
  const address_ = address("list", given);
  useEffect(() => {
    if (!text) { setHits(null); return undefined; }
    const stop = new AbortController(), lines = [];
    setHits({ lines, done: false });
    source.search(address("list", but(given, { at: null })).split("?")[1], (more) => { lines.push(...more); setHits({ lines: ordered(lines, sort), done: false }); }, stop.signal)
      .then(() => setHits({ lines: ordered(lines, sort), done: true }), (fault) => { if (!stop.signal.aborted) setHits({ lines, done: true, error: fault.message }); });
    return () => stop.abort();
  }, [source, address_, text ? null : tick]);
  const lines = text ? hits?.lines.slice(at, at + PAGE) : found?.traces, total = text ? hits?.lines.length ?? 0 : found?.found ?? 0;
  const shown = LINES.filter(([key]) => lines?.some((line) => measured(line[key])));
  const head = ([key, title]) => {
    const now = sort.replace("-", "") === key ? (sort[0] === "-" ? "descending" : "ascending") : "none";
    return html`<th scope="col" class=${`number of-${key}`} aria-sort=${now}><button type="button" onClick=${() => set({ sort: now === "descending" ? key : `-${key}`, at: null })}>${title}</button></th>`;
  };
  const to = (line) => address("group", { run: line.run, kind: line.kind, step: line.step, example: line.example, k: line.k || null });
  const keys = (event) => {
    const rows = [...event.currentTarget.querySelectorAll("a")], i = rows.indexOf(document.activeElement);
    const next = { ArrowDown: i + 1, ArrowUp: i - 1, Home: 0, End: rows.length - 1 }[event.key];
    if (next === undefined || i < 0) return;
    event.preventDefault();
    rows[Math.max(0, Math.min(rows.length - 1, next))].focus();
  };
  return html`<section class="listing" aria-label="All traces">
    <form class="bar" role="search" aria-label="Which traces" onSubmit=${(event) => event.preventDefault()}>
      ${runs?.length > 1 && html`<${Choice} label="Run" value=${given.get("run") ?? ""} change=${(run) => set({ run, at: null })} options=${runs.map(({ run }) => [run, run])} />`}
      <${Choice} label="Kind" value=${given.get("kind") ?? ""} change=${(kind) => set({ kind, at: null })} options=${[["", "any"], ...Object.entries(KIND_NAMES)]} />
      ${Object.entries(RANGES).map(([name, label]) => html`<${Range} key=${name} name=${name} label=${label} value=${given.get(name)} change=${set} />`)}
      <label>Search<input type="search" value=${text} placeholder="words in it" onInput=${(event) => set({ text: event.target.value, at: null })} /></label>
      <details class="filters" open=${[...Object.keys(MORE), ...Object.keys(FLAGS)].some((name) => given.get(name))}><summary>More filters</summary><div class="bar">
      ${Object.entries(MORE).map(([name, label]) => html`<${Range} key=${name} name=${name} label=${label} value=${given.get(name)} change=${set} />`)}
      ${Object.entries(FLAGS).map(([name, label]) => html`<${Choice} key=${name} label=${label} value=${given.get(name) ?? ""} change=${(value) => set({ [name]: value, at: null })} options=${[["", "any"], ["1", "yes"], ["0", "no"]]} />`)}</div></details>
    </form>
    <p class="unit" role="status">${error ? visible(error) : text ? `${total.toLocaleString("en")} found${hits?.done ? "" : " so far …"}` : found ? `${total.toLocaleString("en")} of ${found.stored.toLocaleString("en")} traces` : "Reading …"}${found?.left ? `; ${found.left.toLocaleString("en")} tables are still being read` : ""}</p>
    ${lines && !lines.length && (hits?.done || !text) ? html`<p class="none">No trace is like that.</p>` : null}
    ${lines?.length ? html`<div class="scroll"><table class="lines"><thead><tr>${shown.map(head)}<th scope="col">trace</th></tr></thead>
      <tbody class="rows" onKeyDown=${keys}>${lines.map((line) => html`<tr key=${to(line)} onClick=${(event) => { if (!event.target.closest("a")) go(to(line)); }}>
        ${shown.map(([key, , show]) => html`<td class=${`number of-${key}`}>${show(line)}</td>`)}
        <td class="said"><a href=${to(line)}>${visible(line.said || "(empty)")}</a>${line.right === 1 ? html`<span class="tag right">right</span>` : line.right === 0 ? html`<span class="tag wrong">wrong</span>` : null}${line.forced ? html`<span class="tag wrong">forced</span>` : null}${line.leaked ? html`<span class="tag">answer in it</span>` : null}<span class="question">${visible(line.question)}</span></td></tr>`)}</tbody></table></div>
      <div class="turn"><button type="button" disabled=${at <= 0} onClick=${() => set({ at: Math.max(0, at - PAGE) || null })}>Previous</button><span class="unit">${at + 1} to ${Math.min(at + PAGE, total)} of ${total.toLocaleString("en")}</span><button type="button" disabled=${at + PAGE >= total} onClick=${() => set({ at: at + PAGE })}>Next</button></div>` : null}
  </section>`;
}

const PAGE = 60; // traces of a list that are shown at once, as in screens.py

/** The list, or one question where the address names one; `start` is the run that is listed first. */
function Traces({ source, runs, start }) {
  const { screen, given } = useAddress();
  const asked = given.get("run") === null ? new URLSearchParams({ run: start, ...Object.fromEntries(given) }) : given;
  return screen === "group" ? html`<${Group} source=${source} given=${asked} runs=${runs} />` : html`<${List} source=${source} given=${asked} runs=${runs} />`;
}

/** Lines of a list in the order that is asked for; what is not measured comes last. */
function ordered(lines, sort) {
  const key = sort.replace("-", ""), by = sort[0] === "-" ? -1 : 1;
  const missing = (line) => line[key] === null || line[key] === undefined;
  return [...lines].sort((a, b) => missing(a) - missing(b) || (missing(a) ? 0 : by * (a[key] - b[key])));
}
