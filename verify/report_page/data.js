// The embedded data as row objects, number formats, and elements made without parsing any markup.

const payload = JSON.parse(document.getElementById("data").textContent);
const VERDICTS = ["verified", "falsified", "unknown", "error", "measured"];
const MARKS = { verified: "✓", falsified: "✕", unknown: "?", error: "!", measured: "↔" };
const EXPECTED = { unsat: "verified", sat: "falsified" };
const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") Object.entries(value).forEach(([key, text]) => node.style.setProperty(key, text));
    else node.setAttribute(name, value === true ? "" : value);
  }
  // Strings become text nodes: nothing from the data is ever read as markup.
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}
const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

function decoded(columns) {
  if (!columns) return [];
  const texts = (name, i) => columns[name].texts[columns[name].codes[i]];
  const value = (name, i) => (columns[name] ? columns[name][i] : null);
  const wrong = new Set(columns.wrong || []);
  return columns.verdict.codes.map((_, i) => {
    const row = { i, wrong: wrong.has(i) };
    for (const name of [
      "family",
      "name",
      "network",
      "spec",
      "verdict",
      "reason",
      "expected",
      "proof",
      "semantics",
      "decided_by",
      "detail",
      "finished",
    ])
      row[name] = texts(name, i);
    for (const name of ["bound", "radius_lower", "radius_upper", "seconds", "wall_s", "cpu_s", "peak_mb", "limit_s", "stages"])
      row[name] = value(name, i);
    for (const name of ["rounded", "question", "attempts"]) row[name] = columns[name][i];
    row.expected = EXPECTED[row.expected] || "";
    row.solved = row.verdict === "verified" || row.verdict === "falsified";
    row.note = row.reason || row.detail;
    return row;
  });
}

// What a search looks at; put together when it is first asked for.
const wordsOf = (row) =>
  (row.words ??= [row.name, row.family, row.network, row.spec, row.verdict, row.decided_by, row.note, row.proof].join("\n").toLowerCase());

const rows = decoded(payload.columns);
const others = (payload.others || []).map((other) => ({
  ...other,
  verdicts: other.verdict.codes.map((code) => other.verdict.texts[code]),
}));
const has = (name) => rows.some((row) => row[name] !== null && row[name] !== undefined && row[name] !== "");

// What everything on the page shows: one family or all of them.
const chosen = { family: null, listeners: [] };
function choose(family) {
  chosen.family = family;
  chosen.listeners.forEach((listener) => listener());
}
const inFamily = (row) => chosen.family === null || row.family === chosen.family;

function seconds(value) {
  if (value === null || value === undefined) return "";
  if (value >= 1000) return Math.round(value).toLocaleString("en-US");
  return value.toFixed(value < 1 ? 3 : value < 10 ? 2 : value < 100 ? 1 : 0);
}
function number(value, digits = 4) {
  if (value === null || value === undefined) return "";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(digits - 2);
  return String(Number(value.toPrecision(digits)));
}
const whole = (value) => (value === null || value === undefined ? "" : Math.round(value).toLocaleString("en-US"));
const count = (value, one, many) => `${value.toLocaleString("en-US")} ${value === 1 ? one : many || one + "s"}`;
const file = (path) => path.split(/[\\/]/).pop();
const moment = (text) => (text ? text.slice(0, 16).replace("T", " ") + " UTC" : "");
function duration(value) {
  if (value < 120) return seconds(value) + " s";
  return value < 7200 ? `${(value / 60).toFixed(1)} min` : `${(value / 3600).toFixed(1)} h`;
}
const badge = (verdict) =>
  el("span", { class: `badge ${verdict}` }, el("span", { class: "mark", "aria-hidden": "true" }, MARKS[verdict] || "·"), verdict);
