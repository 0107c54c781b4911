// The choice of compared models, columns and families of evaluators. All numbers are in the page; this only selects.
"use strict";
for (const form of document.querySelectorAll("form.choices")) {
  const tables = [...document.querySelectorAll(".scroll > table")];
  const charts = [...document.querySelectorAll("figure.chart[data-dark]")];
  const heads = (table) => [...table.tHead.rows[0].cells];

  // ---- pairs: a table's templates hold the cells of other pairs, in the order of its rows
  const cellsOf = (table, columns) => table.allRows.map((row) => columns.map((column) => row.cells[column]));
  const paired = tables.filter((table) => table.parentElement.querySelector(":scope > template")).map((table) => {
    const columns = heads(table).flatMap((head, index) => ("pair" in head.dataset ? [index] : []));
    const notes = table.groups.map(({ body }) => body.querySelector(".group span"));
    const pairs = new Map([[`${form.dataset.subject} ${form.dataset.reference}`, {
      headings: columns.map((column) => heads(table)[column].innerText), cells: cellsOf(table, columns),
      notes: notes.map((note) => note?.textContent),
    }]]);
    for (const template of table.parentElement.querySelectorAll(":scope > template")) {
      const [head, ...rows] = template.content.querySelectorAll("tr");
      pairs.set(`${template.dataset.subject} ${template.dataset.reference}`, {
        headings: [...head.cells].map((cell) => cell.textContent), cells: rows.map((row) => [...row.cells]),
        notes: JSON.parse(template.dataset.notes ?? "[]"),
      });
    }
    return { table, columns, notes, pairs };
  });
  const compare = () => {
    const [subject, reference] = [form.elements.subject.value, form.elements.reference.value];
    for (const option of form.elements.subject) option.disabled = option.value === reference;
    for (const option of form.elements.reference) option.disabled = option.value === subject;
    for (const { table, columns, notes, pairs } of paired) {
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
      chosen.notes.forEach((text, group) => { if (notes[group]) notes[group].textContent = text; });
      table.sortAgain();
    }
    charts.forEach((figure) => figure.showPair(subject, reference));
  };

  // ---- columns of models, rows of families
  const boxes = (name) => [...form.elements].filter((box) => box.name === name);
  const checked = (name) => new Set(boxes(name).filter((box) => box.checked).map((box) => box.value));
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
    charts.forEach((figure) => figure.noteThatAllAreShown(boxes("family").some((box) => !box.checked)));
  };

  // ---- the address: after "?", what differs from the defaults, so that it can be sent, reloaded and returned to
  let read = "";
  const remember = () => {
    const address = new URL(location.href);
    const choices = address.searchParams;
    for (const name of ["subject", "reference"]) {
      choices.delete(name);
      if (form.elements[name].value !== form.dataset[name]) choices.set(name, form.elements[name].value);
    }
    for (const name of ["model", "family"]) {
      choices.delete(`hidden_${name}`);
      for (const box of boxes(name)) if (!box.checked) choices.append(`hidden_${name}`, box.value);
    }
    read = address.search;
    if (read !== location.search) history.pushState(null, "", address);
  };
  const show = () => {
    compare();
    showColumns();
    showFamilies();
  };
  // a model or family that is not on this page is ignored
  const goToAddress = () => {
    read = location.search;
    const choices = new URLSearchParams(read);
    const known = (name) => [...form.elements[name].options].some((option) => option.value === choices.get(name));
    const [subject, reference] = ["subject", "reference"].map((name) => (known(name) ? choices.get(name) : form.dataset[name]));
    const differ = subject !== reference;
    form.elements.subject.value = differ ? subject : form.dataset.subject;
    form.elements.reference.value = differ ? reference : form.dataset.reference;
    for (const name of ["model", "family"]) {
      const hidden = choices.getAll(`hidden_${name}`);
      for (const box of boxes(name)) box.checked = !hidden.includes(box.value);
    }
    show();
  };
  form.addEventListener("change", () => { show(); remember(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => { show(); remember(); }));
  window.addEventListener("popstate", () => { if (location.search !== read) goToAddress(); });
  form.hidden = false;
  goToAddress();
}
