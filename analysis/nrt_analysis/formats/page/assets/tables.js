/** Tables sort within their sections: numbers from the largest, text from a, then the other way, then as they were. */
function sortable(table) {
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  const bodies = [...table.tBodies].map((body) => ({
    body,
    rows: [...body.rows].filter((row) => !row.classList.contains("section")),
  }));
  const value = (row, column) => {
    const cell = row.cells[column];
    if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
    return cell.querySelector(".empty") ? null : cell.textContent.trim();
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));

  function sort(column, order) {
    const sign = order === "descending" ? -1 : 1;
    for (const { body, rows } of bodies) {
      const sorted = order === "none" ? rows : [...rows].sort((one, other) => {
        const [a, b] = [value(one, column), value(other, column)];
        if (a === null || b === null) return (a === null) - (b === null); // what was not measured stays last
        return sign * compare(a, b);
      });
      body.append(...sorted);
    }
    heads.forEach((head, i) => head.setAttribute("aria-sort", i === column ? order : "none"));
  }

  heads.forEach((head, column) => {
    const turns = head.classList.contains("number") ? ["descending", "ascending", "none"] : ["ascending", "descending", "none"];
    head.querySelector("button").addEventListener("click", () => {
      sort(column, turns[(turns.indexOf(head.getAttribute("aria-sort")) + 1) % 3]);
    });
  });
}

document.querySelectorAll("table.sortable").forEach(sortable);
