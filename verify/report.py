"""A results file as one HTML page that needs nothing else: no network, no server, no plotting package.

The page is `report_page/page.html` with the style sheet, the scripts and the data put in. Data is JSON in a block that no browser executes,
and the scripts write it as text only, so that a network named `<script>` is a name. A content security policy with the hashes of our own
style and script forbids everything else, the network included.
"""

from __future__ import annotations

import base64
import hashlib
import html as markup
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from typing import Any

from verify.document import to_json
from verify.records import Row
from verify.report_data import Answers, Selection, families, identity, seconds, select, summarise, wrong
from verify.report_export import compare, describe
from verify.report_pictures import bounding_map, colour_bar, counterexample
from verify.results import Results
from verify.witness import check_place, write_atomically

SCRIPTS = ("data.js", "charts.js", "plots.js", "pictures.js", "table.js", "page.js")
"""Put into the page in this order, as one script."""
PICTURE_BYTES = 2_000_000
"""Most that counterexamples may add to the page, and half of it for bounding maps; the rows beyond that have none."""
_TEXTS = ("family", "name", "network", "spec", "verdict", "reason", "expected", "proof", "semantics", "decided_by", "detail", "finished")
_NUMBERS = ("bound", "radius_lower", "radius_upper", "cpu_s", "peak_mb")


@dataclass
class _Pictures:
    """What is shown of single rows, by their number on the page; `left_out` were too many."""

    most: int
    shown: dict[int, dict[str, Any]] = field(default_factory=dict)
    left_out: int = 0
    size: int = 0

    def add(self, index: int, found: dict[str, Any] | None) -> None:
        """Show `found` with a row, if there is anything to show and it still fits in `most` bytes."""
        if found is None:
            return
        size = len(to_json(found))
        if self.size + size > self.most:
            self.left_out += 1
            return
        self.shown[index] = found
        self.size += size


def write_html(results: Path, html: Path, against: Path | None = None, configuration: int | None = None) -> None:
    """Write the report of a results file, see `verify.report_data.select`. The page appears complete or not at all.

    Raises:
        ResultsError: `results` or `against` cannot be used. OutputError: the page cannot be written.
    """
    write_page(select(results, against, configuration), results, html)


def write_page(selection: Selection, results: Path, html: Path) -> None:
    """Write the report of what was selected from `results`."""
    check_place(html)
    write_atomically(html, render(selection, results).encode())


def render(selection: Selection, results: Path) -> str:
    """The page as text."""
    main = selection.main
    title = results.stem if main is None else f"{results.stem}, {main.label}"
    script = "\n".join(_asset(name) for name in SCRIPTS)
    script = f'"use strict";\n(() => {{\n{script}\n}})();'
    style = _asset("page.css")
    # "</" and "<!--" end or disturb a script element, also inside JSON; "<" occurs only in JSON's strings.
    data = to_json(_data(selection, results)).replace("<", "\\u003c")
    parts = {
        "TITLE": markup.escape(title),
        "POLICY": f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'",
        "STYLE": style,
        "SCRIPT": script,
        "DATA": data,
    }
    page = _asset("page.html")
    pieces = page.split("{{")
    return pieces[0] + "".join(parts[name] + rest for name, _, rest in (piece.partition("}}") for piece in pieces[1:]))


def _asset(name: str) -> str:
    return (files("verify") / "report_page" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _data(selection: Selection, results: Path) -> dict[str, Any]:
    """What the page's scripts work on."""
    main = selection.main
    rows = () if main is None else main.rows
    shown = {"file": results.name, "made": time.strftime("%Y-%m-%d %H:%M", time.localtime()), "left_out": selection.left_out}
    if main is None or not rows:
        return shown | {"main": None}
    witnesses, maps = _pictures(results, rows)
    return shown | {
        "main": describe(main),
        "summary": summarise(rows),
        "families": [{"family": name, **figures} for name, figures in families(rows).items()],
        "columns": _columns(rows),
        "others": [describe(other) | compare(main, other) | _times(main, other) for other in selection.others],
        "witnesses": witnesses.shown,
        "witnesses_left_out": witnesses.left_out,
        "maps": maps.shown,
        "maps_left_out": maps.left_out,
        "colours": colour_bar(),
        "apart": [{"label": other.label, "number": other.number, "rows": len(other.rows)} for other in selection.apart],
    }


def _columns(rows: Sequence[Row]) -> dict[str, Any]:
    """The rows by column. Texts are numbers into a list of the different ones, as most repeat; other values lie in plain lists."""
    columns: dict[str, Any] = {}
    for name in _TEXTS:
        columns[name] = _coded(_value(row, name) for row in rows)
    for name in _NUMBERS:
        columns[name] = [_short(_value(row, name)) for row in rows]
    columns["seconds"] = [_short(seconds(row)) for row in rows]
    columns["wall_s"] = [_short(row.outcome.wall_s) for row in rows]
    columns["stages"] = [[_short(row.outcome.seconds.get(kind)) for kind in ("load", "attack", "bounds", "milp")] for row in rows]
    columns["limit_s"] = [row.instance.limit_s for row in rows]
    columns["wrong"] = [i for i, row in enumerate(rows) if wrong(row)]
    columns["rounded"] = {i: len(row.outcome.rounded) for i, row in enumerate(rows) if row.outcome.rounded}
    columns["question"] = {i: dict(row.instance.question) for i, row in enumerate(rows) if row.instance.question}
    columns["attempts"] = {i: row.attempts for i, row in enumerate(rows) if row.attempts > 1}
    return {name: None if isinstance(values, list) and not any(_known(v) for v in values) else values for name, values in columns.items()}


def _known(value: Any) -> bool:
    return any(v is not None for v in value) if isinstance(value, list) else value is not None


def _value(row: Row, name: str) -> Any:
    return (
        row.finished
        if name == "finished"
        else getattr(row.instance, name, None)
        if hasattr(row.instance, name)
        else getattr(row.outcome, name)
    )


def _coded(values: Iterable[str | None]) -> dict[str, Any]:
    numbers: dict[str, int] = {}
    codes = [numbers.setdefault(value or "", len(numbers)) for value in values]
    return {"texts": list(numbers), "codes": codes}


def _short(value: float | None) -> float | None:
    """Five digits, which is more than the page shows; exact values are in the exports."""
    return None if value is None else float(f"{value:.5g}")


def _times(main: Answers, other: Answers) -> dict[str, Any]:
    """The other's verdict and seconds for every row of the main answers, None where it was not asked."""
    theirs = {identity(row): row for row in other.rows}
    found = [theirs.get(identity(row)) for row in main.rows]
    return {
        "verdict": _coded(None if row is None else row.outcome.verdict for row in found),
        "seconds": [None if row is None else _short(seconds(row)) for row in found],
    }


def _pictures(results: Path, rows: Sequence[Row]) -> tuple[_Pictures, _Pictures]:
    """Counterexamples and bounding maps within their budgets, taken in turn from every family so that none is without."""
    witnesses, maps = _Pictures(PICTURE_BYTES), _Pictures(PICTURE_BYTES // 2)
    with Results.read(results) as stored:
        for index in _in_turn(rows):
            row = rows[index]
            arrays = stored.arrays(row.key)
            if row.outcome.verdict == "falsified":
                witnesses.add(index, counterexample(arrays, row.instance.question))
            if "radius_map" in arrays:
                maps.add(index, bounding_map(arrays))
    return witnesses, maps


def _in_turn(rows: Sequence[Row]) -> list[int]:
    """The numbers of the rows, one of every family at a time."""
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(row.instance.family, []).append(index)
    return [index for turn in zip_longest(*groups.values()) for index in turn if index is not None]
