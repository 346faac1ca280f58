"""Parser of VNN-LIB 1: declarations of inputs X_i and outputs Y_j, and assertions on them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import NoReturn

from robustly.certification.vnnlib.formulas import (
    All,
    Condition,
    Formula,
    Linear,
    Some,
    Variable,
    VnnlibError,
    compared,
)
from robustly.certification.vnnlib.places import LONGEST_NUMBER, line_and_column

DEEPEST = 200
"""Most parentheses inside each other."""

LARGEST_EXPONENT = 400
"""Largest magnitude of an exponent of ten."""

_TOKEN = re.compile(r"\s+|;[^\n]*|(?P<token>\"[^\"]*\"|\|[^|]*\||[()]|[^\s();\"|]+)")
_BLANK = re.compile(r"(?:\s+|;[^\n]*)*")
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE](?P<exponent>[-+]?[0-9]+))?")
_VARIABLE = re.compile(r"(?P<kind>[XY])_(?P<index>\d{1,9})")
_BOUND = re.compile(
    r"\(\s*assert\s*\(\s*(?P<operator><=|>=)\s+(?P<variable>[XY]_\d{1,9})\s+(?P<number>[-+]?[0-9]{1,50}\.?[0-9]{0,400}(?:[eE][-+]?[0-9]{1,2})?)"
    r"\s*\)\s*\)"
)
_OPERATORS = ("<=", "<", ">=", ">", "=")
_IGNORED = ("set-logic", "set-info", "set-option", "check-sat", "get-model", "exit", "vnnlib-version")


@dataclass(frozen=True)
class Parsed:
    """A property as it is written.

    Args:
        inputs: number of inputs.
        outputs: number of outputs.
        formula: the violation.
    """

    inputs: int
    outputs: int
    formula: All


@dataclass(frozen=True, slots=True)
class _Word:
    text: str
    at: int


@dataclass(frozen=True, slots=True)
class _Form:
    """A parenthesis with its contents."""

    parts: "tuple[_Word | _Form, ...]"
    at: int


_Expression = _Word | _Form


def parse(text: str, source: str) -> Parsed:
    """Parse a property.

    Args:
        text: contents of the file.
        source: name of the file, for messages.

    Raises:
        VnnlibError: a mistake, with line and column.
    """
    return _Parser(text, source).parsed()


def number(text: str) -> Fraction | None:
    """The exact value of a decimal number; None if it is not a number, or it or its exponent is too large."""
    match = _NUMBER.fullmatch(text) if len(text) <= LONGEST_NUMBER else None
    if match is None or abs(int(match["exponent"] or 0)) > LARGEST_EXPONENT:
        return None
    return Fraction(text)


class _Parser:
    def __init__(self, text: str, source: str) -> None:
        self._text, self._source = text, source
        self._declared: dict[str, set[int]] = {"X": set(), "Y": set()}

    def parsed(self) -> Parsed:
        conditions: list[Formula] = []
        at = 0
        while (at := self._next(at)) < len(self._text):
            if bound := _BOUND.match(self._text, at):  # nearly all statements of large files
                sign = 1 if bound["operator"] == "<=" else -1
                variable = self._variable(_Word(bound["variable"], bound.start("variable")))
                conditions.append(Condition(Linear({variable: Fraction(sign)}, -sign * Fraction(bound["number"]))))
                at = bound.end()
                continue
            statement, at = self._form(at)
            conditions += self._statement(statement)
        return Parsed(self._count("X"), self._count("Y"), All(tuple(conditions)))

    def _count(self, kind: str) -> int:
        declared = self._declared[kind]
        count = max(declared, default=-1) + 1
        if missing := count - len(declared):
            first = next(index for index in range(count) if index not in declared)
            raise VnnlibError(
                f"{self._source}: {kind}_{first} is not declared ({missing} missing below {kind}_{count})"
            )
        if not count:
            raise VnnlibError(f"{self._source}: no variable {kind}_0 is declared")
        return count

    def _fail(self, at: int, message: str) -> NoReturn:
        raise VnnlibError(f"{self._source}{line_and_column(self._text, at)}: {message}")

    # --- text to forms ---

    def _tokens(self, at: int) -> Iterator[_Word]:
        while at < len(self._text):
            match = _TOKEN.match(self._text, at)
            if match is None:
                self._fail(at, "a quoted text does not end")
            if match["token"] is not None:
                yield _Word(match["token"], at)
            at = match.end()

    def _next(self, at: int) -> int:
        """Position of the next token, or the end of the text."""
        match = _BLANK.match(self._text, at)
        return at if match is None else match.end()

    def _form(self, at: int) -> tuple[_Form, int]:
        """The parenthesis that begins here, and the position behind it."""
        open_forms: list[tuple[int, list[_Expression]]] = []
        for word in self._tokens(at):
            if word.text == "(":
                if len(open_forms) == DEEPEST:
                    self._fail(word.at, f"more than {DEEPEST} parentheses inside each other")
                open_forms.append((word.at, []))
            elif not open_forms:
                self._fail(word.at, f"expected '(', found {_shown(word)}")
            elif word.text == ")":
                began, parts = open_forms.pop()
                form = _Form(tuple(parts), began)
                if not open_forms:
                    return form, word.at + 1
                open_forms[-1][1].append(form)
            else:
                open_forms[-1][1].append(word)
        self._fail(open_forms[-1][0], "this '(' is not closed")

    # --- forms to meaning ---

    def _statement(self, form: _Form) -> list[Formula]:
        name, rest = self._head(form)
        if name == "assert":
            if len(rest) != 1:
                self._fail(form.at, f"assert takes one condition, found {len(rest)}")
            return [self._formula(rest[0])]
        if name in {"declare-const", "declare-fun"}:
            self._declare(form, name, rest)
        elif name not in _IGNORED:
            self._fail(form.at, f"unknown statement '{name}'; allowed are declare-const and assert")
        return []

    def _head(self, form: _Expression) -> tuple[str, tuple[_Expression, ...]]:
        if isinstance(form, _Word):
            self._fail(form.at, f"expected '(', found {_shown(form)}")
        if not form.parts:
            self._fail(form.at, "an empty parenthesis")
        head = form.parts[0]
        if isinstance(head, _Form):
            self._fail(head.at, "expected a name such as 'and' or '<=', found '('")
        return head.text, form.parts[1:]

    def _declare(self, form: _Form, name: str, rest: tuple[_Expression, ...]) -> None:
        if name == "declare-fun" and len(rest) == 3 and rest[1] == _Form((), rest[1].at):
            rest = (rest[0], rest[2])
        words = [one for one in rest if isinstance(one, _Word)]
        if len(rest) != 2 or len(words) != 2:
            self._fail(form.at, "expected (declare-const NAME Real)")
        variable, kind = words
        match = _VARIABLE.fullmatch(variable.text)
        if match is None:
            self._fail(variable.at, f"variable {_shown(variable)}; the names are X_0, X_1, ... and Y_0, Y_1, ...")
        if kind.text != "Real":
            self._fail(kind.at, f"type {_shown(kind)}; the only type is Real")
        index = int(match["index"])
        if index in self._declared[match["kind"]]:
            self._fail(variable.at, f"{variable.text} is declared twice")
        self._declared[match["kind"]].add(index)

    def _formula(self, form: _Expression) -> Formula:
        if isinstance(form, _Word) and form.text in {"true", "false"}:
            return All(()) if form.text == "true" else Some(())
        name, rest = self._head(form)
        if name in {"and", "or"}:
            parts = tuple(self._formula(part) for part in rest)
            return All(parts) if name == "and" else Some(parts)
        if name not in _OPERATORS:
            allowed = ", ".join(("and", "or", *_OPERATORS))
            self._fail(form.at, f"unknown condition '{name}'; allowed are {allowed}")
        if len(rest) < 2:
            self._fail(form.at, f"'{name}' takes two sides, found {len(rest)}")
        sides = [self._linear(side) for side in rest]
        links = [compared(name, left, right) for left, right in pairwise(sides)]
        return links[0] if len(links) == 1 else All(tuple(links))

    def _linear(self, form: _Expression) -> Linear:
        if isinstance(form, _Word):
            return self._atom(form)
        name, rest = self._head(form)
        if name not in {"+", "-", "*", "/"}:
            self._fail(form.at, f"unknown operation '{name}'; allowed are + - * /")
        if not rest:
            self._fail(form.at, f"'{name}' without operands")
        parts = [self._linear(part) for part in rest]
        whole = parts[0]
        if name == "-" and len(parts) == 1:
            return whole.times(Fraction(-1))
        for place, part in enumerate(parts[1:], start=1):
            if name in {"+", "-"}:
                whole = whole.plus(part, 1 if name == "+" else -1)
            elif name == "/":
                if part.terms or not part.constant:
                    self._fail(rest[place].at, "division by a variable or by 0; only constants divide")
                whole = whole.times(1 / part.constant)
            elif whole.terms and part.terms:
                self._fail(form.at, "a product of two variables; only linear conditions are supported")
            else:
                whole = whole.times(part.constant) if not part.terms else part.times(whole.constant)
        return whole

    def _variable(self, word: _Word) -> Variable:
        kind, index = word.text[0], int(word.text[2:])
        if index not in self._declared[kind]:
            self._fail(word.at, f"{word.text} is not declared before this place")
        return kind, index

    def _atom(self, word: _Word) -> Linear:
        if _VARIABLE.fullmatch(word.text):
            return Linear({self._variable(word): Fraction(1)})
        value = number(word.text)
        if value is None:
            self._fail(
                word.at,
                f"expected X_i, Y_j or a number with an exponent to {LARGEST_EXPONENT} and at most "
                f"{LONGEST_NUMBER} characters, found {_shown(word)}",
            )
        return Linear({}, value)


def _shown(word: _Word) -> str:
    text = word.text if len(word.text) <= 40 else f"{word.text[:40]}..."
    return repr(text)
