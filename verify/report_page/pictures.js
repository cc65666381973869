// Counterexamples and bounding maps as pictures.

const FIRST_SHOWN = 12;
const witnessOf = (row) => (payload.witnesses || {})[row.i];
const mapOf = (row) => (payload.maps || {})[row.i];

function picture(uri, size, name) {
  // Whole multiples of the pixel grid, about 100 units wide: pixels stay sharp.
  const scale = Math.max(1, Math.round(104 / Math.max(size[1], 1)));
  return el(
    "figure",
    { class: "picture" },
    el("img", { src: uri, width: size[0] * scale, height: size[1] * scale, alt: name }),
    el("figcaption", {}, name),
  );
}

function classes(witness) {
  if (witness.now === null || witness.now === undefined) return null;
  const was = witness.was === null || witness.was === undefined ? "" : `class ${witness.was} `;
  return el(
    "span",
    { class: "classes" },
    was,
    el("span", { "aria-label": "becomes" }, "→"),
    was ? ` ${witness.now}` : ` class ${witness.now}`,
  );
}

function distances(witness) {
  if (witness.linf === 0 && witness.l2 === 0) return "the middle of the region itself";
  const parts = [];
  if (witness.linf !== undefined) parts.push(`l-inf ${number(witness.linf, 3)}`);
  if (witness.l2 !== undefined) parts.push(`l-2 ${number(witness.l2, 3)}`);
  return parts.join(" · ");
}

function triple(witness) {
  return el(
    "div",
    { class: "triple" },
    witness.center && picture(witness.center, witness.size, "image"),
    picture(witness.input, witness.size, "adversary"),
    witness.difference && picture(witness.difference, witness.size, `difference × ${number(1 / (witness.linf || 1), 2)}`),
  );
}

function card(row, body, lines) {
  return el(
    "article",
    { class: "card" },
    el("h4", {}, el("button", { class: "link", type: "button", onclick: () => openDetail(row) }, row.name)),
    body,
    [payload.families.length > 1 && row.family, ...lines].filter(Boolean).map((line) => el("p", {}, line)),
  );
}

function gallery(id, found, left, make, what) {
  let open = false;
  const body = el("div", {});
  const draw = () => {
    const shown = found.filter(inFamily),
      some = open ? shown : shown.slice(0, FIRST_SHOWN);
    const more = shown.length - some.length;
    body.replaceChildren(
      ...[
        shown.length ? el("div", { class: "cards" }, some.map(make)) : empty(`No ${what} in this family.`),
        more
          ? el(
              "button",
              {
                type: "button",
                class: "more",
                onclick: () => {
                  open = true;
                  draw();
                },
              },
              `Show ${more} more`,
            )
          : null,
        left
          ? el(
              "p",
              { class: "small" },
              `${count(left, "more has no picture here", "more have no pictures here")}, to keep the page small; they are in the results file.`,
            )
          : null,
      ].filter(Boolean),
    );
  };
  chosen.listeners.push(draw);
  draw();
  return body;
}

function counterexamples() {
  const found = rows.filter((row) => (witnessOf(row) || {}).input);
  if (!found.length) return null;
  const replayed = payload.main.tool === "ringfence" ? "Every one was replayed on the original model. " : "";
  const note =
    replayed +
    "In a difference, orange is brighter, blue is darker, and full colour is the largest change; colour images vary around grey.";
  return section(
    "counterexamples",
    "Counterexamples",
    note,
    gallery(
      "counterexamples",
      found,
      payload.witnesses_left_out,
      (row) => {
        const witness = witnessOf(row),
          [low, high] = witness.range;
        return card(row, triple(witness), [
          classes(witness),
          distances(witness),
          low === 0 && high === 1 ? null : `black ${number(low, 3)}, white ${number(high, 3)}`,
        ]);
      },
      "counterexample",
    ),
  );
}

function boundingMaps() {
  const found = rows.filter(mapOf);
  if (!found.length) return null;
  const bar = el("span", { class: "colours", style: { background: `linear-gradient(90deg, ${payload.colours.join(", ")})` } });
  const note = el(
    "span",
    {},
    "How far every single pixel may move while the class stays proven, all pixels at once: from the smallest ",
    bar,
    " to the largest radius of each image.",
  );
  return section(
    "maps",
    "Bounding maps",
    note,
    gallery(
      "maps",
      found,
      payload.maps_left_out,
      (row) => {
        const map = mapOf(row);
        const images = el(
          "div",
          { class: "triple" },
          map.center && picture(map.center, [map.size[0] / Math.max(1, Math.round(map.size[0] / map.size[1])), map.size[1]], "image"),
          picture(map.map, map.size, "radii"),
        );
        return card(row, images, [
          `radii ${number(map.range[0], 3)} to ${number(map.range[1], 3)}`,
          map.mean ? `geometric mean ${number(map.mean, 3)}` : null,
        ]);
      },
      "bounding map",
    ),
  );
}

function vectors(witness) {
  if (!witness.values) return null;
  const head = el("tr", {}, el("th", {}, "input"), witness.middle && el("th", {}, "middle of the region"), el("th", {}, "counterexample"));
  const body = witness.values.map((value, k) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, `X_${k}`),
      witness.middle && el("td", {}, number(witness.middle[k], 6)),
      el("td", {}, number(value, 6)),
    ),
  );
  return el("div", { class: "vectors" }, el("table", {}, el("thead", {}, head), el("tbody", {}, body)));
}

function witnessBody(witness) {
  const output = witness.output && el("p", { class: "small" }, `outputs ${witness.output.map((v) => number(v, 4)).join(", ")}`);
  return el(
    "div",
    { class: "witness" },
    el("h3", {}, "Counterexample"),
    witness.input ? triple(witness) : null,
    witness.input ? el("p", {}, classes(witness)) : null,
    vectors(witness),
    el("p", { class: "small" }, distances(witness)),
    output,
  );
}
