"""A question in plain English: which inputs it speaks about, which outputs it forbids, and what the possible verdicts would mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from verify.exact import ExactBox, ExactHalfspaces, ExactRow
from verify.vnnlib import ParsedProperty

if TYPE_CHECKING:
    from verify.spec import Specification

Centred = tuple[float, tuple[float, float] | None]
"""A radius, and the interval that clips it, if any."""

_SHOWN = 6
"""How many inputs or alternatives are listed one by one."""

FALSIFIED_MEANS = "an input of the region was found at which the original model itself gives such an output, checked without tolerance"
UNKNOWN_MEANS = "neither was established within the limits"


@dataclass(frozen=True)
class CaseExplanation:
    """One input region and what must not happen on it. `radius` and `clip` are set where the region looks like a box around a centre."""

    region: str
    free: int
    fixed: int
    radius: float | None
    clip: tuple[float, float] | None
    violated_when: str
    verified_means: str
    alternatives: int


@dataclass(frozen=True)
class Explanation:
    """A whole question; JSON-able through `to_dict`."""

    source: str
    inputs: int
    outputs: int
    cases: tuple[CaseExplanation, ...]
    notes: tuple[str, ...] = ()
    falsified_means: str = FALSIFIED_MEANS
    unknown_means: str = UNKNOWN_MEANS

    def to_dict(self) -> dict[str, Any]:
        """The explanation as plain lists, dictionaries, strings and numbers."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"Question: {self.source}",
            f"The network reads {_count(self.inputs, 'input', 'X')} and returns {_count(self.outputs, 'output', 'Y')}.",
        ]
        for number, case in enumerate(self.cases):
            lead = f"Case {number + 1} of {len(self.cases)}. " if len(self.cases) > 1 else ""
            lines.append(f"{lead}Inputs: {case.region}.")
            lines.append(f"Violated when: {case.violated_when}.")
            lines.append(f"Verified means: for every such input {case.verified_means}.")
        if len(self.cases) > 1:
            lines.append(f"The question is verified only if all {len(self.cases)} cases are; one counterexample in any case falsifies it.")
        lines += [f"Falsified means: {self.falsified_means}.", f"Unknown means: {self.unknown_means}."]
        lines += [f"Note: {note}." for note in self.notes]
        return "\n".join(lines)


def explain(question: ParsedProperty | Specification | Sequence[Specification]) -> Explanation:
    """Explain a parsed property file, a specification, or the specifications of one property. `str()` gives the text."""
    if isinstance(question, ParsedProperty):
        cases = tuple(_case(case.box, case.unsafe, question.outputs) for case in question.cases)
        return Explanation(question.source, question.inputs, question.outputs, cases, question.notes)
    specs = question if isinstance(question, Sequence) else [question]
    cases = tuple(_case(spec.exact_box, spec.exact_unsafe, spec.outputs, _ball(spec)) for spec in specs)
    return Explanation(specs[0].description, len(specs[0].exact_box), specs[0].outputs, cases)


def _count(number: int, word: str, letter: str) -> str:
    if number == 1:
        return f"1 {word} {letter}_0"
    if number == 2:
        return f"2 {word}s {letter}_0 and {letter}_1"
    return f"{number} {word}s {letter}_0 to {letter}_{number - 1}"


def _case(box: ExactBox, unsafe: tuple[ExactHalfspaces, ...], outputs: int, ball: str | None = None) -> CaseExplanation:
    lower, upper = box.outer
    fixed = np.array([low == high for low, high in zip(box.lower, box.upper, strict=True)])
    free = int((~fixed).sum())
    centred = _centred(lower[~fixed], upper[~fixed])
    radius, clip = centred if centred is not None else (None, None)
    words = _centred_words(lower, upper, fixed, centred) if len(box) > _SHOWN else None
    text = ball or words or _table(lower, upper, fixed)
    strict = len(box.open_lower) + len(box.open_upper)
    text += f"; {free} free, {len(box) - free} fixed" + (f"; {strict} of the bounds are strict" if strict else "")
    violated, verified = _outputs(unsafe, outputs)
    return CaseExplanation(text, free, len(box) - free, radius, clip, violated, verified, len(unsafe))


def _ball(spec: Specification) -> str | None:
    """The words for an l1 or l2 ball, which its bounding box does not tell."""
    from bounds.region import LpBall

    region = spec.region
    if not isinstance(region, LpBall) or region.p == math.inf:
        return None
    eps = np.asarray(region.eps)
    size = (
        f"{_number(float(eps.max()))}" if eps.min() == eps.max() else f"between {_number(float(eps.min()))} and {_number(float(eps.max()))}"
    )
    domain = (
        ""
        if region.domain is None
        else ", within the domain " + _interval(float(np.asarray(region.domain[0]).min()), float(np.asarray(region.domain[1]).max()))
    )
    return f"every point whose l{int(region.p)} distance from the given centre is at most {size}{domain}"


def _centred(low: np.ndarray, high: np.ndarray) -> Centred | None:
    """(radius, clip) if the intervals form a box of one radius around a centre, perhaps clipped to one interval, else None."""
    if len(low) < 2:
        return None
    width = float((high - low).max())
    tolerance = 1e-6 * max(width, float(np.abs(np.concatenate([low, high])).max()))
    full = high - low >= width - tolerance
    if full.all():
        return width / 2, None
    least, most = float(low.min()), float(high.max())
    clipped = (low <= least + tolerance) | (high >= most - tolerance)
    # With few inputs, bounds that merely coincide would be taken for clipping.
    return (width / 2, (least, most)) if len(low) > _SHOWN and full.sum() > 1 and bool(np.all(full | clipped)) else None


def _centred_words(lower: np.ndarray, upper: np.ndarray, fixed: np.ndarray, centred: Centred | None) -> str | None:
    """One radius for all free inputs, or one for each of three colour channels (first or last); None if the box is not of that kind."""
    if centred is not None:
        radius, clip = centred
        text = f"a box around a centre, with radius {_number(radius)} in every free direction"
        return text if clip is None else f"{text}, clipped to {_interval(*clip)}"
    if len(lower) % 3 or len(lower) < 48 or fixed.any():
        return None
    for shape, axis in (((3, -1), 0), ((-1, 3), 1)):
        channels = [_centred(np.take(lower.reshape(shape), c, axis), np.take(upper.reshape(shape), c, axis)) for c in range(3)]
        found = [channel for channel in channels if channel is not None]
        if len(found) == 3:
            radii = ", ".join(_number(radius) for radius, _ in found)
            clips = "" if all(clip is None for _, clip in found) else ", clipped"
            return f"a box around a centre, with radii {radii} in the three channels{clips}, within {_interval(float(lower.min()), float(upper.max()))}"
    return None


def _table(lower: np.ndarray, upper: np.ndarray, fixed: np.ndarray) -> str:
    rows = zip(lower[:_SHOWN].tolist(), upper[:_SHOWN].tolist(), fixed[:_SHOWN].tolist(), strict=True)
    shown = [f"X_{i} = {_number(a)}" if same else f"X_{i} in {_interval(a, b)}" for i, (a, b, same) in enumerate(rows)]
    rest = len(lower) - len(shown)
    if rest:
        shown.append(f"and {rest} more within {_interval(float(lower.min()), float(upper.max()))}")
    return "a box: " + ", ".join(shown)


def _number(value: float) -> str:
    return f"{value:.6g}"


def _interval(low: float, high: float) -> str:
    return f"[{_number(low)}, {_number(high)}]"


def _outputs(unsafe: tuple[ExactHalfspaces, ...], outputs: int) -> tuple[str, str]:
    """In words when the property is violated, and what holds when it never is."""
    if any(not halfspaces.rows for halfspaces in unsafe):
        return "always: the outputs are not constrained, so every input of the region violates the property", "nothing can hold"
    order = _ordering([halfspaces.rows[0] for halfspaces in unsafe]) if all(len(h.rows) == 1 for h in unsafe) else None
    if order is not None and len(order[1]) == outputs - 1 > 1:
        pivot, _, above = order
        kind = "smallest" if above else "largest"
        return f"output {pivot} is not strictly the {kind}", f"output {pivot} is strictly the {kind}"
    if len(unsafe) == 1:
        order = _ordering(list(unsafe[0].rows))
        if order is not None and len(order[1]) == outputs - 1 > 1:
            pivot, _, above = order
            kind = "largest" if above else "smallest"
            return f"output {pivot} is the {kind}, ties included", f"output {pivot} is not the {kind}, not even tied"
    shown = [_set_words(halfspaces) for halfspaces in unsafe[:_SHOWN]]
    if len(unsafe) > _SHOWN:
        shown.append(f"{len(unsafe) - _SHOWN} more alternatives")
    if len(shown) == 1:
        return shown[0], f"it never happens that {shown[0]}"
    return "one of these holds: " + "; or ".join(shown), "none of these happens"


def _ordering(rows: list[ExactRow]) -> tuple[int, list[int], bool] | None:
    """(pivot, others, above) if every row is y_other <= y_pivot (above) or every row is y_pivot <= y_other, not strict; else None."""
    pairs = []
    for row in rows:
        if row.strict or row.bound != 0 or len(row.coefficients) != 2:
            return None
        (i, a), (j, b) = row.coefficients
        if a + b != 0:
            return None
        pairs.append((i, j) if a > 0 else (j, i))
    lower, upper = {p[0] for p in pairs}, {p[1] for p in pairs}
    if len(lower) == 1 and len(upper) == len(pairs):
        return pairs[0][0], sorted(upper), False
    if len(upper) == 1 and len(lower) == len(pairs):
        return pairs[0][1], sorted(lower), True
    return None


def _set_words(halfspaces: ExactHalfspaces) -> str:
    order = _ordering(list(halfspaces.rows))
    if order is not None and len(order[1]) > 1:
        pivot, others, above = order
        names = [f"Y_{other}" for other in others]
        return f"Y_{pivot} is at {'least' if above else 'most'} each of {', '.join(names[:-1])} and {names[-1]}"
    return " and ".join(_row_words(row) for row in halfspaces.rows)


def _row_words(row: ExactRow) -> str:
    sign = "<" if row.strict else "<="
    flipped = ">" if row.strict else ">="
    if len(row.coefficients) == 1:
        ((index, c),) = row.coefficients
        return f"Y_{index} {sign if c > 0 else flipped} {_number(float(row.bound / c))}"
    if len(row.coefficients) == 2 and row.bound == 0:
        (i, a), (j, b) = row.coefficients
        if a + b == 0:
            return f"Y_{i} {sign if a > 0 else flipped} Y_{j}"
    terms = [f"{'-' if c < 0 else '+'} {_number(abs(float(c)))} Y_{i}" for i, c in row.coefficients]
    return f"{' '.join(terms).removeprefix('+ ')} {sign} {_number(float(row.bound))}"
