/** Small multiples of the runs' metrics: one chart per metric, one line per run, one colour per method. */
const CHART = { width: 340, height: 190, left: 44, right: 8, top: 8, bottom: 24 };
const FEW = 4; // lines beside which single steps can still be seen

function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((unit) => unit * power).find((unit) => unit >= rough);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-6; at += step) found.push(Math.abs(at) < step / 1e6 ? 0 : at);
  return found;
}

/** From a number to a place along an axis; logarithmic where all numbers allow it and it is asked for. */
function axis(values, from, to, log) {
  const scaled = log ? values.map(Math.log10) : values;
  let low = Math.min(...scaled), high = Math.max(...scaled);
  if (low === high) [low, high] = [low - 0.5, high + 0.5];
  const place = (value) => from + ((log ? Math.log10(value) : value) - low) / (high - low) * (to - from);
  let marks = log ? ticks(low, high, 3).filter(Number.isInteger).map((power) => 10 ** power) : ticks(low, high, 4);
  if (log && marks.length < 2) marks = [10 ** low, 10 ** high];
  return { place, marks };
}

/** A chart that is read with the pointer or the arrow keys; a click or Enter picks the step that is read. */
function Chart({ panel, lines, falls = [], remarks = [], seen, pick }) {
  const [at, setAt] = useState(null);
  const { width, height, left, right, top, bottom } = CHART;
  const means = lines.flatMap((line) => line.mean.filter((value) => value !== null));
  const steps = [...new Set(lines.flatMap((line) => line.step))].sort((a, b) => a - b);
  const log = panel.log && means.every((value) => value > 0);
  const raws = lines.length <= FEW ? lines.flatMap((line) => (line.raw ?? []).filter((value) => value !== null)) : [];
  const ends = seen ? [seen.low, seen.high] : [...means, ...raws];
  const x = axis(steps, left, width - right, false);
  const y = axis(panel.share ? [0, 1] : log ? means : panel.zero ? [...ends, 0] : ends, height - bottom, top, log);
  const path = (line, values) => {
    let draw = "", pen = "M";
    values.forEach((value, i) => {
      if (value === null || (log && value <= 0)) { pen = "M"; return; }
      draw += `${pen}${x.place(line.step[i]).toFixed(1)} ${y.place(value).toFixed(1)}`;
      pen = "L";
    });
    return draw;
  };
  const label = `${panel.title}, ${panel.unit}. ` + lines.map((line) => `${line.label}: from ${number(line.mean[0])} to ${number(line.mean.at(-1))}`).join("; ");
  const show = (i) => setAt(Math.max(0, Math.min(steps.length - 1, i)));
  const last = at ?? steps.length - 1;
  const said = new Map();
  if (at !== null) {
    for (const line of lines) {
      const value = line.mean[line.step.indexOf(steps[at])];
      if (value !== null && value !== undefined) said.set(line.label, [...(said.get(line.label) || []), [line, value]]);
    }
  }
  const mean = (pairs) => pairs.reduce((sum, [, value]) => sum + value, 0) / pairs.length;
  const near = remarks.filter((remark) => at !== null && Math.abs(x.place(remark.step) - x.place(steps[at])) < 4);
  return html`<figure class="chart">
    <figcaption title=${panel.about}><b>${panel.title}</b> ${panel.unit}</figcaption>
    <svg viewBox="0 0 ${width} ${height}" tabindex="0" role="img" aria-label=${label}
      onPointerMove=${(event) => {
        const box = event.currentTarget.getBoundingClientRect();
        const place = (event.clientX - box.left) / box.width * width;
        const distance = steps.map((step) => Math.abs(x.place(step) - place));
        show(distance.indexOf(Math.min(...distance)));
      }}
      onFocus=${() => show(last)} onBlur=${() => setAt(null)} onPointerLeave=${() => setAt(null)}
      onClick=${() => pick && at !== null && pick(steps[at], lines)}
      onKeyDown=${(event) => {
        const to = { ArrowLeft: last - 1, ArrowRight: last + 1, Home: 0, End: steps.length - 1 }[event.key];
        if (event.key === "Enter" && pick) pick(steps[last], lines);
        if (to === undefined) return;
        event.preventDefault();
        show(to);
      }}>
      <clipPath id="clip-${panel.key}"><rect x=${left} y=${top - 3} width=${width - left - right} height=${height - top - bottom + 6} /></clipPath>
      ${y.marks.map((mark) => html`<line class=${mark === 0 && !panel.share ? "zero" : "grid"} x1=${left} x2=${width - right} y1=${y.place(mark)} y2=${y.place(mark)} />
        <text x=${left - 6} y=${y.place(mark) + 4} text-anchor="end">${number(mark)}</text>`)}
      ${x.marks.map((mark) => html`<text x=${x.place(mark)} y=${height - 6} text-anchor="middle">${String(mark)}</text>`)}
      ${remarks.filter((one) => one.step >= steps[0] && one.step <= steps.at(-1)).map((one) => html`<path class="remark ${one.kind === "checkpoint" ? "kept" : "told"}" d=${one.kind === "checkpoint"
        ? `M${x.place(one.step)} ${height - bottom}v-5` : `M${x.place(one.step)} ${height - bottom}V${top}`}><title>${one.text}</title></path>`)}
      <g clip-path="url(#clip-${panel.key})">${lines.length <= FEW && lines.map((line) => line.raw && html`<path class="raw c${line.colour}" d=${path(line, line.raw)} />`)}</g>
      <g clip-path="url(#clip-${panel.key})">${lines.map((line) => html`<path class="c${line.colour}" d=${path(line, line.mean)} />`)}</g>
      ${lines.filter((line) => line.step.length < 3).flatMap((line) => line.mean.map((value, i) => value !== null && html`<circle class="spot c${line.colour}" cx=${x.place(line.step[i])} cy=${y.place(value)} r="3.5" />`))}
      ${falls.map((fall) => html`<circle class="fell" cx=${x.place(fall.step)} cy=${y.place(fall.value)} r="6"><title>${fall.text}</title></circle>`)}
      ${at !== null && html`<line class="cursor" x1=${x.place(steps[at])} x2=${x.place(steps[at])} y1=${top} y2=${height - bottom} />`}
    </svg>
    ${seen?.beyond && !log && !panel.share && html`<p class="beyond">Not all seen: ${visible(seen.beyond)}.</p>`}
    <output>${at !== null && `step ${steps[at]}: `}${[...said].map(([name, pairs]) => html`<span><b class="c${pairs[0][0].colour}">${visible(name)}</b> ${number(mean(pairs))}  </span>`)}${near.map((one) => html`<span>${visible(one.text)} </span>`)}</output>
  </figure>`;
}

/** All charts of some runs, with a legend that hides a method's lines. A run: label, title, colour, values, falls, remarks. */
function Charts({ panels, runs, seen, pick }) {
  const [hidden, hide] = useState([]);
  const shown = runs.filter((run) => !hidden.includes(run.title));
  const charts = panels.flatMap((panel) => {
    const lines = shown.flatMap((run) => {
      const found = run.values[panel.key];
      return found?.mean.some((value) => value !== null) ? [{ ...found, run, label: run.label, colour: run.colour }] : [];
    });
    const falls = lines.flatMap((line) => (line.run.falls || []).filter((fall) => fall.sign === panel.key).map((fall) => {
      const near = line.step.findIndex((step) => step >= fall.step);
      return { step: line.step[near], value: line.mean[near], text: `${line.label}: ${fall.text}` };
    }).filter((fall) => fall.value !== null && fall.value !== undefined));
    const remarks = shown.flatMap((run) => run.remarks || []);
    return lines.length ? [html`<${Chart} key=${panel.key} panel=${panel} lines=${lines} falls=${falls} remarks=${remarks} pick=${pick} seen=${seen?.[panel.key][lines.length <= FEW ? "raw" : "mean"]} />`] : [];
  });
  const titles = [...new Map(runs.map((run) => [run.title, run.colour]))];
  return html`<fieldset class="keys"><legend class="only-read">Methods shown</legend>${titles.map(([title, colour]) => html`<label>
      <input type="checkbox" checked=${!hidden.includes(title)} onChange=${() => hide(hidden.includes(title) ? hidden.filter((one) => one !== title) : [...hidden, title])} />
      <svg width="34" height="8" class="c${colour}" aria-hidden="true"><line x1="1" x2="33" y1="4" y2="4" /></svg>${visible(title)}</label>`)}</fieldset>
    <div class="charts">${charts.length ? charts : html`<p class="none">No step is recorded, or no method is chosen.</p>`}</div>`;
}
