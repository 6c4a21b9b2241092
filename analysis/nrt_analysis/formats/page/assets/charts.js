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

function chart(panel, lines, falls, seen) {
  const { width, height, left, right, top, bottom } = CHART;
  const means = lines.flatMap((line) => line.mean.filter((value) => value !== null));
  const steps = lines.flatMap((line) => line.step);
  const log = panel.log && means.every((value) => value > 0);
  const bounds = panel.share ? [0, 1] : log ? means : panel.zero ? [seen.low, seen.high, 0] : [seen.low, seen.high];
  const x = axis(steps, left, width - right, false);
  const y = axis(bounds, height - bottom, top, log);
  const path = (line, values) => {
    let draw = "", pen = "M";
    values.forEach((value, i) => {
      if (value === null || (log && value <= 0)) { pen = "M"; return; }
      draw += `${pen}${x.place(line.step[i]).toFixed(1)} ${y.place(value).toFixed(1)}`;
      pen = "L";
    });
    return draw;
  };
  const clip = `clip-${panel.key}`;
  const label = `${panel.title}, ${panel.unit}. ` + lines.map((line) => `${line.label}: from ${number(line.mean[0])} to ${number(line.mean.at(-1))}`).join("; ");
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, tabindex: 0, role: "img", "aria-label": label },
    svg("clipPath", { id: clip }, svg("rect", { x: left, y: top - 3, width: width - left - right, height: height - top - bottom + 6 })),
    ...y.marks.flatMap((mark) => [
      svg("line", { class: mark === 0 && !panel.share ? "zero" : "grid", x1: left, x2: width - right, y1: y.place(mark), y2: y.place(mark) }),
      svg("text", { x: left - 6, y: y.place(mark) + 4, "text-anchor": "end" }, number(mark)),
    ]),
    ...x.marks.map((mark) => svg("text", { x: x.place(mark), y: height - 6, "text-anchor": "middle" }, String(mark))),
    svg("g", { "clip-path": `url(#${clip})` }, ...lines.filter((line) => line.raw && lines.length <= FEW).map((line) => svg("path", { class: `raw c${line.colour}`, d: path(line, line.raw) }))),
    svg("g", { "clip-path": `url(#${clip})` }, ...lines.map((line) => svg("path", { class: `c${line.colour}`, d: path(line, line.mean) }))),
    ...lines.filter((line) => line.step.length < 3).flatMap((line) => line.mean.map((value, i) => value === null ? null
      : svg("circle", { class: `spot c${line.colour}`, cx: x.place(line.step[i]), cy: y.place(value), r: 3.5 }))),
    ...falls.map((fall) => svg("circle", { class: "fell", cx: x.place(fall.step), cy: y.place(fall.value), r: 6 }, svg("title", {}, fall.text))),
  );
  const output = el("output");
  readable(drawing, output, lines, x, [...new Set(steps)].sort((a, b) => a - b));
  return el("figure", { class: "chart" }, el("figcaption", { title: panel.about }, el("b", {}, panel.title), ` ${panel.unit}`), drawing, seen.beyond && !log && !panel.share ? el("p", { class: "beyond" }, `Not all seen: ${seen.beyond}.`) : null, output);
}

/** A line at one step that the pointer or the arrow keys move, and below the chart what the runs have there. */
function readable(drawing, output, lines, x, steps) {
  const cursor = svg("line", { class: "cursor", y1: CHART.top, y2: CHART.height - CHART.bottom, visibility: "hidden" });
  drawing.append(cursor);
  let at = steps.length - 1;
  function show(i) {
    at = Math.max(0, Math.min(steps.length - 1, i));
    const place = x.place(steps[at]);
    fill(cursor, { x1: place, x2: place, visibility: "visible" }, []);
    const said = new Map();
    for (const line of lines) {
      const value = line.mean[line.step.indexOf(steps[at])];
      if (value !== null && value !== undefined) said.set(line.label, [...(said.get(line.label) || []), [line, value]]);
    }
    const mean = (pairs) => pairs.reduce((sum, [, value]) => sum + value, 0) / pairs.length;
    output.replaceChildren(`step ${steps[at]}: `, ...[...said].map(([label, pairs]) => el("span", {}, el("b", { class: `c${pairs[0][0].colour}` }, label), ` ${number(mean(pairs))}  `)));
  }
  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    const place = (event.clientX - box.left) / box.width * CHART.width;
    const distance = steps.map((step) => Math.abs(x.place(step) - place));
    show(distance.indexOf(Math.min(...distance)));
  });
  drawing.addEventListener("focus", () => show(at));
  for (const leave of ["blur", "pointerleave"]) drawing.addEventListener(leave, () => { cursor.setAttribute("visibility", "hidden"); output.replaceChildren(); });
  drawing.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: steps.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    show(to);
  });
}

function dynamics(host) {
  const models = [...new Set(DATA.runs.map((run) => run.model))];
  const hidden = new Set();
  let model = models[0];
  const keys = el("fieldset", { class: "keys" }), grid = el("div", { class: "charts" });

  function lines(key) {
    return DATA.runs.flatMap((run, i) => {
      const found = DATA.series.runs[i].values[key];
      if (run.model !== model || hidden.has(run.title) || !found || !found.mean.some((value) => value !== null)) return [];
      return [{ ...found, run: i, label: run.title, colour: run.colour }];
    });
  }
  function falls(shown, key) {
    return shown.flatMap((line) => DATA.series.runs[line.run].falls.filter((fall) => fall.sign === key).map((fall) => {
      const near = line.step.findIndex((step) => step >= fall.step);
      return { step: line.step[near], value: line.mean[near], text: `${line.label}: ${fall.text}` };
    }).filter((fall) => fall.value !== null && fall.value !== undefined));
  }
  function draw() {
    grid.replaceChildren(...DATA.series.panels.flatMap((panel) => {
      const shown = lines(panel.key);
      return shown.length ? [chart(panel, shown, falls(shown, panel.key), DATA.series.seen[model][panel.key][shown.length <= FEW ? "raw" : "mean"])] : [];
    }));
    if (!grid.children.length) grid.append(el("p", { class: "none" }, "No step is recorded, or no method is chosen."));
  }
  function legend() {
    const titles = [...new Map(DATA.runs.filter((run) => run.model === model).map((run) => [run.title, run.colour]))];
    keys.replaceChildren(el("legend", { class: "only-read" }, "Methods shown"), ...titles.map(([title, colour]) => {
      const box = el("input", { type: "checkbox" });
      box.checked = !hidden.has(title);
      box.addEventListener("change", () => { if (box.checked) hidden.delete(title); else hidden.add(title); draw(); });
      const sample = svg("svg", { width: 34, height: 8, class: `c${colour}`, "aria-hidden": "true" }, svg("line", { x1: 1, x2: 33, y1: 4, y2: 4 }));
      return el("label", {}, box, sample, title);
    }));
  }
  if (models.length > 1) host.append(el("div", { class: "bar" }, choice("Model", models.map((name) => [name, name]), (name) => { model = name; legend(); draw(); })[0]));
  host.append(keys, grid);
  legend();
  draw();
}

dynamics(document.getElementById("charts"));
