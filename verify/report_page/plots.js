// The charts of this report.

const solvedIn = (list) => list.filter((s) => s !== null).sort((a, b) => a - b);

function cactusLines(shown) {
  const own = (verdicts) => solvedIn(shown.filter((row) => verdicts.includes(row.verdict)).map((row) => row.seconds));
  if (!others.length)
    return [
      { name: "solved", style: "both", times: own(["verified", "falsified"]) },
      { name: "verified", style: "verified", times: own(["verified"]) },
      { name: "falsified", style: "falsified", times: own(["falsified"]) },
    ];
  const theirs = others.map((other, k) => ({
    name: other.label,
    style: `c${k + 1}`,
    times: solvedIn(shown.map((row) => (["verified", "falsified"].includes(other.verdicts[row.i]) ? other.seconds[row.i] : null))),
  }));
  return [{ name: payload.main.label, style: "c0", times: own(["verified", "falsified"]) }, ...theirs];
}

function thinned(points) {
  // Points that would fall on the one before are left out of the line: dashes along thousands of points are slow to paint.
  let last = points[0];
  return points.filter((p, k) => {
    const kept = k === 0 || k === points.length - 1 || Math.abs(p.x - last.x) >= 0.5 || Math.abs(p.y - last.y) >= 0.5;
    if (kept) last = p;
    return kept;
  });
}

function cactus() {
  const shown = rows.filter((row) => inFamily(row) && row.verdict !== "measured");
  const lines = cactusLines(shown),
    all = lines.flatMap((line) => line.times);
  if (!all.length) return empty("Nothing is solved here yet, so there is no curve.");
  const size = { ...BASE, height: others.length ? 330 : 360 },
    most = Math.max(shown.length, 1);
  const x = linear(0, most, size.left, size.width - size.right);
  x.ticks = x.ticks.filter(Number.isInteger);
  const lowest = all.reduce((a, b) => Math.min(a, b)),
    highest = all.reduce((a, b) => Math.max(a, b));
  const y = logarithmic(Math.max(lowest, 1e-3), Math.max(highest, 1e-2), size.height - size.bottom, size.top);
  const chart = frame(size, x, y, { x: "instances solved", y: "seconds for each", label: "Cactus plot" });
  const points = [];
  for (const line of lines) {
    const at = line.times.map((t, k) => ({ x: x.at(k + 1), y: y.at(t), name: line.name, k: k + 1, t }));
    if (!at.length) continue;
    chart.append(
      svg("path", {
        class: `line ${line.style}`,
        d:
          "M" +
          thinned(at)
            .map((p) => `${p.x.toFixed(1)} ${p.y.toFixed(1)}`)
            .join("L"),
      }),
    );
    chart.append(svg("circle", { class: `end ${line.style}`, cx: at.at(-1).x, cy: at.at(-1).y, r: 3.5 }));
    points.push(...at);
  }
  const keys = lines.map((line) => ({ line: line.style, text: `${line.name}: ${line.times.length}` }));
  return [legend(keys), hints(chart, points, (p) => [p.name, `${p.k} solved within ${seconds(p.t)} s each`])];
}

function scatterPoints(other, shown, x, y, edge) {
  const isSolved = (verdict) => verdict === "verified" || verdict === "falsified";
  return shown.map((row) => {
    const there = isSolved(other.verdicts[row.i]);
    const kind = row.solved ? row.verdict : there ? other.verdicts[row.i] : "unknown";
    return {
      row,
      kind,
      x: there ? x.at(Math.max(other.seconds[row.i], x.low)) : edge.x,
      y: row.solved ? y.at(Math.max(row.seconds, y.low)) : edge.y,
      clash: there && row.solved && other.verdicts[row.i] !== row.verdict,
    };
  });
}

function scatter(other) {
  const shown = rows.filter((row) => inFamily(row) && row.verdict !== "measured" && other.verdicts[row.i]);
  if (!shown.length) return empty(`No instance here was asked of ${other.label} too.`);
  const there = (row) => row.solved || ["verified", "falsified"].includes(other.verdicts[row.i]);
  const times = shown
    .filter(there)
    .flatMap((row) => [row.seconds, other.seconds[row.i]])
    .filter((t) => t > 0);
  const size = { ...BASE, height: 430, top: 30, right: 34 };
  const span = [
    Math.max(
      times.reduce((a, b) => Math.min(a, b), Infinity),
      1e-3,
    ),
    times.reduce((a, b) => Math.max(a, b), 1e-2),
  ];
  const right = size.width - size.right,
    bottom = size.height - size.bottom;
  const x = logarithmic(...span, size.left, right - 20),
    y = logarithmic(...span, bottom, size.top + 20);
  const edge = { x: right - 2, y: size.top + 2 };
  const chart = frame(size, x, y, {
    x: `seconds, ${other.label}`,
    y: `seconds, ${payload.main.label}`,
    label: "Scatter plot of seconds",
    columns: true,
  });
  const guide = (factor, style) => {
    const low = Math.max(x.low, y.low / factor),
      high = Math.min(x.high, y.high / factor);
    if (low < high)
      chart.append(svg("path", { class: style, d: `M${x.at(low)} ${y.at(low * factor)}L${x.at(high)} ${y.at(high * factor)}` }));
  };
  guide(1, "guide main");
  guide(10, "guide");
  guide(0.1, "guide");
  chart.append(
    svg("path", { class: "guide", d: `M${right - 12} ${size.top - 6}V${bottom}M${size.left} ${size.top + 12}H${right + 6}` }),
    svg("text", { class: "note", x: size.left + 6, y: size.top - 8 }, "not solved here ↓"),
    svg(
      "text",
      {
        class: "note",
        x: 0,
        y: 0,
        "text-anchor": "end",
        transform: `translate(${right + 16} ${bottom - 6}) rotate(90)`,
        style: { "text-anchor": "end" },
      },
      "not solved there",
    ),
  );
  const points = scatterPoints(other, shown, x, y, edge);
  for (const kind of ["unknown", "verified", "falsified"])
    chart.append(
      marks(
        points.filter((p) => p.kind === kind),
        kind,
      ),
    );
  const clashes = points.filter((p) => p.clash);
  for (const p of clashes) chart.append(svg("circle", { class: "clash", cx: p.x, cy: p.y, r: 8 }));
  const keys = ["verified", "falsified", "unknown"].map((kind) => ({ mark: kind, text: kind === "unknown" ? "neither solved it" : kind }));
  const lines = (p) => [
    p.row.name,
    `here: ${p.row.verdict}, ${seconds(p.row.seconds)} s`,
    `there: ${other.verdicts[p.row.i]}, ${seconds(other.seconds[p.row.i])} s`,
  ];
  return [legend(keys), hints(chart, points, lines, openDetail), versus(other, shown, clashes)];
}

function versus(other, shown, clashes) {
  const theirs = (row) => ["verified", "falsified"].includes(other.verdicts[row.i]);
  const both = shown.filter((row) => row.solved && theirs(row));
  const faster = both.filter((row) => row.seconds < other.seconds[row.i]).length;
  const ratios = both
    .map((row) => row.seconds / other.seconds[row.i])
    .filter(Number.isFinite)
    .sort((a, b) => a - b);
  const middle = ratios.length ? (ratios[Math.floor((ratios.length - 1) / 2)] + ratios[Math.floor(ratios.length / 2)]) / 2 : null;
  const facts = [
    ["solved by both", both.length],
    ["faster here", faster],
    ["faster there", both.filter((row) => row.seconds > other.seconds[row.i]).length],
    ["solved only here", shown.filter((row) => row.solved && !theirs(row)).length],
    ["solved only there", shown.filter((row) => !row.solved && theirs(row)).length],
    ["median of the ratios here / there", middle === null ? "–" : number(middle, 3)],
  ];
  const list = el(
    "dl",
    { class: "facts" },
    facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, String(value)))),
  );
  const limits = other.other_limits
    ? el("p", { class: "small" }, `${count(other.other_limits, "pair")} had different time limits: their seconds compare badly.`)
    : null;
  const alarm = clashes.length
    ? notice(
        "bad",
        `${count(clashes.length, "instance")} verified by one and falsified by the other: `,
        clashes.map((p) => p.row),
      )
    : null;
  return el("div", {}, alarm, list, limits);
}

function comparison() {
  const picker = el(
    "select",
    { "aria-label": "Compared with" },
    others.map((other, k) => el("option", { value: k }, other.label)),
  );
  const body = el("div", {});
  const draw = () => body.replaceChildren(...[scatter(others[Number(picker.value)])].flat().filter(Boolean));
  picker.addEventListener("change", draw);
  chosen.listeners.push(draw);
  draw();
  const against = others.length > 1 ? el("label", {}, "against ", picker) : el("span", {}, `against ${others[0].label}`);
  return el(
    "figure",
    { class: "panel" },
    el(
      "figcaption",
      {},
      el("h3", {}, "Time against time"),
      el("p", {}, "Every mark is an instance, ", against, ". Below the diagonal it was faster here; dashed: ten times."),
    ),
    body,
  );
}

function bars(entries, unit) {
  const most = Math.max(...entries.map((entry) => entry.parts.reduce((sum, part) => sum + part.value, 0)), 1e-12);
  return el(
    "div",
    { class: "bars" },
    entries.map((entry) =>
      el(
        "div",
        { class: "bar-row" },
        el("span", { class: "bar-name", title: entry.name }, entry.name),
        el(
          "span",
          { class: "bar-track" },
          entry.parts.map((part) => el("i", { class: part.kind, title: part.title, style: { width: `${(100 * part.value) / most}%` } })),
        ),
        el("span", { class: "bar-value" }, unit(entry)),
      ),
    ),
  );
}

function decided() {
  const shown = rows.filter((row) => inFamily(row) && row.solved),
    groups = new Map();
  for (const row of shown) {
    const by = row.decided_by || "not told";
    if (!groups.has(by)) groups.set(by, { name: by, verified: 0, falsified: 0 });
    groups.get(by)[row.verdict] += 1;
  }
  if (!groups.size) return empty("Nothing is solved here yet.");
  const entries = [...groups.values()]
    .sort((a, b) => b.verified + b.falsified - a.verified - a.falsified)
    .slice(0, 8)
    .map((g) => ({
      ...g,
      parts: ["verified", "falsified"].map((kind) => ({ kind, value: g[kind], title: `${g.name}: ${g[kind]} ${kind}` })),
    }));
  return [
    legend([
      { bar: "verified", text: "verified" },
      { bar: "falsified", text: "falsified" },
    ]),
    bars(entries, (e) => String(e.verified + e.falsified)),
  ];
}

function stages() {
  const shown = rows.filter((row) => inFamily(row) && row.stages),
    names = ["loading", "attack", "bounds", "mixed-integer"];
  const sums = names.map((_, k) => shown.reduce((sum, row) => sum + (row.stages[k] || 0), 0));
  const all = rows.filter(inFamily).reduce((sum, row) => sum + row.seconds, 0),
    rest = all - sums.reduce((a, b) => a + b, 0);
  if (all <= 0) return empty("No seconds were recorded.");
  const entries = [...names.map((name, k) => ({ name, value: sums[k] })), { name: "not told", value: rest }].filter(
    (e) => e.value > 0.0005 * all,
  );
  return bars(
    entries.map((e) => ({ ...e, parts: [{ kind: "plain", value: e.value, title: `${e.name}: ${duration(e.value)}` }] })),
    (e) => `${duration(e.value)} · ${Math.round((100 * e.value) / all)} %`,
  );
}

function histogram(norm, wide) {
  const shown = rows.filter((row) => inFamily(row) && row.radius_lower !== null && normOf(row) === norm);
  if (!shown.length) return empty("No radius here.");
  const lower = shown.map((row) => row.radius_lower),
    upper = shown.map((row) => row.radius_upper).filter((r) => r !== null);
  const most = [...lower, ...upper].reduce((a, b) => Math.max(a, b), 1e-9),
    ticks = steps(0, most, 8);
  const end = ticks.at(-1) >= most ? ticks.at(-1) : ticks.at(-1) + ticks[1],
    bins = 4 * Math.round(end / ticks[1]);
  const counted = (list) =>
    list.reduce((into, r) => {
      into[Math.min(bins - 1, Math.floor((r / end) * bins))] += 1;
      return into;
    }, Array(bins).fill(0));
  const low = counted(lower),
    high = counted(upper);
  const size = { ...BASE, width: wide ? 1144 : BASE.width, height: 280 },
    x = linear(0, end, size.left, size.width - size.right);
  const y = linear(0, Math.max(...low, ...high, 1) * 1.15, size.height - size.bottom, size.top);
  y.ticks = y.ticks.filter(Number.isInteger);
  const chart = frame(size, x, y, { x: `radius, l-${norm}`, y: "instances", label: `Histogram of radii, l-${norm}` });
  const edge = (k) => x.at((k * end) / bins),
    floor = y.at(0);
  low.forEach((n, k) => {
    if (n)
      chart.append(
        svg(
          "rect",
          { class: "radius", x: edge(k) + 0.75, width: edge(k + 1) - edge(k) - 1.5, y: y.at(n), height: floor - y.at(n) },
          svg("title", {}, `${n} certified between ${number((k * end) / bins, 3)} and ${number(((k + 1) * end) / bins, 3)}`),
        ),
      );
  });
  if (upper.length)
    chart.append(
      svg("path", {
        class: "outline",
        d: `M${edge(0)} ${floor}` + high.map((n, k) => `V${y.at(n)}H${edge(k + 1)}`).join("") + `V${floor}`,
      }),
    );
  const mean = lower.reduce((a, b) => a + b, 0) / lower.length;
  chart.append(
    svg("path", { class: "guide main", d: `M${x.at(mean)} ${size.top}V${floor}` }),
    svg("text", { class: "note", x: x.at(mean) + 5, y: size.top + 10 }, `mean ${number(mean, 3)}`),
  );
  const keys = [{ bar: "radius", text: `certified: ${lower.length}` }];
  if (upper.length)
    keys.push({
      line: "outline",
      text: `nearest adversary found: ${upper.length}, mean ${number(upper.reduce((a, b) => a + b, 0) / upper.length, 3)}`,
    });
  return [legend(keys), chart];
}
const normOf = (row) => (row.question && row.question.norm !== undefined ? String(row.question.norm) : "?");
