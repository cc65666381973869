"""S-expressions as nested lists of token numbers, so that every error can name its line."""

from __future__ import annotations

import re
from typing import NoReturn

from bounds.errors import SpecError

MAX_DEPTH = 100
"""How deep parentheses may nest."""

_TOKEN = re.compile(r';[^\n]*|\|[^|]*\||"[^"]*"|[()]|[^\s();|"]+|[|"]')

Expression = int | list["Expression"]
"""An atom is the number of its token; a list starts with the number of its opening parenthesis (as an atom)."""


class Tokens:
    """The tokens of a text, comments left out. Token numbers are the positions at which errors are reported."""

    def __init__(self, text: str, source: str) -> None:
        self.text, self.source = text, source
        self.tokens = [token for token in _TOKEN.findall(text) if token[0] != ";"]

    def fail(self, token: int, message: str) -> NoReturn:
        """Raise an error at the line of a token."""
        positions = (match.start() for match in _TOKEN.finditer(self.text) if match.group()[0] != ";")
        position = next((start for number, start in enumerate(positions) if number == token), len(self.text))
        raise SpecError(f"{self.source}, line {self.text.count(chr(10), 0, position) + 1}: {message}")

    def read_expression(self, start: int) -> tuple[Expression, int]:
        """The expression that starts at a token, and the index after it."""
        tokens = self.tokens
        if tokens[start] == ")":
            self.fail(start, "a closing parenthesis has no opening one")
        if tokens[start] != "(":
            return start, start + 1
        stack: list[list[Expression]] = []
        for index in range(start, len(tokens)):
            token = tokens[index]
            if token == "(":
                if len(stack) == MAX_DEPTH:
                    self.fail(index, f"parentheses are nested deeper than {MAX_DEPTH}; flatten the formula")
                stack.append([index])
            elif token == ")":
                closed = stack.pop()
                if not stack:
                    return closed, index + 1
                stack[-1].append(closed)
            else:
                stack[-1].append(index)
        opened = stack[0][0]
        self.fail(opened if isinstance(opened, int) else start, "this parenthesis is never closed; the file may be truncated")

    def position(self, expression: Expression) -> int:
        """The token index an expression starts at."""
        while isinstance(expression, list):
            expression = expression[0]
        return expression

    def head(self, expression: list[Expression]) -> str:
        """The keyword or operator of a list."""
        if len(expression) < 2 or not isinstance(expression[1], int):
            self.fail(self.position(expression), "expected a keyword or an operator after the parenthesis")
        return self.tokens[expression[1]]
