"use strict";

// Tables: a click on a heading sorts by its column, numbers as numbers, cells without a value last.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      headings.forEach((other) => other.setAttribute("aria-sort", "none"));
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      sortRows(table.tBodies[0], column, down ? -1 : 1);
    });
  });
}

function sortRows(body, column, sign) {
  const rows = [...body.rows].map((row) => {
    const cell = row.cells[column];
    return { row, number: parseFloat(cell.dataset.value), text: cell.textContent, none: cell.classList.contains("none") };
  });
  rows.sort((a, b) => {
    if (a.none || b.none) return a.none - b.none;
    const numbers = Number.isNaN(a.number) ? 0 : 1, others = Number.isNaN(b.number) ? 0 : 1;
    if (numbers !== others) return others - numbers;
    return sign * (numbers ? a.number - b.number : a.text.localeCompare(b.text, undefined, { numeric: true }));
  });
  body.append(...rows.map((entry) => entry.row));
}
