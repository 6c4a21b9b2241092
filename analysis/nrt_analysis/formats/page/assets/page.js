/** Which settings are shown, and where the reader is; charts, traces and cases in their places. */
const DATA = JSON.parse(document.getElementById("data").textContent);

function narrowing(box) {
  const table = document.getElementById("configs");
  const apply = () => table.classList.toggle("narrow", box.checked);
  // With one method nothing differs: then all is shown, and there is nothing to choose.
  if (!table.querySelector(".differs")) return;
  box.parentElement.hidden = false;
  box.addEventListener("change", apply);
  apply();
}

function whereabouts() {
  const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
  const inView = new Set();
  const watch = new IntersectionObserver((seen) => {
    for (const { target, isIntersecting } of seen) if (isIntersecting) inView.add(target.id); else inView.delete(target.id);
    const current = [...links.keys()].find((id) => inView.has(id));
    for (const [id, link] of links) if (id === current) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current");
  }, { rootMargin: "-25% 0px -60% 0px" });
  document.querySelectorAll("main > section").forEach((section) => watch.observe(section));
}

function Dynamics() {
  const models = [...new Set(DATA.runs.map((run) => run.model))], [model, choose] = useState(models[0]);
  const runs = DATA.runs.map((run, i) => ({ ...run, ...DATA.series.runs[i], label: run.title })).filter((run) => run.model === model);
  return html`${models.length > 1 && html`<div class="bar"><${Choice} label="Model" value=${model} change=${choose} options=${models.map((name) => [name, name])} /></div>`}
    <${Charts} key=${model} panels=${DATA.series.panels} runs=${runs} seen=${DATA.series.seen[model]} />`;
}

function Browser() {
  const groups = DATA.traces.groups, names = [...new Set(groups.map((group) => group.run))], source = useMemo(() => held({ groups }), []);
  if (!groups.length) return html`<p class="reason">No traces of training steps are stored: SFT samples none, and train.trace_groups says how many a step keeps.</p>`;
  return html`<${Traces} source=${source} runs=${names.map((run) => ({ run }))} start=${names.includes(DATA.traces.start) ? DATA.traces.start : names[0]} />`;
}

for (const [id, Part] of [["colours", Theme], ["charts", Dynamics], ["browser", Browser], ["compare", Cases]]) render(html`<${Part} />`, document.getElementById(id));
narrowing(document.getElementById("only-differing"));
whereabouts();
