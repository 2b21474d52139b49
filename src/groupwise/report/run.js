"use strict";
for (const figure of document.querySelectorAll("figure")) {
  const output = figure.querySelector("output");
  if (!output) continue;
  const tell = (event) => {
    const at = event.target.closest("[data-say]");
    output.textContent = at ? at.dataset.say : "\u00a0";
  };
  figure.addEventListener("pointerover", tell);
  figure.addEventListener("click", tell);
  // What the script says the browser need not say again, over what is pointed at.
  for (const title of figure.querySelectorAll("title")) title.remove();
}
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  for (const button of table.tHead.querySelectorAll("button")) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const rises = head.getAttribute("aria-sort") !== "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", rises ? "ascending" : "descending");
      const value = (row) => row.cells[head.cellIndex].dataset.value;
      const compare = (first, second) => {
        const difference = Number(value(first)) - Number(value(second));
        return Number.isNaN(difference) ? value(first).localeCompare(value(second)) : difference;
      };
      const rows = [...body.rows].sort((first, second) => (rises ? 1 : -1) * compare(first, second));
      body.append(...rows);
    });
  }
}
