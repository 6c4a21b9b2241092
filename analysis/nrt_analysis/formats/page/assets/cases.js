/** One question at a time, and what each method made of it. */
function Side({ said }) {
  const run = DATA.runs[said.run], text = (title, words) => html`<h5>${title}</h5><${Words} text=${words} />`;
  const score = measured(said.score) && html`<span class=${`tag ${said.score >= 1 ? "right" : said.score <= 0 ? "wrong" : ""}`}>${said.score >= 1 ? "right" : said.score <= 0 ? "wrong" : `score ${number(said.score)}`}</span>`;
  return html`<section class=${`side c${run.colour}`} aria-label=${run.title}><h4>${visible(run.title)}${score}</h4>
    ${measured(said.before) && text("trace before training", said.before)}
    ${measured(said.trace) && text((said.step === undefined ? "trace" : `trace after step ${said.step}`) + (said.stop === "cap" ? ", cut at the cap" : ""), said.trace)}
    ${said.answer !== undefined && text("answer", said.answer)}${said.extracted && text("read as", said.extracted)}</section>`;
}

function Cases() {
  const all = DATA.cases, [at, show] = useState(0), several = new Set(all.map((other) => other.model)).size > 1;
  if (!all.length) return html`<p class="reason">The runs share no stored question: train with --validation, or run nrt eval.</p>`;
  const one = all[at], turned = (by) => show((at + by + all.length) % all.length);
  return html`<div class="bar"><${Choice} label="Question" value=${String(at)} change=${(value) => show(Number(value))} options=${all.map((one, i) => [String(i), `${one.name}: ${one.question.slice(0, 60).replace(/\s+/g, " ")}`])} /></div>
    <article class="case" aria-live="polite">
      <div class="turn"><button type="button" onClick=${() => turned(-1)}>Previous</button><h3>${visible(`${several ? `${one.model}, ` : ""}${one.name}`)}<span class="unit">  ${at + 1} of ${all.length}</span></h3><button type="button" onClick=${() => turned(1)}>Next</button></div>
      <h4>Question</h4><${Words} text=${one.question} /><h4>Reference answer</h4><${Words} text=${one.reference} />
      <div class="sides">${one.said.map((said) => html`<${Side} key=${`${at} ${said.run}`} said=${said} />`)}</div></article>`;
}
