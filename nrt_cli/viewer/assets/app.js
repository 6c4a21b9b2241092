/** The viewer: which screen the address names, in a frame with the others' links. */

const SCREENS = { runs: [Runs, "Runs"], list: [List, "Traces"], group: [Group, "Question"], curves: [Curves, "Curves"], compare: [Compare, "Two runs"], evals: [Evals, "Evaluations"] };

function App({ source, note }) {
  const { screen, given } = useAddress(), [state, setState] = useState({}), [lost, setLost] = useState(false), [tick, setTick] = useState(0);
  const name = screen in SCREENS ? screen : "runs", [Screen, title] = SCREENS[name];
  useEffect(() => source.follow((now) => { setState(now); setTick((tick) => tick + 1); }, setLost), [source]);
  const names = Object.keys(state.runs ?? {}), run = given.getAll("run");
  useEffect(() => { document.title = `${title}${run.length ? ` of ${run.join(", ").slice(0, 100)}` : ""} · nrt view`; }, [title, run.join()]);
  const first = useRef(true);
  useEffect(() => { if (first.current) first.current = false; else scrollTo(0, 0); }, [name]);
  useEffect(() => document.querySelector("nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" }), [name]);
  const links = Object.entries(SCREENS).map(([key, [, text]]) => html`<li><a href=${key === "runs" ? "#/runs" : address(key, { run: ["list", "group"].includes(key) ? run[0] : run })} aria-current=${key === name ? "page" : null}>${text}</a></li>`);
  return html`<header class="top"><span class="brand">nrt <span>view</span></span><${Theme} /></header>
    <nav aria-label="Screens"><ol>${links}</ol></nav>
    <main id="main" tabindex="-1">${lost ? html`<p class="reason" role="alert">The viewer has ended or cannot be reached; what is shown is what was last read.</p>` : null}${note ? html`<p class="reason">${visible(note)}</p>` : null}
    <${Screen} key=${name} source=${source} given=${given} tick=${tick} runs=${names.map((run) => ({ run }))} /></main>`;
}
