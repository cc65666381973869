// What every chart is drawn with: scales, axes, marks, legends and the hint under the pointer.

const BASE = { width: 560, height: 320, left: 56, right: 18, top: 12, bottom: 46 };

function steps(low, high, most = 6) {
  // Round ticks (1, 2 or 5 times a power of ten) between low and high.
  const rough = (high - low || 1) / most,
    power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) ticks.push(Number((k * step).toPrecision(12)));
  return ticks;
}

function linear(low, high, from, to) {
  const at = (v) => from + ((v - low) / (high - low || 1)) * (to - from);
  return { at, ticks: steps(low, high), low, high };
}

function logarithmic(low, high, from, to) {
  // The ends are moved outward to the next 1, 2 or 5 times a power of ten.
  const near = (v, up) => {
    const power = 10 ** Math.floor(Math.log10(v)),
      m = v / power;
    return power * (up ? [1, 2, 5, 10].find((s) => s >= m * 0.999999) : [5, 2, 1].find((s) => s <= m * 1.000001));
  };
  low = near(low, false);
  high = near(Math.max(high, low * 1.01), true);
  if (high / low < 9) high = low * 10;
  const decades = Math.log10(high / low),
    fine = decades <= 2.5 ? [1, 2, 5] : [1];
  const ticks = [];
  for (let d = Math.floor(Math.log10(low)); d <= Math.ceil(Math.log10(high)); d++)
    for (const m of fine) {
      const v = Number((m * 10 ** d).toPrecision(3));
      if (v >= low * 0.999 && v <= high * 1.001 && (decades < 8 || d % 2 === 0)) ticks.push(v);
    }
  const at = (v) => from + (Math.log(Math.max(v, low) / low) / Math.log(high / low)) * (to - from);
  return { at, ticks, low, high };
}

function frame(size, x, y, names) {
  // Grid, tick labels and axis titles; marks are added to what it returns.
  const right = size.width - size.right,
    bottom = size.height - size.bottom;
  const grid = svg("g", { class: "grid" }),
    labels = svg("g", { class: "ticks" });
  for (const tick of y.ticks) {
    const at = y.at(tick);
    grid.append(svg("line", { x1: size.left, x2: right, y1: at, y2: at }));
    labels.append(svg("text", { x: size.left - 8, y: at + 4, "text-anchor": "end" }, number(tick, 3)));
  }
  for (const tick of x.ticks) {
    const at = x.at(tick);
    grid.append(svg("line", { x1: at, x2: at, y1: size.top, y2: bottom, class: names.columns ? "" : "faint" }));
    labels.append(svg("text", { x: at, y: bottom + 18, "text-anchor": "middle" }, number(tick, 3)));
  }
  const axis = svg("path", { class: "axis", d: `M${size.left} ${size.top}V${bottom}H${right}` });
  const titles = svg(
    "g",
    { class: "axis-title" },
    svg("text", { x: (size.left + right) / 2, y: size.height - 6, "text-anchor": "middle" }, names.x),
    svg("text", { x: 0, y: 0, "text-anchor": "middle", transform: `translate(13 ${(size.top + bottom) / 2}) rotate(-90)` }, names.y),
  );
  return svg("svg", { viewBox: `0 0 ${size.width} ${size.height}`, role: "img", "aria-label": names.label }, grid, labels, axis, titles);
}

// Every verdict has a shape of its own besides its colour. Marks of one kind are one path: thousands of them stay quick.
const SHAPES = {
  verified: (x, y) => `M${x - 3.2} ${y}a3.2 3.2 0 1 0 6.4 0a3.2 3.2 0 1 0-6.4 0`,
  falsified: (x, y) => `M${x} ${y - 4.2}l4 7.2h-8z`,
  other: (x, y) => `M${x - 2.8} ${y - 2.8}l5.6 5.6m0-5.6l-5.6 5.6`,
};
const shape = (kind) => SHAPES[kind] || SHAPES.other;
function marks(points, kind) {
  const path = points.map((p) => shape(kind)(Math.round(p.x * 10) / 10, Math.round(p.y * 10) / 10)).join("");
  return svg("path", { class: `marks ${kind}`, d: path });
}

function legend(entries) {
  return el(
    "ul",
    { class: "legend" },
    entries.map((entry) => {
      const key = svg(
        "svg",
        { width: 26, height: 12, "aria-hidden": "true" },
        entry.line
          ? svg("path", { class: `line ${entry.line}`, d: "M1 6H25" })
          : entry.bar
            ? svg("rect", { class: entry.bar, x: 6, y: 1, width: 14, height: 10 })
            : marks([{ x: 13, y: 6 }], entry.mark),
      );
      return el("li", {}, key, el("span", {}, entry.text));
    }),
  );
}

const tip = document.getElementById("tip");
function showTip(event, lines) {
  tip.replaceChildren(...lines.map((line, k) => el(k ? "div" : "strong", {}, line)));
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(event.clientX + 14, innerWidth - box.width - 8))}px`;
  tip.style.top = `${event.clientY + 18 + box.height > innerHeight ? event.clientY - box.height - 12 : event.clientY + 18}px`;
}
const hideTip = () => {
  tip.hidden = true;
};

function hints(chart, points, lines, open) {
  // The nearest point within 14 units is named under the pointer; a click opens it.
  const ring = svg("circle", { class: "ring", r: 6, visibility: "hidden" });
  chart.append(ring);
  const nearest = (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.getScreenCTM().inverse());
    let best = null,
      least = 14 ** 2;
    for (const point of points) {
      const away = (point.x - at.x) ** 2 + (point.y - at.y) ** 2;
      if (away < least) [best, least] = [point, away];
    }
    return best;
  };
  chart.addEventListener("pointermove", (event) => {
    const point = nearest(event);
    ring.setAttribute("visibility", point ? "visible" : "hidden");
    chart.classList.toggle("over", Boolean(point && open));
    if (!point) return hideTip();
    ring.setAttribute("cx", point.x);
    ring.setAttribute("cy", point.y);
    showTip(event, lines(point));
  });
  chart.addEventListener("pointerleave", () => {
    ring.setAttribute("visibility", "hidden");
    hideTip();
  });
  if (open)
    chart.addEventListener("click", (event) => {
      const point = nearest(event);
      if (point) {
        hideTip();
        open(point.row);
      }
    });
  return chart;
}

function panel(title, about, draw, wide) {
  // A figure that is drawn again whenever another family is chosen.
  const body = el("div", {});
  const refresh = () => body.replaceChildren(...[draw()].flat().filter(Boolean));
  chosen.listeners.push(refresh);
  refresh();
  return el(
    "figure",
    { class: wide ? "panel full" : "panel" },
    el("figcaption", {}, el("h3", {}, title), about && el("p", {}, about)),
    body,
  );
}
const empty = (text) => el("p", { class: "empty" }, text);
