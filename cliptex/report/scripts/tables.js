// Tables: sorting by column, and copying as LaTeX, Markdown or CSV what is shown. Without this script they are complete.
"use strict";
{
  const rowsOf = (body) => [...body.rows].filter((row) => !row.querySelector(".group"));
  const flat = (text) => text.replace(/[\u00a0\s]+/g, " ").trim();

  // ---- sorting: over all groups; the third click restores them

  const valueOf = (row, column) => {
    const cell = row.cells[column];
    if ("value" in cell.dataset) return Number(cell.dataset.value);
    const text = flat(cell.textContent);
    return text === "–" || text === "" ? null : text;
  };
  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });

  const unsorted = (table) => {
    table.querySelector("tbody.sorted")?.remove();
    table.querySelectorAll("small.of").forEach((label) => label.remove());
    for (const { body, rows } of table.groups) {
      body.append(...rows);
      body.hidden = false;
    }
  };
  const sort = (table, column, order) => {
    unsorted(table);
    [...table.tHead.rows[0].cells].forEach((head, index) => {
      head.setAttribute("aria-sort", order && index === column ? order : "none");
    });
    table.order = order && [column, order];
    if (!order) return;
    const rows = table.groups.flatMap((group) => group.rows);
    for (const { title, rows: own } of table.groups) {
      for (const row of title ? own : []) {
        const label = document.createElement("small");
        label.className = "of";
        label.textContent = title;
        row.cells[0].append(label);
      }
    }
    const sign = order === "ascending" ? 1 : -1;
    const values = new Map(rows.map((row) => [row, valueOf(row, column)]));
    rows.sort((a, b) => {
      const [one, other] = [values.get(a), values.get(b)];
      if (one === null || other === null) return (one === null) - (other === null);
      return sign * compare(one, other);
    });
    const body = document.createElement("tbody");
    body.className = "sorted";
    body.append(...rows);
    table.groups.forEach((group) => { group.body.hidden = true; });
    table.append(body);
  };
  const makeSortable = (table) => {
    table.groups = [...table.tBodies].map((body) => ({
      body,
      title: flat(body.querySelector(".group")?.firstChild.textContent ?? ""),
      rows: rowsOf(body),
    }));
    table.allRows = table.groups.flatMap((group) => group.rows);
    table.sortAgain = () => table.order && sort(table, ...table.order);
    if (table.allRows.length < 2) return;
    table.classList.add("sortable");
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      const orders = head.classList.contains("number") ? ["descending", "ascending"] : ["ascending", "descending"];
      button.addEventListener("click", () => {
        const next = { [orders[0]]: orders[1], [orders[1]]: null, none: orders[0] };
        sort(table, column, next[head.getAttribute("aria-sort")]);
      });
    });
  };

  // ---- copying

  // a cell as its main text, spread over seeds, interval and notes
  const parts = (cell) => {
    const small = (kind) => [...cell.querySelectorAll(`small${kind}`)].map((one) => flat(one.textContent));
    return {
      text: flat([...cell.childNodes].filter((node) => node.nodeName !== "SMALL").map((node) => node.textContent).join("")),
      value: cell.dataset.value,
      best: Boolean(cell.querySelector("strong")),
      spread: small(".spread").join(" "),
      more: small(":not(.spread)"),
    };
  };
  const shownCells = (row) => [...row.cells].filter((cell) => !cell.hidden);
  const read = (table) => ({
    caption: flat(table.caption.textContent),
    columns: shownCells(table.tHead.rows[0]).map((head) => ({
      text: flat(head.textContent), numeric: head.classList.contains("number"),
    })),
    groups: [...table.tBodies].filter((body) => !body.hidden).map((body) => ({
      title: flat(body.querySelector(".group")?.textContent ?? ""),
      rows: rowsOf(body).filter((row) => !row.hidden).map((row) => shownCells(row).map(parts)),
    })).filter((group) => group.rows.length),
  });

  const SYMBOLS = {
    "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "±": "$\\pm$", "−": "$-$", "×": "$\\times$",
    "↑": "$\\uparrow$", "↓": "$\\downarrow$", "→": "$\\to$", "≥": "$\\geq$", "≤": "$\\leq$", "√": "$\\surd$", "Σ": "$\\Sigma$",
    "δ": "$\\delta$", "°": "$^\\circ$", "²": "$^2$", "▲": "$\\blacktriangle$", "△": "$\\vartriangle$", "▼": "$\\blacktriangledown$",
    "▽": "$\\triangledown$", "†": "\\dag{}", "‡": "\\ddag{}", "–": "--", "—": "---", "“": "``", "”": "''", "’": "'", "\u202f": "\\,",
    "<": "$<$", ">": "$>$", "|": "$|$",
  };
  const tex = (text) => text.replace(/[&%$#_{}]/g, "\\$&").replace(/\\(?![&%$#_{}])|[~^<>|]|[^\x00-\x7f]/g, (one) => SYMBOLS[one] ?? one);
  const number = /^[+−]?[\d.]+$/;
  const texCell = ({ text, best, spread, more }) => {
    let main = tex(text);
    if (number.test(text)) {
      const digits = text.replace("−", "-");
      const below = spread.replace("±", "").trim();
      main = `$${best ? `\\mathbf{${digits}}` : digits}${below ? `_{\\pm ${below}}` : ""}$`;
    } else {
      if (best) main = `\\textbf{${main}}`;
      if (spread) main += ` ${tex(spread)}`;
    }
    return more.length ? `${main} {\\scriptsize ${tex(more.join("; "))}}` : main;
  };
  const latex = ({ caption, columns, groups }) => {
    const titled = groups.some((group) => group.title);
    const lines = groups.flatMap((group, index) => [
      ...(titled && index ? ["\\midrule"] : []),
      ...(group.title ? [`\\multicolumn{${columns.length}}{l}{\\textit{${tex(group.title)}}} \\\\`] : []),
      ...group.rows.map((row) => `${row.map(texCell).join(" & ")} \\\\`),
    ]);
    return [
      "% \\usepackage{booktabs,amssymb}",
      "\\begin{table}", "\\centering", `\\caption{${tex(caption)}}`,
      `\\begin{tabular}{${columns.map((column) => (column.numeric ? "r" : "l")).join("")}}`,
      "\\toprule", `${columns.map((column) => tex(column.text)).join(" & ")} \\\\`, "\\midrule", ...lines, "\\bottomrule",
      "\\end{tabular}", "\\end{table}", "",
    ].join("\n");
  };

  const plain = (text) => text.replace(/[\\|*`<>[\]#~&$]|(?<![\p{L}\p{N}])_|_(?![\p{L}\p{N}])/gu, "\\$&");
  const markdown = ({ caption, columns, groups }) => {
    const line = (cells) => `| ${cells.join(" | ")} |`;
    const cell = ({ text, best, spread, more }) => [
      best ? `**${plain(text)}**` : plain(text), ...[spread, ...more].filter(Boolean).map((one) => `(${plain(one)})`),
    ].join(" ");
    return [
      `**${plain(caption)}**`, "", line(columns.map((column) => plain(column.text))),
      line(columns.map((column) => (column.numeric ? "---:" : "---"))),
      ...groups.flatMap((group) => [
        ...(group.title ? [line([`**${plain(group.title)}**`, ...columns.slice(1).map(() => "")])] : []),
        ...group.rows.map((row) => line(row.map(cell))),
      ]), "",
    ].join("\n");
  };

  // a text that a spreadsheet would take for a formula gets an apostrophe
  const quoted = (text) => {
    const safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
    return /[",\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  const csv = ({ columns, groups }) => {
    const titled = groups.some((group) => group.title);
    const head = [...(titled ? ["group"] : []), ...columns.map((column) => column.text)];
    const lines = groups.flatMap((group) => group.rows.map((row) => [
      ...(titled ? [quoted(group.title)] : []),
      ...row.map(({ text, value, more }) => value ?? quoted(text === "–" ? "" : [text, ...more].join(" "))),
    ]));
    return `${[head.map(quoted), ...lines].map((line) => line.join(",")).join("\n")}\n`;
  };

  // pages opened from disk have no clipboard in some browsers, and the older command needs a selection
  const copy = async (text, place) => {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      const area = document.createElement("textarea");
      area.value = text;
      area.setAttribute("aria-label", "The table as text");
      place.append(area);
      area.select();
      const copied = document.execCommand("copy");
      if (copied) area.remove();
      return copied;
    }
  };
  const addButtons = (table) => {
    const bar = table.closest(".scroll").nextElementSibling;
    const status = document.createElement("span");
    status.setAttribute("role", "status");
    for (const [name, format] of Object.entries({ LaTeX: latex, Markdown: markdown, CSV: csv })) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = name;
      button.setAttribute("aria-label", `Copy “${flat(table.caption.textContent)}” as ${name}`);
      button.addEventListener("click", async () => {
        bar.querySelector("textarea")?.remove();
        const copied = await copy(format(read(table)), bar);
        status.textContent = copied ? `Copied as ${name}` : `Not copied: this browser does not allow it. Select the text and copy it`;
        if (copied) button.focus();
      });
      bar.append(button);
    }
    bar.append(status);
    bar.classList.add("filled");
  };

  for (const table of document.querySelectorAll(".scroll > table")) {
    makeSortable(table);
    addButtons(table);
  }
}
