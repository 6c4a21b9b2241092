/** The viewer's other screens: runs, curves, two runs, evaluations. */

const STATES = { running: "trains", created: "begins", finished: "finished", stopped: "stopped", interrupted: "interrupted", failed: "failed" };

function Runs({ source, tick }) {
  const { found, error } = useAnswer(source, "/runs", tick);
  const [marked, mark] = useState([]);
  if (!found) return html`<${Missing} error=${error} />`;
  if (!found.runs.length) return html`<p class="reason">No run is here yet; <code>nrt train</code> makes one, and it appears here by itself.</p>`;
  const toggle = (name) => mark(marked.includes(name) ? marked.filter((one) => one !== name) : [...marked, name]);
  const doing = (screen, text, few) => html`<a class=${`button ${few ? "off" : ""}`} aria-disabled=${few ? "true" : null} href=${few ? null : address(screen, { run: marked })}>${text}</a>`;
  return html`<section aria-label="Runs"><h1>Runs</h1>
    <p class="bar">${doing("curves", "Curves of the marked", marked.length < 1)}${doing("compare", "Compare two, question by question", marked.length !== 2)}${doing("evals", "Evaluations of the marked", marked.length < 1)}</p>
    ${found.left ? html`<p class="unit" role="status">${found.left.toLocaleString("en")} tables of traces are still being read.</p>` : null}
    <div class="scroll"><table class="runs"><thead><tr><th><span class="only-read">Mark</span></th><th scope="col">run</th><th scope="col">method</th><th scope="col">state</th><th scope="col" class="number">step</th><th scope="col" class="number">log P(y*)</th><th scope="col" class="number">gain</th><th scope="col" class="number">right</th><th scope="col" class="number">traces</th><th scope="col">look at</th></tr></thead>
    <tbody>${found.runs.map((run) => html`<tr key=${run.run}>
      <td><input type="checkbox" aria-label=${`Mark ${run.run}`} checked=${marked.includes(run.run)} onChange=${() => toggle(run.run)} /></td>
      <th scope="row"><a href=${address("curves", { run: run.run })}>${visible(run.run)}</a></th><td>${visible(run.title)}</td>
      <td>${["running", "created"].includes(run.status) ? html`<b class="live">${STATES[run.status]}</b>` : STATES[run.status] ?? run.status}</td>
      <td class="number">${run.step}${run.steps ? html`<span class="unit"> of ${run.steps}</span>` : null}</td>
      <td class="number">${number(run.answer_logprob)}</td><td class="number">${run.gain === null ? "–" : signed(run.gain)}</td><td class="number">${percent(run.accuracy)}</td><td class="number">${run.traces.toLocaleString("en")}</td>
      <td class="links">${run.traces ? html`<a href=${address("list", { run: run.run })}>traces</a> <a href=${address("group", { run: run.run, kind: run.kinds.includes("held-out") ? "held-out" : run.kinds[0] })}>questions</a>` : null}${run.damaged.length ? html`<details><summary>${run.damaged.length} unreadable</summary>${run.damaged.map((text) => html`<p>${visible(text)}</p>`)}</details>` : null}</td></tr>`)}</tbody></table></div></section>`;
}

function Curves({ source, given, tick }) {
  const named = given.getAll("run");
  const { found, error } = useAnswer(source, `/curves?${new URLSearchParams(named.map((run) => ["run", run]))}`, tick);
  if (!found) return html`<${Missing} error=${error} />`;
  const runs = found.runs.filter((run) => !named.length || named.includes(run.run)).map((run, i) => ({
    ...run, label: found.runs.length > 1 ? run.run : run.title, title: found.runs.length > 1 ? run.run : run.title, colour: i % 8,
    remarks: run.remarks.map((one) => ({ ...one, text: `${found.runs.length > 1 ? `${run.run}: ` : ""}${one.kind} at step ${one.step}${one.text ? `: ${one.text}` : ""}` })),
  }));
  const pick = (step, lines) => {
    const run = lines[0].run;
    go(address("list", { run: run.run, kind: lines[0].held ? "held-out" : run.kinds.includes("step") ? "step" : null, step }));
  };
  const keys = [...new Set(runs.flatMap((run) => Object.keys(run.settings)))].filter((key) => new Set(runs.map((run) => JSON.stringify(run.settings[key]))).size > 1);
  const told = runs.flatMap((run) => run.remarks.filter((one) => one.kind !== "checkpoint"));
  return html`<section aria-label="Curves"><h1>${runs.length > 1 ? `${runs.length} runs` : visible(runs[0].run)}</h1>
    <p>Thick lines are means of the last ${found.window} steps, faint ones single steps where few runs are shown; held-out scores are as they were measured. A click on a point, or Enter, opens its traces; lines across are what happened to a run, small marks below its checkpoints.</p>
    ${told.length ? html`<ul class="remarks">${told.map((one) => html`<li>${visible(one.text)}</li>`)}</ul>` : null}
    <${Charts} panels=${found.panels} runs=${runs} pick=${pick} />
    ${runs.length > 1 ? html`<h2>Settings that differ</h2>${keys.length ? html`<div class="scroll"><table><thead><tr><th scope="col">key</th>${runs.map((run) => html`<th scope="col">${visible(run.run)}</th>`)}</tr></thead>
      <tbody>${keys.map((key) => html`<tr><th scope="row"><code>${visible(key)}</code></th>${runs.map((run) => html`<td><code>${visible(run.settings[key] === undefined ? "–" : typeof run.settings[key] === "string" ? run.settings[key] : JSON.stringify(run.settings[key]))}</code></td>`)}</tr>`)}</tbody></table></div>` : html`<p class="none">None.</p>`}` : null}</section>`;
}

/** A mean with its interval, on a line whose middle is 0. */
function Interval({ one, most }) {
  const x = (value) => 100 + 96 * Math.max(-1, Math.min(1, value / most));
  return html`<svg class="interval" viewBox="0 0 200 16" role="img" aria-hidden="true"><line class="zero" x1="100" x2="100" y1="0" y2="16" /><line class="ends" x1=${x(one.low)} x2=${x(one.high)} y1="8" y2="8" /><circle cx=${x(one.value)} cy="8" r="4" /></svg>`;
}

function Compare({ source, given, tick, runs }) {
  const names = runs.map(({ run }) => run), named = given.getAll("run");
  const pair = [...named, ...names.filter((name) => !named.includes(name))].slice(0, 2);
  const asked = new URLSearchParams(address("compare", but(given, { run: pair })).split("?")[1]);
  const { found, error } = useAnswer(source, `/compare?${asked}`, tick);
  const move = (changes) => go(address("compare", but(asked, changes)), true);
  const choosing = names.length > 1 && html`<div class="bar">${[0, 1].map((i) => html`<${Choice} label=${i ? "against" : "Run"} value=${pair[1 - i]} change=${(run) => move({ run: i ? [run, pair[1]] : [pair[0], run], example: null })} options=${names.map((name) => [name, name])} />`)}</div>`;
  useLayoutEffect(() => {
    const keys = (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key], example = { PageUp: -1, PageDown: 1 }[event.key];
      if (!found || !free(event) || !(step || example)) return;
      const to = step ? around(found.steps, found.step, step) : around(found.examples, found.example, example);
      event.preventDefault();
      if (to !== null) move(step ? { step: to } : { example: to });
    };
    addEventListener("keydown", keys);
    return () => removeEventListener("keydown", keys);
  });
  if (!found) return html`<section aria-label="Two runs"><h1>Two runs</h1>${choosing}<${Missing} error=${error} /></section>`;
  const now = found.differences.filter((one) => one.step === found.step);
  const question = (by, text) => { const to = around(found.examples, found.example, by); return html`<button type="button" disabled=${to === null} onClick=${() => move({ example: to })}>${text}</button>`; };
  const shown = (one, value) => (one.share ? `${signed(100 * value)} points` : nats(value));
  const most = (one) => Math.max(1e-9, ...found.differences.filter((other) => other.key === one.key).flatMap((other) => [Math.abs(other.low), Math.abs(other.high)]));
  const at = found.steps.indexOf(found.step);
  return html`<section class="compare" aria-label="Two runs"><h1>${visible(found.runs[1])} against ${visible(found.runs[0])}</h1>${choosing}${error && html`<${Missing} error=${error} />`}
    <label class="steps"><span>Step <b>${found.step}</b><span class="unit"> ${at + 1} of ${found.steps.length}</span></span><input type="range" min="0" max=${found.steps.length - 1} value=${at} aria-valuetext=${`step ${found.step}`} disabled=${found.steps.length < 2} onInput=${(event) => move({ step: found.steps[event.target.value] })} /></label>
    <div class="scroll"><table class="differences"><caption>The second minus the first, over the same held-out questions, with 95 % intervals over them</caption><tbody>${now.map((one) => html`<tr><th scope="row">${one.title}</th><td class="number">${shown(one, one.value)}</td><td class="number unit">[${signed(one.share ? 100 * one.low : one.low)}, ${signed(one.share ? 100 * one.high : one.high)}]</td><td><${Interval} one=${one} most=${most(one)} /></td><td class="unit">n ${one.n}</td></tr>`)}</tbody></table></div>
    <div class="turn">${question(-1, "Previous question")}<h2>Held-out question ${found.example}</h2>${question(1, "Next question")}</div>
    <div class="asked"><div><h3>Question</h3><${Words} text=${found.sides[0].question} /></div></div>
    <div class="sides">${found.sides.map((side, i) => html`<div class=${`side c${i}`}><h3>${visible(found.runs[i])}</h3>${side.traces.map((trace) => html`<${Trace} group=${side} trace=${trace} mode=${SHADES.gain} traceMode=${TRACE_SHADES.needed} size=${1} choose=${() => {}} />`)}</div>`)}</div>
    <p class="hint"><kbd>←</kbd> <kbd>→</kbd> steps, <kbd>PageUp</kbd> <kbd>PageDown</kbd> questions.</p></section>`;
}

function Evals({ source, given, tick }) {
  const { found, error } = useAnswer(source, `/evals?${given}`, tick);
  if (!found) return html`<${Missing} error=${error} />`;
  const benchmarks = [...new Set(found.scores.map((one) => one.benchmark))];
  const set = (changes) => go(address("evals", but(given, changes)), true);
  const of = (name, i) => html`<${Choice} label=${i ? "and" : "Model"} value=${found.chosen[i] ?? ""} change=${(model) => set({ model: i ? [found.chosen[0], model] : [model, ...found.chosen.slice(1)], document: null, at: null })} options=${[...(i && found.chosen.length < 2 ? [["", "none"]] : []), ...found.models.map((model) => [model, model])]} />`;
  return html`<section class="evals" aria-label="Evaluations"><h1>Evaluations</h1>
    ${found.scores.length ? html`<div class="scroll"><table><thead><tr><th scope="col">benchmark</th><th scope="col">model</th><th scope="col" class="number">score</th><th scope="col" class="number">error</th><th scope="col" class="number">documents</th></tr></thead>
      <tbody>${found.scores.map((one) => html`<tr><th scope="row"><a href=${address("evals", { ...but(given, { document: null, at: null, only: null }), benchmark: one.benchmark, model: null })}>${visible(one.benchmark)}</a></th><td>${visible(one.model)}</td><td class="number">${percent(one.score)}</td><td class="number">± ${percent(one.error)}</td><td class="number">${number(one.n, 9)}</td></tr>`)}</tbody></table></div>`
      : html`<p class="reason">No benchmark was run on these; <code>nrt eval</code> runs one.</p>`}
    ${found.benchmark && html`<h2>${visible(found.benchmark)}</h2>
      <div class="bar">${of("a", 0)}${found.models.length > 1 && of("b", 1)}<${Choice} label="Documents" value=${given.get("only") ?? ""} change=${(only) => set({ only, at: null, document: null })} options=${[["", "all"], ...Object.entries(found.counts).map(([fate, n]) => [fate, `${fate} (${n})`])]} /></div>
      ${found.chosen.length > 1 && html`<p>${visible(found.chosen[1])} has ${number(found.counts.won ?? 0, 9)} right that ${visible(found.chosen[0])} has wrong, and ${number(found.counts.lost ?? 0, 9)} wrong that it has right.</p>`}
      <div class="browser"><div class="list">${found.documents.map((one) => html`<a key=${one.document} class="line" href=${address("evals", but(given, { document: one.document }))} aria-current=${one.document === found.document?.document ? "true" : null}><span class=${`tag ${["won", "right", "both right"].includes(one.fate) ? "right" : "wrong"}`}>${one.fate}</span> ${visible(one.id)}<span class="said">${visible(one.question)}</span></a>`)}
        ${found.found > PAGE && html`<div class="turn"><button type="button" disabled=${found.at <= 0} onClick=${() => set({ at: Math.max(0, found.at - PAGE) || null, document: null })}>Previous</button><button type="button" disabled=${found.at + PAGE >= found.found} onClick=${() => set({ at: found.at + PAGE, document: null })}>Next</button></div>`}</div>
      ${found.document ? html`<${Graded} found=${found.document} />` : html`<p class="none">No document is like that.</p>`}</div>`}</section>`;
}

function Graded({ found }) {
  return html`<article class="case"><h3>${visible(found.id)}${found.subset ? html` <span class="unit">${visible(found.subset)}</span>` : null}</h3>
    ${found.turns.map((turn) => html`<h4>${visible(turn.role ?? "")}</h4><${Words} text=${turn.content ?? ""} />`)}
    <h4>What is right</h4><${Words} text=${found.gold} />
    <div class="sides">${found.sides.map((side, i) => html`<div class=${`side c${i}`}><h4>${visible(side.model)} ${Object.entries(side.scores).map(([name, score]) => html`<span class=${`tag ${score >= 1 ? "right" : score <= 0 ? "wrong" : ""}`}>${visible(name)} ${number(score)}</span> `)}</h4>
      ${side.replies.map((reply) => html`${reply.trace !== null && html`<h5>trace, ended ${ENDS[reply.stop] ?? reply.stop}</h5><${Words} text=${reply.trace} />`}<h5>answer</h5><${Words} text=${reply.answer} />${reply.read !== null && html`<h5>graded part</h5><${Words} text=${reply.read} />`}<p class="unit">${visible(reply.why)}</p>`)}</div>`)}</div></article>`;
}
