/** Light or dark, which settings are shown, and where the reader is. */
function themes(button) {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const remember = (value) => { try { localStorage.setItem("nrt-theme", value); } catch { /* pages from disk may have no storage */ } };
  const remembered = () => { try { return localStorage.getItem("nrt-theme"); } catch { return null; } };
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const tell = () => { button.setAttribute("aria-pressed", String(dark())); };
  const chosen = remembered();
  if (chosen === "dark" || chosen === "light") root.dataset.theme = chosen;
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; remember(root.dataset.theme); tell(); });
  system.addEventListener("change", tell);
  button.hidden = false;
  tell();
}

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

themes(document.getElementById("theme"));
narrowing(document.getElementById("only-differing"));
whereabouts();
