/** One question at a time, and what each method made of it. */
function side(said) {
  const run = DATA.runs[said.run];
  const parts = [el("h4", {}, run.title, said.score === null || said.score === undefined ? "" : el("span", { class: `tag ${said.score >= 1 ? "right" : said.score <= 0 ? "wrong" : ""}` }, said.score >= 1 ? "right" : said.score <= 0 ? "wrong" : `score ${number(said.score)}`))];
  if (said.before !== null && said.before !== undefined) parts.push(el("h5", {}, "trace before training"), words(said.before));
  if (said.trace !== null && said.trace !== undefined) parts.push(el("h5", {}, (said.step === undefined ? "trace" : `trace after step ${said.step}`) + (said.stop === "cap" ? ", cut at the cap" : "")), words(said.trace));
  if (said.answer !== undefined) parts.push(el("h5", {}, "answer"), words(said.answer));
  if (said.extracted) parts.push(el("h5", {}, "read as"), words(said.extracted));
  return el("section", { class: `side ${method(said.run)}`, "aria-label": run.title }, ...parts);
}

function compare(host) {
  const all = DATA.cases;
  if (!all.length) {
    host.append(el("p", { class: "reason" }, "The runs share no stored question: train with --validation, or run nrt eval."));
    return;
  }
  const card = el("article", { class: "case", "aria-live": "polite" });
  const back = el("button", { type: "button" }, "Previous"), on = el("button", { type: "button" }, "Next");
  let at = 0;
  function show(i) {
    at = (i + all.length) % all.length;
    const one = all[at];
    const models = new Set(all.map((other) => other.model));
    card.replaceChildren(
      el("div", { class: "turn" }, back, el("h3", {}, ...visible(`${models.size > 1 ? one.model + ", " : ""}${one.name}`), el("span", { class: "unit" }, `  ${at + 1} of ${all.length}`)), on),
      el("h4", {}, "Question"), words(one.question), el("h4", {}, "Reference answer"), words(one.reference),
      el("div", { class: "sides" }, ...one.said.map(side)));
    select.value = String(at);
  }
  back.addEventListener("click", () => { show(at - 1); back.focus(); });
  on.addEventListener("click", () => { show(at + 1); on.focus(); });
  const [label, select] = choice("Question", all.map((one, i) => [String(i), `${one.name}: ${one.question.slice(0, 60).replace(/\s+/g, " ")}`]), (value) => show(Number(value)));
  host.append(el("div", { class: "bar" }, label), card);
  show(0);
}

compare(document.getElementById("compare"));
