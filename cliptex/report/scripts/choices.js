// The choice of compared models, columns and families of evaluators. All numbers are in the page; this only selects.
"use strict";
for (const form of document.querySelectorAll("form.choices")) {
  const tables = [...document.querySelectorAll(".scroll > table")];
  const heads = (table) => [...table.tHead.rows[0].cells];

  // ---- pairs: a table's templates hold the cells of other pairs, in the order of its rows
  const cellsOf = (table, columns) => table.allRows.map((row) => columns.map((column) => row.cells[column]));
  const paired = tables.filter((table) => table.parentElement.querySelector(":scope > template")).map((table) => {
    const columns = heads(table).flatMap((head, index) => ("pair" in head.dataset ? [index] : []));
    const pairs = new Map([[`${form.dataset.subject} ${form.dataset.reference}`, {
      headings: columns.map((column) => heads(table)[column].innerText), cells: cellsOf(table, columns),
    }]]);
    for (const template of table.parentElement.querySelectorAll(":scope > template")) {
      const [head, ...rows] = template.content.querySelectorAll("tr");
      pairs.set(`${template.dataset.subject} ${template.dataset.reference}`, {
        headings: [...head.cells].map((cell) => cell.textContent), cells: rows.map((row) => [...row.cells]),
      });
    }
    return { table, columns, pairs };
  });
  const compare = () => {
    const [subject, reference] = [form.elements.subject.value, form.elements.reference.value];
    for (const option of form.elements.subject) option.disabled = option.value === reference;
    for (const option of form.elements.reference) option.disabled = option.value === subject;
    for (const { table, columns, pairs } of paired) {
      const chosen = pairs.get(`${subject} ${reference}`);
      columns.forEach((column, place) => {
        const head = heads(table)[column];
        (head.querySelector("button") ?? head).textContent = chosen.headings[place];
        table.allRows.forEach((row, index) => {
          const cell = chosen.cells[index][place];
          cell.hidden = head.hidden;
          row.cells[column].replaceWith(cell);
        });
      });
      table.sortAgain();
    }
  };

  // ---- columns of models, rows of families
  const checked = (name) => new Set([...form.elements].filter((one) => one.name === name && one.checked).map((one) => one.value));
  const showColumns = () => {
    const shown = checked("model");
    for (const table of tables) {
      heads(table).forEach((head, column) => {
        if (!("model" in head.dataset)) return;
        head.hidden = !shown.has(head.dataset.model);
        table.allRows.forEach((row) => { row.cells[column].hidden = head.hidden; });
      });
    }
  };
  const showFamilies = () => {
    if (!form.elements.family) return; // there is only one
    const shown = checked("family");
    for (const table of tables) {
      for (const { body, rows } of table.groups) {
        rows.forEach((row) => { row.hidden = "family" in row.dataset && !shown.has(row.dataset.family); });
        const title = body.querySelector(".group")?.parentElement;
        if (title) title.hidden = rows.every((row) => row.hidden);
      }
    }
  };
  form.addEventListener("change", (event) => {
    if (event.target.name === "model") showColumns();
    else if (event.target.name === "family") showFamilies();
    else compare();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => { compare(); showColumns(); showFamilies(); }));
  form.reset();
  form.hidden = false;
  compare();
}
