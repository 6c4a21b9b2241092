const offline = typeof HELD !== "undefined";
const note = offline && HELD.shown < HELD.stored ? `This folder holds ${HELD.shown.toLocaleString("en")} of ${HELD.stored.toLocaleString("en")} traces: the first groups of some steps of each run, not chosen by what they say.` : "";
render(html`<${App} source=${offline ? held(HELD) : SERVER} note=${note} />`, document.getElementById("app"));
