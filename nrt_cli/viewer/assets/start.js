render(html`<${App} source=${SERVER} />`, document.getElementById("app"));
