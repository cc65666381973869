"""VNNLIB 1.0: properties of networks as text.

A file declares inputs X_i and outputs Y_j and asserts when the property is *violated*. The assertions are brought into disjunctive normal
form; conjunctions with the same input box become one case (an `ExactSpec`), whose unsafe sets are their output parts.

Numbers are read as exact rationals. Proofs use float64 copies rounded outward, replay uses the exact values. A strict < or > is kept for
replay and closed for proofs: the unsafe set can only grow, so a proof stays valid.

Supported: declare-const (and declare-fun without arguments) of sort Real; assert; and, or, true, false; <=, >=, <, > and = between two or
more linear terms built with +, -, * and constants. A constraint may speak about one input alone or about any number of outputs.
set-logic, set-info, set-option, check-sat, get-model and exit are ignored.

Reference: S. Demarchi et al., "Supporting Standardization of Neural Networks Verification with VNNLIB and CoCoNet", FoMLAS 2023.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from bounds.errors import SpecError
from verify.exact import ExactBox, ExactHalfspaces, ExactRow, ExactSpec
from verify.sexpr import Expression, Tokens

if TYPE_CHECKING:
    from bounds.network import Network
    from verify.spec import Property

MAX_CONJUNCTIONS = 10_000
"""Largest number of conjunctions the disjunctive normal form may have."""

_MAX_EXPONENT = 1000
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE]([+-]?\d+))?")
_NAME = re.compile(r"([XY])_(0|[1-9]\d*)")
_IGNORED = frozenset({"set-logic", "set-info", "set-option", "check-sat", "get-model", "exit"})
_COMPARISONS = frozenset({"<=", ">=", "<", ">", "="})


@dataclass(frozen=True)
class ParsedProperty:
    """A property file: violated iff one of `cases` is. Inputs and outputs are numbered as in the file (flattened, C order)."""

    inputs: int
    outputs: int
    cases: tuple[ExactSpec, ...]
    source: str
    notes: tuple[str, ...] = ()

    def specifications(self, input_shape: Sequence[int] | None = None, outputs: int | None = None) -> Property:
        """The question for a network with the given input shape and number of outputs (default: as declared), rounded outward.

        Raises:
            SpecError: the numbers of inputs or outputs differ from the file's.
        """
        from verify.spec import from_exact

        shape = (self.inputs,) if input_shape is None else tuple(input_shape)
        size = 1
        for extent in shape:
            size *= extent
        if size != self.inputs:
            raise SpecError(
                f"{self.source} declares {self.inputs} inputs, but the network reads {size} (shape {shape}); use the network it was written for"
            )
        if outputs is not None and outputs != self.outputs:
            raise SpecError(
                f"{self.source} declares {self.outputs} outputs, but the network has {outputs}; use the network it was written for"
            )
        return from_exact(self.cases, shape, self.outputs, self.source)


def load_property(path: str | Path, network: Network) -> Property:
    """The question in a VNNLIB file about a network.

    Raises:
        SpecError: see `read_vnnlib`; or the numbers of inputs or outputs differ from the network's.
    """
    return read_vnnlib(path).specifications(network.input_shape, network.outputs)


def read_vnnlib(path: str | Path) -> ParsedProperty:
    """Read a VNNLIB file, plain or gzipped.

    Raises:
        SpecError: the file cannot be read or used; the message has its name, and the line where there is one.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise SpecError(f"{path}: no such file; give the path of a .vnnlib or .vnnlib.gz file") from error
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror}); give the path of a .vnnlib or .vnnlib.gz file") from error
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise SpecError(f"{path}: the gzip data are damaged or truncated ({error}); fetch the file again") from error
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SpecError(f"{path}, line {line}: not text (byte {error.start} is not UTF-8); give a VNNLIB file") from error
    return parse_vnnlib(text, str(path))


def parse_vnnlib(text: str, source: str = "property") -> ParsedProperty:
    """Parse VNNLIB text; `source` names it in messages.

    Raises:
        SpecError: as for `read_vnnlib`.
    """
    return _Reader(text, source).read()


@dataclass(frozen=True)
class _Bound:
    """X_index <= value (upper) or X_index >= value, strict or not."""

    index: int
    upper: bool
    value: Fraction
    strict: bool


Literal = _Bound | ExactRow
Conjunction = tuple[Literal, ...]
_FALSE: tuple[Conjunction, ...] = ()
_TRUE: tuple[Conjunction, ...] = ((),)


class _Term:
    """A linear expression: coefficients by variable name, and a constant."""

    __slots__ = ("coefficients", "constant")

    def __init__(self, coefficients: dict[str, Fraction], constant: Fraction) -> None:
        self.coefficients = coefficients
        self.constant = constant

    def plus(self, other: _Term, factor: Fraction) -> _Term:
        coefficients = dict(self.coefficients)
        for name, value in other.coefficients.items():
            coefficients[name] = coefficients.get(name, Fraction(0)) + factor * value
        return _Term(coefficients, self.constant + factor * other.constant)

    def times(self, factor: Fraction) -> _Term:
        return _Term({name: factor * value for name, value in self.coefficients.items()}, factor * self.constant)


class _Box:
    """Input bounds being collected: index -> (value, strict), the tightest so far."""

    def __init__(self, lower: dict[int, tuple[Fraction, bool]], upper: dict[int, tuple[Fraction, bool]]) -> None:
        self.lower, self.upper = lower, upper

    def copy(self) -> _Box:
        return _Box(dict(self.lower), dict(self.upper))

    def tighten(self, bound: _Bound) -> None:
        side = self.upper if bound.upper else self.lower
        old = side.get(bound.index)
        if old is not None:
            tighter = bound.value < old[0] if bound.upper else bound.value > old[0]
            if not (tighter or (bound.value == old[0] and bound.strict)):
                return
        side[bound.index] = (bound.value, bound.strict)


class _Reader(Tokens):
    """One pass over the tokens of a file."""

    def __init__(self, text: str, source: str) -> None:
        super().__init__(text, source)
        self.declared: dict[str, int] = {}
        self.numbers: dict[str, Fraction] = {}
        self.base = _Box({}, {})
        self.base_rows: list[ExactRow] = []
        self.asserted_false: int | None = None
        self.disjunctions: list[tuple[Conjunction, ...]] = []
        self.last_bound: dict[int, int] = {}

    # --- statements

    def read(self) -> ParsedProperty:
        index, end = 0, len(self.tokens)
        if end == 0:
            raise SpecError(f"{self.source}, line 1: the file holds no statements; give a VNNLIB property")
        while index < end:
            index = self.read_common(index) or self.read_statement(index)
        inputs, outputs = self.count("X"), self.count("Y")
        cases, notes = self.cases(inputs)
        return ParsedProperty(inputs, outputs, cases, self.source, notes)

    def read_common(self, start: int) -> int | None:
        """Fast path for (declare-const NAME Real) and (assert (<= ATOM ATOM)); returns the next index, or None if it is not one of them."""
        statement = self.tokens[start : start + 8]
        if len(statement) < 5 or statement[0] != "(":
            return None
        if statement[1] == "declare-const" and statement[4] == ")" and statement[3] == "Real":
            self.declare(start + 2)
            return start + 5
        if len(statement) < 8 or statement[1] != "assert" or statement[7] != ")" or statement[6] != ")":
            return None
        operator, left, right = statement[3:6]
        if statement[2] != "(" or operator not in ("<=", ">=") or "(" in (left, right) or left[0] != "X":
            return None
        if left not in self.declared or _NUMBER.fullmatch(right) is None:
            return None
        bound = _Bound(int(left[2:]), operator == "<=", self.number(start + 5), False)
        self.base.tighten(bound)
        self.last_bound[bound.index] = start
        return start + 8

    def read_statement(self, start: int) -> int:
        expression, index = self.read_expression(start)
        if isinstance(expression, int):
            self.fail(start, f"expected a statement in parentheses, met {self.tokens[start]!r}")
        keyword = self.head(expression)
        if keyword == "assert":
            if len(expression) != 3:
                self.fail(start, f"assert takes one formula, got {len(expression) - 2}")
            self.add_assertion(start, self.formula(expression[2]))
        elif keyword in ("declare-const", "declare-fun"):
            self.read_declaration(expression)
        elif keyword == "vnnlib-version":
            self.fail(start, "this is VNNLIB 2; only VNNLIB 1.0 is read: convert the property to 1.0")
        elif keyword not in _IGNORED:
            self.fail(start, f"unknown statement {keyword!r}; VNNLIB 1.0 has declare-const and assert")
        return index

    def read_declaration(self, expression: list[Expression]) -> None:
        at = self.position(expression)
        arguments = expression[2:]
        if self.head(expression) == "declare-fun" and len(arguments) == 3 and isinstance(arguments[1], list) and len(arguments[1]) == 1:
            arguments = [arguments[0], arguments[2]]
        if len(arguments) != 2 or not all(isinstance(a, int) for a in arguments):
            self.fail(at, "expected (declare-const NAME Real)")
        name, sort = (self.position(a) for a in arguments)
        if self.tokens[sort] != "Real":
            self.fail(sort, f"variable {self.tokens[name]} has sort {self.tokens[sort]!r}; only Real is supported")
        self.declare(name)

    def declare(self, token: int) -> None:
        name = self.tokens[token]
        if _NAME.fullmatch(name) is None:
            self.fail(
                token, f"variable {name!r} is neither an input X_i nor an output Y_j; VNNLIB 1.0 names variables X_0, X_1, ..., Y_0, ..."
            )
        if name in self.declared:
            self.fail(token, f"{name} is declared twice")
        self.declared[name] = token

    def count(self, letter: str) -> int:
        """How many variables X_i (Y_j) are declared; they must be numbered from 0 without gaps."""
        tokens = {int(name[2:]): token for name, token in self.declared.items() if name[0] == letter}
        kind = "inputs" if letter == "X" else "outputs"
        if not tokens:
            self.fail(0, f"the file declares no {kind}; declare {letter}_0, {letter}_1, ...")
        for index in range(len(tokens)):
            if index not in tokens:
                highest = max(tokens)
                self.fail(
                    tokens[highest], f"{letter}_{highest} is declared but {letter}_{index} is not; number the {kind} from 0 without gaps"
                )
        return len(tokens)

    # --- formulas

    def add_assertion(self, start: int, cases: tuple[Conjunction, ...]) -> None:
        if cases == _FALSE:
            self.asserted_false = start
        elif len(cases) > 1:
            self.disjunctions.append(cases)
        else:
            for literal in cases[0]:
                if isinstance(literal, _Bound):
                    self.base.tighten(literal)
                    self.last_bound[literal.index] = start
                else:
                    self.base_rows.append(literal)

    def formula(self, expression: Expression) -> tuple[Conjunction, ...]:
        """The disjunctive normal form of a formula."""
        if isinstance(expression, int):
            word = self.tokens[expression]
            if word not in ("true", "false"):
                self.fail(expression, f"expected a formula, met {word!r}")
            return _TRUE if word == "true" else _FALSE
        operator = self.head(expression)
        if operator in _COMPARISONS:
            return self.comparison(expression, operator)
        if operator not in ("and", "or"):
            self.fail(self.position(expression), f"operator {operator!r} is not supported in a formula; use and, or, <=, >=, <, >, =")
        parts = [self.formula(part) for part in expression[2:]]
        if not parts:
            self.fail(self.position(expression), f"({operator}) has no arguments")
        if operator == "and":
            return self.conjoin(parts, self.position(expression))
        joined = tuple(conjunction for part in parts for conjunction in part)
        self.check_size(len(joined), self.position(expression))
        return joined

    def check_size(self, size: int, at: int) -> None:
        if size > MAX_CONJUNCTIONS:
            self.fail(at, f"the formula expands to {size} or more alternatives, above the limit of {MAX_CONJUNCTIONS}; split the property")

    def conjoin(self, parts: Iterable[tuple[Conjunction, ...]], at: int) -> tuple[Conjunction, ...]:
        """The product of disjunctive normal forms."""
        product = _TRUE
        for part in parts:
            self.check_size(len(product) * len(part), at)
            product = tuple(left + right for left in product for right in part)
        return product

    def comparison(self, expression: list[Expression], operator: str) -> tuple[Conjunction, ...]:
        at = self.position(expression)
        if len(expression) < 4:
            self.fail(at, f"{operator} compares at least two terms, got {len(expression) - 2}")
        terms = [self.term(part) for part in expression[2:]]
        literals: list[Literal] = []
        for left, right in pairwise(terms):
            difference = left.plus(right, Fraction(-1))
            sides = [difference, difference.times(Fraction(-1))] if operator == "=" else [difference]
            if operator in (">=", ">"):
                sides = [difference.times(Fraction(-1))]
            for side in sides:
                literal = self.literal(side, operator in ("<", ">"), at)
                if literal is False:
                    return _FALSE
                if literal is not True:
                    literals.append(literal)
        return (tuple(literals),)

    def literal(self, term: _Term, strict: bool, at: int) -> Literal | bool:
        """The constraint term <= 0 (or < 0)."""
        bound = -term.constant
        present = {name: value for name, value in term.coefficients.items() if value != 0}
        if not present:
            return bound > 0 or (bound == 0 and not strict)
        inputs = [name for name in present if name[0] == "X"]
        if len(inputs) == len(present) == 1:
            (name,) = inputs
            return _Bound(int(name[2:]), present[name] > 0, bound / present[name], strict)
        if inputs and len(inputs) < len(present):
            self.fail(
                at, f"one constraint mixes input {inputs[0]} with outputs; only bounds of single inputs and constraints on outputs work"
            )
        if inputs:
            self.fail(at, f"a constraint relates the inputs {inputs[0]} and {inputs[1]}; only bounds of single inputs are supported")
        return ExactRow(tuple(sorted((int(name[2:]), value) for name, value in present.items())), bound, strict)

    def term(self, expression: Expression) -> _Term:
        """A linear term."""
        if isinstance(expression, int):
            word = self.tokens[expression]
            if word in self.declared:
                return _Term({word: Fraction(1)}, Fraction(0))
            return _Term({}, self.number(expression))
        operator = self.head(expression)
        parts = [self.term(part) for part in expression[2:]]
        at = self.position(expression)
        if not parts:
            self.fail(at, f"({operator}) has no arguments")
        if operator == "+":
            total = parts[0]
            for part in parts[1:]:
                total = total.plus(part, Fraction(1))
            return total
        if operator == "-":
            if len(parts) == 1:
                return parts[0].times(Fraction(-1))
            total = parts[0]
            for part in parts[1:]:
                total = total.plus(part, Fraction(-1))
            return total
        if operator == "*":
            return self.product(parts, at)
        if operator == "/" and len(parts) == 2 and not parts[1].coefficients and parts[1].constant != 0:
            return parts[0].times(1 / parts[1].constant)
        self.fail(at, f"operator {operator!r} is not supported in a term; use linear terms with +, - and *")

    def product(self, parts: list[_Term], at: int) -> _Term:
        factor, variable = Fraction(1), None
        for part in parts:
            if not part.coefficients:
                factor *= part.constant
            elif variable is None:
                variable = part
            else:
                self.fail(at, "a product of two variables is not linear; only constant multiples are supported")
        return _Term({}, factor) if variable is None else variable.times(factor)

    def number(self, token: int) -> Fraction:
        text = self.tokens[token]
        value = self.numbers.get(text)
        if value is not None:
            return value
        match = _NUMBER.fullmatch(text)
        if match is None:
            known = "is not declared; declare it before its use" if _NAME.fullmatch(text) else "is neither a number nor a declared variable"
            self.fail(token, f"{text!r} {known}")
        if len(text) > _MAX_EXPONENT or (match.group(1) and abs(int(match.group(1))) > _MAX_EXPONENT):
            self.fail(token, f"the number {text[:40]!r} is out of range; exponents go up to {_MAX_EXPONENT}")
        value = Fraction(text)
        self.numbers[text] = value
        return value

    # --- cases

    def cases(self, inputs: int) -> tuple[tuple[ExactSpec, ...], tuple[str, ...]]:
        """Cases of the whole conjunction of assertions, one for every distinct input box, and notes on alternatives that were dropped."""
        if self.asserted_false is not None:
            self.fail(self.asserted_false, "this assertion is never true, so no input can violate the property; correct or remove it")
        grouped: dict[tuple[_Bound, ...], list[ExactHalfspaces]] = {}
        for conjunction in self.conjoin(self.disjunctions, 0):
            bounds = tuple(literal for literal in conjunction if isinstance(literal, _Bound))
            rows = dict.fromkeys([*self.base_rows, *(literal for literal in conjunction if isinstance(literal, ExactRow))])
            grouped.setdefault(bounds, []).append(ExactHalfspaces(tuple(rows)))
        cases, notes = [], []
        for number, (bounds, unsafe) in enumerate(grouped.items()):
            box = self.base.copy()
            for bound in bounds:
                box.tighten(bound)
            exact = self.box(box, inputs)
            empty = exact.empty_at()
            if empty is None:
                cases.append(ExactSpec(exact, tuple(dict.fromkeys(unsafe))))
                continue
            note = f"X_{empty} has lower bound {float(exact.lower[empty])!r} above its upper bound {float(exact.upper[empty])!r}"
            if len(grouped) == 1:
                self.fail(self.last_bound.get(empty, 0), f"{note}: the region is empty; correct the bounds")
            notes.append(f"alternative {number + 1} of {len(grouped)} holds no input and was dropped: {note}")
        if not cases:
            self.fail(0, f"every alternative holds no input: {notes[0]}; correct the bounds")
        return tuple(cases), tuple(notes)

    def box(self, box: _Box, inputs: int) -> ExactBox:
        for index in range(inputs):
            for side, name in ((box.lower, "lower"), (box.upper, "upper")):
                if index not in side:
                    self.fail(self.declared[f"X_{index}"], f"input X_{index} has no {name} bound; every input needs both")
        order = range(inputs)
        return ExactBox(
            tuple(box.lower[i][0] for i in order),
            tuple(box.upper[i][0] for i in order),
            frozenset(i for i in order if box.lower[i][1]),
            frozenset(i for i in order if box.upper[i][1]),
        )
