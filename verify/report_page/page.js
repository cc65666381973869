// The page from top to bottom, the details of one instance, and the theme.

function section(id, title, about, ...children) {
  return el(
    "section",
    { id, "aria-labelledby": `${id}-title` },
    el("h2", { id: `${id}-title` }, title),
    about && el("p", { class: "about" }, about),
    children,
  );
}
function notice(kind, text, list = []) {
  const links = list
    .slice(0, 12)
    .flatMap((row, k) => [k ? ", " : "", el("button", { class: "link", type: "button", onclick: () => openDetail(row) }, row.name)]);
  return el(
    "p",
    { class: `notice ${kind}`, role: kind === "bad" ? "alert" : null },
    text,
    links,
    list.length > 12 ? ` and ${list.length - 12} more` : null,
  );
}

const options = (found) =>
  Object.entries(found.options)
    .filter(([, value]) => value !== null)
    .map(([name, value]) => `${name} ${typeof value === "object" ? JSON.stringify(value) : value}`)
    .join(" · ");

// A list of instances is named after its folder.
const suiteName = (suite) => file(suite.replace(/[\\/]?instances\.csv$/, "")) || suite;

function heading() {
  const main = payload.main,
    run = main.runs.at(-1);
  const suites = [...new Set(main.runs.map((r) => suiteName(r.suite)))].join(", ");
  const machine = run
    ? Object.entries(run.machine)
        .filter(([name]) => ["host", "processor", "cores"].includes(name))
        .map(([name, value]) => (name === "cores" ? count(value, "core") : value))
        .join(", ")
    : "";
  const facts = [
    ["tool", `${main.tool} ${main.version}` + (run && run.revision ? ` (${run.revision.slice(0, 9)})` : "")],
    ["options", options(main)],
    ["machine", machine + (run ? `, ${count(run.workers, "worker")}` + (run.engine === "ray" ? " of a Ray cluster" : "") : "")],
    ["finished", moment(main.latest) + (main.runs.length > 1 ? ` after ${main.runs.length} starts` : "")],
    ["file", `${payload.file}, configuration ${main.number}`],
  ].filter(([, value]) => value);
  const apart = payload.apart.map((a) => `${a.label}, ${count(a.rows, "instance")} (--configuration ${a.number})`).join("; ");
  const state =
    !run || run.status === "finished"
      ? null
      : {
          interrupted: "The sweep was interrupted: these are the results until then.",
          failed: "The sweep failed before its end: these are the results until then.",
        }[run.status] || "The sweep was still running when this page was made, or was killed: these are the results until then.";
  return el(
    "header",
    {},
    el("p", { class: "eyebrow" }, "Report"),
    el("h1", {}, suites || payload.file),
    el(
      "dl",
      { class: "origin" },
      facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
    ),
    state && notice("", state),
    apart && el("p", { class: "small" }, `The file also holds other instances, which have reports of their own: ${apart}.`),
  );
}

function stacked(figures, label) {
  return el(
    "span",
    { class: "stack", role: "img", "aria-label": label },
    VERDICTS.filter((v) => figures[v]).map((v) => el("i", { class: v, title: `${figures[v]} ${v}`, style: { "flex-grow": figures[v] } })),
  );
}

function headline() {
  const total = payload.summary,
    questions = total.instances - total.measured,
    solved = total.verified + total.falsified;
  const what = questions
    ? [el("b", {}, solved.toLocaleString("en-US")), ` of ${questions.toLocaleString("en-US")} solved`]
    : [el("b", {}, total.measured.toLocaleString("en-US")), " radii measured"];
  const keys = VERDICTS.filter((v) => total[v]).map((v) => el("li", { class: v }, badge(v), el("b", {}, total[v].toLocaleString("en-US"))));
  const extra = [
    `${duration(total.total_s)} in all`,
    `median ${seconds(total.median_s)} s`,
    `longest ${duration(total.max_s)}`,
    total.peak_mb && `peak memory ${whole(total.peak_mb)} MB`,
    total.solver_proofs && `${total.solver_proofs} of the proofs rest on a solver's tolerances`,
  ].filter(Boolean);
  const check = total.wrong
    ? notice(
        "bad",
        `${count(total.wrong, "verdict contradicts", "verdicts contradict")} the expected one: `,
        rows.filter((row) => row.wrong),
      )
    : total.expected
      ? notice("good", `No verdict contradicts the ${count(total.expected, "expected one", "expected ones")}.`)
      : null;
  return el(
    "div",
    { class: "headline" },
    el("p", { class: "figure" }, what),
    el("div", { class: "headline-bar" }, stacked(total, "Verdicts"), el("ul", { class: "keys" }, keys)),
    el("p", { class: "small" }, extra.join(" · ")),
    check,
    payload.main.older
      ? el(
          "p",
          { class: "small" },
          `${count(payload.main.older, "older answer")} under another time limit ${payload.main.older === 1 ? "is" : "are"} left out.`,
        )
      : null,
  );
}

function familyTable() {
  const list = payload.families,
    total = payload.summary;
  const columns = [
    ["verified", "verified"],
    ["falsified", "falsified"],
    ["unknown", "unknown"],
    ["error", "error"],
    ["measured", "measured"],
    ["wrong", "wrong"],
  ].filter(([key]) => key === "verified" || key === "falsified" || key === "unknown" || total[key]);
  const line = (figures, name) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, name),
      el("td", { class: "wide-bar" }, stacked(figures, "Verdicts")),
      el("td", {}, whole(figures.instances)),
      columns.map(([key]) => el("td", { class: figures[key] ? (key === "wrong" ? "wrong" : "") : "zero" }, whole(figures[key]))),
      el("td", {}, seconds(figures.median_s)),
      el("td", {}, seconds(figures.max_s)),
      el("td", {}, whole(figures.peak_mb)),
    );
  const head = ["family", "", "instances", ...columns.map(([, title]) => title), "median s", "longest s", "peak MB"];
  const body = list.map((f) =>
    line(
      f,
      list.length < 2
        ? f.family || "(none)"
        : el("button", { class: "link", type: "button", onclick: () => pick(f.family) }, f.family || "(none)"),
    ),
  );
  return el(
    "div",
    { class: "sideways" },
    el(
      "table",
      { class: "families" },
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          head.map((title) => el("th", { scope: "col" }, title)),
        ),
      ),
      el("tbody", {}, body),
      list.length > 1 ? el("tfoot", {}, line(total, "all")) : null,
    ),
  );
}

function plots() {
  const solvable = rows.some((row) => row.verdict !== "measured");
  const curve =
    solvable &&
    panel("Cactus plot", "How many instances are solved within how many seconds each. Further right and lower is better.", cactus);
  const smaller = [
    solvable && panel("What decided", "The stage that gave the verdict.", decided),
    has("stages") && panel("Where the time went", "Seconds of all instances, unsolved ones included.", stages),
  ].filter(Boolean);
  const figures = others.length
    ? [el("div", { class: "column" }, curve, smaller), comparison()]
    : [curve, el("div", { class: "column" }, smaller)];
  const beyond = payload.left_out
    ? el(
        "p",
        { class: "small" },
        `${count(payload.left_out, "older configuration")} of the file ${payload.left_out === 1 ? "is" : "are"} not drawn.`,
      )
    : null;
  return section("plots", "Plots", null, el("div", { class: "panels" }, figures), beyond);
}

function radii() {
  const norms = [...new Set(rows.filter((row) => row.radius_lower !== null).map(normOf))].sort();
  if (!norms.length) return null;
  return section(
    "radii",
    "Radii",
    "How far inputs may move while the class stays proven, and the nearest adversary that an attack found.",
    el(
      "div",
      { class: "panels" },
      norms.map((norm) =>
        panel(norm === "?" ? "Norm not told" : `l-${norm}`, null, () => histogram(norm, norms.length === 1), norms.length === 1),
      ),
    ),
  );
}

function openDetail(row) {
  const dialog = document.getElementById("detail"),
    question = row.question || {};
  const there = others
    .filter((other) => other.verdicts[row.i])
    .map((other) => [other.label, el("span", {}, badge(other.verdicts[row.i]), ` ${seconds(other.seconds[row.i])} s`)]);
  const stage =
    row.stages &&
    ["load", "attack", "bounds", "mixed-integer"]
      .map((name, k) => (row.stages[k] ? `${name} ${seconds(row.stages[k])}` : null))
      .filter(Boolean)
      .join(", ");
  const facts = [
    [
      "verdict",
      el(
        "span",
        {},
        badge(row.verdict),
        row.wrong
          ? el("strong", { class: "wrong" }, ` expected ${row.expected}`)
          : row.expected
            ? row.solved
              ? " as expected"
              : ` expected ${row.expected}`
            : null,
      ),
    ],
    ["reason", row.reason],
    [
      "decided by",
      [row.decided_by, row.proof && `${row.proof} proof`, row.semantics && `${row.semantics} semantics`].filter(Boolean).join(", "),
    ],
    ["detail", row.detail],
    ["lower bound", number(row.bound, 5)],
    ["certified radius", number(row.radius_lower, 5)],
    ["nearest adversary", number(row.radius_upper, 5)],
    ["seconds", seconds(row.seconds) + (stage ? ` (${stage})` : "")],
    ["CPU seconds", seconds(row.cpu_s)],
    ["time limit", row.limit_s === null ? "" : `${row.limit_s} s`],
    ["peak memory", row.peak_mb === null ? "" : `${whole(row.peak_mb)} MB`],
    ["network", row.network],
    ["question", row.spec],
    [
      "asked",
      Object.entries(question)
        .map(([name, value]) => `${name} ${value}`)
        .join(", "),
    ],
    ["inputs rounded", row.rounded ? String(row.rounded) : ""],
    ["attempts", row.attempts ? String(row.attempts) : ""],
    ["finished", moment(row.finished)],
    ...there,
  ].filter(([, value]) => value);
  const witness = witnessOf(row),
    map = mapOf(row);
  dialog.replaceChildren(
    el(
      "div",
      { class: "detail-head" },
      el("div", {}, el("p", { class: "eyebrow" }, row.family), el("h2", { id: "detail-name" }, row.name)),
      el("button", { type: "button", "aria-label": "Close", onclick: () => dialog.close() }, "Close"),
    ),
    el(
      "dl",
      { class: "detail" },
      facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
    ),
    ...[
      witness ? witnessBody(witness) : null,
      map
        ? el(
            "div",
            { class: "witness" },
            el("h3", {}, "Bounding map"),
            picture(map.map, map.size, `radii ${number(map.range[0], 3)} to ${number(map.range[1], 3)}`),
          )
        : null,
    ].filter(Boolean),
  );
  dialog.showModal();
}

function pick(family) {
  document.getElementById("family").value = family === null ? "" : String(payload.families.findIndex((f) => f.family === family));
  choose(family);
}

function familyPicker() {
  if (payload.families.length < 2) return;
  const picker = document.getElementById("family");
  picker.append(el("option", { value: "" }, "all"), ...payload.families.map((f, k) => el("option", { value: k }, f.family || "(none)")));
  picker.addEventListener("change", () => choose(picker.value === "" ? null : payload.families[Number(picker.value)].family));
  document.getElementById("family-label").hidden = false;
}

function themes() {
  const button = document.getElementById("theme"),
    dark = matchMedia("(prefers-color-scheme: dark)"),
    root = document.documentElement;
  let stored = null;
  try {
    stored = localStorage.getItem("ringfence-theme");
  } catch {
    /* pages from a file may have no storage */
  }
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const name = () => {
    button.textContent = isDark() ? "Light theme" : "Dark theme";
  };
  if (stored === "dark" || stored === "light") root.dataset.theme = stored;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try {
      localStorage.setItem("ringfence-theme", root.dataset.theme);
    } catch {
      /* as above */
    }
    name();
  });
  dark.addEventListener("change", name);
  name();
}

function build() {
  const main = document.getElementById("main");
  themes();
  if (!payload.main) {
    main.append(
      el("header", {}, el("p", { class: "eyebrow" }, "Report"), el("h1", {}, payload.file)),
      notice("", "This file holds no results yet. Start a sweep with ringfence bench, then write the report again."),
    );
    return;
  }
  familyPicker();
  const parts = [
    section("summary", "Summary", null, headline(), familyTable()),
    plots(),
    radii(),
    counterexamples(),
    boundingMaps(),
    instances(),
  ].filter(Boolean);
  main.append(
    heading(),
    ...parts,
    el("footer", {}, `Written ${payload.made} from ${payload.file}. ringfence report exports all figures with --csv and --json.`),
  );
  document.getElementById("links").append(...parts.map((part) => el("a", { href: `#${part.id}` }, part.querySelector("h2").textContent)));
}
build();
