// The table of instances: only the rows in sight are in the page, so that thousands of them stay quick.

const ROW = 34;
const PRINTED = 500;
const order = new Intl.Collator("en", { numeric: true, sensitivity: "base" }).compare;

const radiusText = (row) =>
  [row.radius_lower, row.radius_upper]
    .filter((r) => r !== null)
    .map((r) => number(r, 3))
    .join(" – ");
function thereText(row) {
  const mark = el(
    "span",
    { class: `badge bare ${row.there}`, "aria-label": row.there },
    el("span", { class: "mark" }, MARKS[row.there] || "·"),
  );
  return row.there ? el("span", {}, seconds(row.there_s), " ", mark) : "";
}

function columnsOf() {
  const other = others[0];
  const found = [
    {
      key: "name",
      title: "Instance",
      width: 30,
      text: (row) => el("button", { class: "link", type: "button", title: row.name, onclick: () => openDetail(row) }, row.name),
    },
    { key: "family", title: "Family", width: 12, text: (row) => row.family },
    { key: "network", title: "Network", width: 17, text: (row) => file(row.network), hint: (row) => row.network },
    { key: "verdict", title: "Verdict", fixed: 126, text: (row) => badge(row.verdict) },
    {
      key: "expected",
      title: "Expected",
      fixed: 86,
      text: (row) => (row.wrong ? el("strong", { class: "wrong" }, row.expected) : row.expected),
    },
    { key: "decided_by", title: "By", fixed: 70, text: (row) => row.decided_by },
    { key: "bound", title: "Bound", fixed: 86, number: true, text: (row) => number(row.bound) },
    { key: "radius_lower", title: "Radius", fixed: 132, number: true, text: radiusText },
    { key: "seconds", title: "Seconds", fixed: 80, number: true, text: (row) => seconds(row.seconds) },
    { key: "peak_mb", title: "MB", fixed: 60, number: true, text: (row) => whole(row.peak_mb) },
    { key: "note", title: "Note", width: 14, text: (row) => row.note },
  ]
    .filter(
      (column) => column.key !== "network" || !rows.every((row) => row.name.includes(file(row.network).replace(/\.onnx(\.gz)?$/, ""))),
    )
    .filter((column) => has(column.key) && (column.key !== "family" || (payload.families || []).length > 1));
  if (others.length === 1) {
    const at = found.findIndex((column) => column.key === "seconds") + 1;
    found.splice(at, 0, {
      key: "there_s",
      title: "There",
      fixed: 92,
      number: true,
      hint: (row) => row.there && `${other.label}: ${row.there}`,
      text: thereText,
    });
    rows.forEach((row) => {
      row.there = other.verdicts[row.i] || "";
      row.there_s = other.seconds[row.i];
    });
  }
  return found;
}

const view = { sort: "i", down: false, words: [], verdicts: new Set(), only: null, shown: [] };

function matching() {
  const wanted = rows.filter(
    (row) => inFamily(row) && view.words.every((word) => wordsOf(row).includes(word)) && (view.only !== "wrong" || row.wrong),
  );
  const passing = wanted.filter((row) => !view.verdicts.size || view.verdicts.has(row.verdict));
  const sign = view.down ? -1 : 1,
    key = view.sort;
  // Empty cells come last, whichever way the rest is sorted.
  const nothing = (value) => value === null || value === undefined || value === "";
  passing.sort((a, b) => {
    const [u, v] = [a[key], b[key]];
    if (nothing(u) || nothing(v)) return nothing(u) - nothing(v) || a.i - b.i;
    return (typeof u === "number" ? u - v : order(u, v)) * sign || a.i - b.i;
  });
  return { wanted, passing };
}

function instances() {
  const columns = columnsOf(),
    body = el("tbody", {}),
    head = el("tr", {}),
    chips = el("div", { class: "chips" }),
    told = el("p", { class: "told", role: "status" });
  const search = el("input", {
    type: "search",
    id: "search",
    placeholder: "Search names, networks, reasons …",
    "aria-label": "Search instances",
    autocomplete: "off",
    spellcheck: "false",
  });
  const fixed = columns.reduce((sum, column) => sum + (column.fixed || 0), 0),
    shares = columns.reduce((sum, column) => sum + (column.fixed ? 0 : column.width), 0);
  const cols = columns.map(() => el("col", {}));
  const table = el("table", { class: "rows", "aria-label": "Instances" }, el("colgroup", {}, cols), el("thead", {}, head), body);
  const box = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Instances, scrollable" }, table);

  function spread() {
    // Columns without a fixed width share what is left; below 8 units a share the table scrolls sideways.
    const share = Math.max(8, (box.clientWidth - fixed) / shares);
    cols.forEach((col, k) => col.style.setProperty("width", `${columns[k].fixed || columns[k].width * share}px`));
    table.style.setProperty("min-width", `${fixed + shares * share}px`);
  }
  const line = (row, k) =>
    el(
      "tr",
      { "aria-rowindex": k + 2, class: row.wrong ? "is-wrong" : null },
      columns.map((column) => {
        const content = column.text(row);
        return el(
          "td",
          {
            class: column.number ? "number" : column.key === "note" ? "loose" : null,
            title: column.hint ? column.hint(row) : typeof content === "string" ? content || null : null,
          },
          content,
        );
      }),
    );
  const gap = (height) =>
    el("tr", { class: "gap", "aria-hidden": "true" }, el("td", { colspan: columns.length, style: { height: `${height}px` } }));
  let first = -1,
    last = -1;
  function paint(force) {
    const total = view.shown.length,
      start = Math.max(0, Math.floor(box.scrollTop / ROW) - 12);
    const stop = Math.min(total, Math.ceil((box.scrollTop + box.clientHeight) / ROW) + 12);
    if (!force && start === first && stop === last) return;
    [first, last] = [start, stop];
    const slice = view.shown.slice(start, stop).map((row, k) => line(row, start + k));
    body.replaceChildren(...(start ? [gap(start * ROW)] : []), ...slice, ...(stop < total ? [gap((total - stop) * ROW)] : []));
    if (!total)
      body.append(
        el(
          "tr",
          {},
          el(
            "td",
            { colspan: columns.length, class: "nothing" },
            "No instance matches. ",
            el("button", { class: "link", type: "button", onclick: clear }, "Clear the filters"),
          ),
        ),
      );
  }
  function clear() {
    Object.assign(view, { words: [], only: null });
    view.verdicts.clear();
    search.value = "";
    if (chosen.family !== null) pick(null);
    else refresh();
  }
  function chip(name, amount, on, toggle) {
    return el(
      "button",
      {
        type: "button",
        class: `chip ${name}`,
        "aria-pressed": String(on),
        "data-verdict": name,
        onclick: () => {
          toggle();
          refresh();
        },
      },
      el("span", { class: "mark", "aria-hidden": "true" }, MARKS[name] || "≠"),
      name,
      el("b", {}, amount.toLocaleString("en-US")),
    );
  }
  function heads() {
    head.replaceChildren(
      ...columns.map((column) => {
        const sorted = view.sort === column.key;
        const press = () => {
          Object.assign(view, sorted ? { down: !view.down } : { sort: column.key, down: Boolean(column.number) });
          refresh();
          head.querySelector(`[data-key="${column.key}"] button`).focus();
        };
        return el(
          "th",
          {
            scope: "col",
            "data-key": column.key,
            class: column.number ? "number" : null,
            "aria-sort": sorted ? (view.down ? "descending" : "ascending") : "none",
          },
          el(
            "button",
            { type: "button", onclick: press },
            column.title,
            el("span", { class: "arrow", "aria-hidden": "true" }, sorted ? (view.down ? "▾" : "▴") : ""),
          ),
        );
      }),
    );
  }
  function refresh() {
    const { wanted, passing } = matching();
    view.shown = passing;
    const amounts = VERDICTS.map((verdict) => [verdict, wanted.filter((row) => row.verdict === verdict).length]);
    const toggle = (verdict) => () => (view.verdicts.has(verdict) ? view.verdicts.delete(verdict) : view.verdicts.add(verdict));
    chips.replaceChildren(
      ...amounts
        .filter(([verdict, n]) => n || view.verdicts.has(verdict))
        .map(([verdict, n]) => chip(verdict, n, view.verdicts.has(verdict), toggle(verdict))),
      ...(payload.summary.wrong
        ? [
            chip("wrong", wanted.filter((row) => row.wrong).length, view.only === "wrong", () => {
              view.only = view.only ? null : "wrong";
            }),
          ]
        : []),
    );
    const spent = passing.reduce((sum, row) => sum + row.seconds, 0);
    told.textContent =
      `${passing.length.toLocaleString("en-US")} of ${count(rows.length, "instance")}` +
      (passing.length ? `, ${duration(spent)} in all` : "");
    table.setAttribute("aria-rowcount", passing.length + 1);
    box.scrollTop = 0;
    heads();
    paint(true);
  }

  search.addEventListener("input", () => {
    view.words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    refresh();
  });
  box.addEventListener("scroll", () => paint(false), { passive: true });
  new ResizeObserver(() => {
    spread();
    paint(false);
  }).observe(box);
  addEventListener("beforeprint", () => {
    const printed = view.shown.slice(0, PRINTED);
    // Plain text: a browser repeats the head on every printed page, but not the buttons in it.
    head.replaceChildren(...columns.map((column) => el("th", { scope: "col", class: column.number ? "number" : null }, column.title)));
    body.replaceChildren(...printed.map(line));
    if (printed.length < view.shown.length)
      body.append(
        el(
          "tr",
          {},
          el(
            "td",
            { colspan: columns.length, class: "nothing" },
            `${view.shown.length - PRINTED} more rows are not printed; filter before printing, or export them with --csv.`,
          ),
        ),
      );
  });
  addEventListener("afterprint", () => {
    heads();
    paint(true);
  });
  chosen.listeners.push(refresh);
  const part = section("instances", "Instances", null, el("div", { class: "tools" }, search, chips), told, box);
  // The height of the box is known once it is part of the page.
  requestAnimationFrame(() => {
    spread();
    paint(true);
  });
  refresh();
  return part;
}
