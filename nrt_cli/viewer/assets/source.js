/** Where screens come from: the server, or what a file holds. Both answer `query` and `search` alike. */
const SERVER = {
  async query(path) {
    const reply = await fetch(`api${path}`);
    const found = await reply.json();
    if (!reply.ok) throw new Error(found.error);
    return found;
  },
  /** Lines as they are found; `more` is called with some at a time. */
  async search(given, more, signal) {
    const reply = await fetch(`api/search?${given}`, { signal });
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      const found = lines.map((line) => JSON.parse(line));
      const fault = found.find((one) => one.error);
      if (fault) throw new Error(fault.error);
      if (found.length) more(found);
    }
  },
  /** Call `changed` whenever a run has more, and `lost` with whether the server is gone. */
  follow(changed, lost) {
    const events = new EventSource("events");
    events.onmessage = (event) => { lost(false); changed(JSON.parse(event.data)); };
    events.onerror = () => lost(true);
    return () => events.close();
  },
};

/** Lines of a list, as the server makes them, of groups that are held. */
function linesOf(groups) {
  const said = (text) => text.split(/\s+/).join(" ").trim().slice(0, 200);
  return groups.flatMap((group) => group.traces.map((trace) => {
    const text = (trace.tokens ?? []).join(""), answer = group.answer.join("");
    const whole = answer.replace(/<\|[^|<>\s]{1,40}\|>|<\/?(?:s|eos)>/g, " ").trim();
    const leaked = whole && trace.tokens ? Number(text.includes(whole) && !group.question.includes(whole)) : null;
    const { run, kind, step, example, question } = group;
    return {
      ...trace, run, kind, step, example, leaked, said: said(text), question: said(question), baseline: trace.reward_base,
      forced: trace.stop ? Number(trace.stop !== "end") : null, dead: measured(trace.dead) ? Number(trace.dead) : null,
      clipped: measured(trace.clipped) ? Number(trace.clipped) : null, text: `${question}\n${text}\n${answer}`.toLowerCase(),
    };
  }));
}

/** Answers from what is held: `groups` of traces, and `answers` by address. */
function held({ groups, answers = {} }) {
  const lines = linesOf(groups);
  const passes = (line, given) => [...given].every(([name, value]) => {
    if (name === "sort" || name === "at") return true;
    if (name === "run" || name === "kind") return line[name] === value;
    if (name === "text") return line.text.includes(value.toLowerCase());
    const [low, high = value.includes("..") ? "" : low] = value.split(".."), number = line[name];
    return measured(number) && number >= (low === "" ? -Infinity : Number(low)) && number <= (high === "" ? Infinity : Number(high));
  });
  const chosen = (given) => ordered(lines.filter((line) => passes(line, given)), given.get("sort") ?? "-step");
  const near = (values, value) => values.reduce((best, one) => (Math.abs(one - value) < Math.abs(best - value) ? one : best));
  function group(given) {
    const whole = (name) => (given.get(name) === null ? null : Number(given.get(name)));
    const mine = groups.filter((one) => one.run === (given.get("run") ?? groups[0]?.run) && one.kind === (given.get("kind") ?? one.kind));
    const first = mine.find((one) => one.kind === "held-out" && given.get("kind") === null) ?? mine[0];
    const asked = mine.filter((one) => one.kind === first.kind && one.example === (whole("example") ?? first.example));
    if (!asked.length) throw new Error("This question is not in the file.");
    const steps = asked.map((one) => one.step), step = near(steps, whole("step") ?? steps.at(-1));
    const examples = mine.filter((one) => one.step === step && one.kind === first.kind).map((one) => one.example);
    return { ...asked.find((one) => one.step === step), steps, examples };
  }
  return {
    async query(path) {
      const [screen, rest = ""] = path.split("?"), given = new URLSearchParams(rest);
      if (screen === "/list") {
        const found = chosen(given), at = Number(given.get("at") ?? 0);
        return { stored: lines.length, left: 0, found: found.length, at, traces: found.slice(at, at + PAGE), whole: true };
      }
      if (screen === "/group") return group(given);
      if (screen === "/compare") {
        const pair = answers["/compare"]?.find((one) => one.runs.join("\n") === (given.getAll("run").join("\n") || one.runs.join("\n")));
        if (!pair) throw new Error("The file does not compare these two; nrt view does.");
        const held = pair.examples.filter((example) => pair.runs.every((run) => groups.some((one) => one.run === run && one.example === example && one.kind !== "step")));
        const step = near(pair.steps, Number(given.get("step") ?? pair.steps.at(-1))), example = Number(given.get("example") ?? held[0]);
        const sides = pair.runs.map((run) => group(new URLSearchParams({ run, step, example, kind: groups.find((one) => one.run === run && one.kind !== "step").kind })));
        return { ...pair, examples: held, step, example, sides };
      }
      const benchmark = screen === "/evals" && answers[screen]?.benchmarks[given.get("benchmark")];
      if (benchmark) {
        const only = given.get("only"), documents = benchmark.documents.filter((one) => !only || one.fate === only);
        return { ...benchmark, documents, found: documents.length, document: benchmark.details[given.get("document") ?? documents[0]?.document] };
      }
      const found = answers[screen];
      if (!found) throw new Error("This is not in the file; nrt view shows it.");
      return found;
    },
    async search(given, more) { more(chosen(new URLSearchParams(given)).slice(0, 1000)); },
    follow: (changed) => { changed({ runs: Object.fromEntries(groups.map((group) => [group.run, 0])), left: 0 }); return () => {}; },
  };
}
