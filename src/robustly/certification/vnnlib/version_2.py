"""Linear queries on one network of VNN-LIB 2, read by the package `vnnlib`."""

import json
import re
import sys
from decimal import Decimal
from fractions import Fraction
from math import prod
from types import ModuleType
from typing import Any

from robustly.certification.vnnlib.formulas import (
    All,
    Formula,
    Linear,
    Some,
    UnsupportedQueryError,
    VnnlibError,
    compared,
)
from robustly.certification.vnnlib.parser import LARGEST_EXPONENT, number
from robustly.certification.vnnlib.places import LONGEST_NUMBER, line_and_column
from robustly.certification.vnnlib.query import Declared, Query, query_of

_TYPES = {"F32": "float32", "F64": "float64", "Real": "real"}
_NUMBER = re.compile(r";[^\n]*|(?<![\w.\]])-?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?(?![\w.])")
_FOREIGN = re.compile(r";[^\n]*|(?P<foreign>[^\x00-\x7f])")
_LARGEST_INTEGER = 2**63
_SMALLEST, _LARGEST = Fraction(sys.float_info.min), Fraction(sys.float_info.max)
_OPERATORS = {
    "LessEqual": "<=",
    "LessThan": "<",
    "GreaterEqual": ">=",
    "GreaterThan": ">",
    "Equal": "==",
    "NotEqual": "!=",
}


def read(text: str, source: str) -> Query:
    """Read a query.

    Args:
        text: contents of the file.
        source: name of the file, for messages.

    Raises:
        VnnlibError: a mistake in the text, with line and column.
        UnsupportedQueryError: several networks, hidden nodes, products of variables, or types other than floats.
        ImportError: the package `vnnlib` is not installed.
    """
    package = _package(source)
    written = text
    text = _NUMBER.sub(lambda match: _plain(match, source), text)
    try:
        query = package.parse_query_string(text)
    except package.VNNLibException as error:
        raise VnnlibError(f"{source}{_described(str(error), text)}") from None
    except UnicodeDecodeError:
        found = next((one for one in _FOREIGN.finditer(text) if one["foreign"]), None)
        place = line_and_column(text, found.start()) if found else ""
        raise VnnlibError(f"{source}{place}: a character that is not ASCII outside comments") from None
    inputs, outputs = _tensors(query, source)
    reader = _Reader(source, inputs.name)
    try:
        parts = tuple(reader.formula(assertion.expr) for assertion in query.assertions)
    except RecursionError:
        raise VnnlibError(f"{source}: too many parentheses inside each other") from None
    sizes = [prod(tensor.shape) for tensor in (inputs, outputs)]
    return query_of(All(parts), sizes[0], sizes[1], source, 2, (inputs, outputs), written)


def _package(source: str) -> ModuleType:
    try:
        import vnnlib  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(f"{source}: VNN-LIB 2 needs the package vnnlib: pip install vnnlib") from error
    return vnnlib


def _plain(match: re.Match[str], source: str) -> str:
    """A number as the package reads it: without exponent, large integers as decimals; comments stay as they are."""
    text = match[0]
    if text.startswith(";"):
        return text
    value = number(text)
    if value is None:
        wrong = f"has an exponent beyond {LARGEST_EXPONENT} or more than {LONGEST_NUMBER} characters"
    elif value and not _SMALLEST <= abs(value) <= _LARGEST:
        wrong = "is beyond the range of float64, which the package vnnlib reads"
    else:
        wrong = ""
    if value is None or wrong:
        place = line_and_column(match.string, match.start())
        raise VnnlibError(f"{source}{place}: the number {text[:40]} {wrong}")
    if text.lstrip("-").isdigit() and abs(value) < _LARGEST_INTEGER:
        return text
    plain = format(Decimal(text), "f")
    return plain if "." in plain else f"{plain}.0"


def _described(message: str, text: str) -> str:
    """The first mistake that the package reports, with line and column."""
    try:
        first = json.loads(message)["errors"][0]
    except ValueError:
        match = re.search(r"line (\d+), column (\d+)(?:: '(.*)')?", message)
        if match is None:
            return f": {message}"
        return f", line {match[1]}, column {match[2]}: syntax error" + (f" at '{match[3]}'" if match[3] else "")
    line, symbol = int(first["line"]), str(first["offendingSymbol"])
    lines = text.splitlines()
    found = lines[line - 1].find(symbol) if 0 < line <= len(lines) else -1
    return f", line {line}, column {found + 1 if found >= 0 else 1}: {first['message']} '{symbol}'. {first['hint']}"


def _tensors(query: Any, source: str) -> tuple[Declared, Declared]:
    networks = query.networks
    if len(networks) != 1:
        names = ", ".join(network.name for network in networks)
        raise UnsupportedQueryError(f"{source}: {len(networks)} networks ({names}); queries on one are supported")
    network = networks[0]
    if network.hidden:
        raise UnsupportedQueryError(
            f"{source}: hidden node {network.hidden[0].name}; only inputs and outputs can be read"
        )
    for word, tensors in (("inputs", network.inputs), ("outputs", network.outputs)):
        if len(tensors) != 1:
            names = ", ".join(tensor.name for tensor in tensors)
            raise UnsupportedQueryError(
                f"{source}: {len(tensors)} {word} ({names}); networks with one are supported"
            )
    for tensor in (network.inputs[0], network.outputs[0]):
        if tensor.dtype.name not in _TYPES:
            allowed = ", ".join(_TYPES.values())
            raise UnsupportedQueryError(
                f"{source}: {tensor.name} has elements of type {tensor.dtype.name}; supported are {allowed}"
            )
    both = (network.inputs[0], network.outputs[0])
    first, second = (Declared(one.name, _TYPES[one.dtype.name], tuple(one.shape)) for one in both)
    return first, second


class _Reader:
    """Formulas of the package's syntax tree."""

    def __init__(self, source: str, inputs: str) -> None:
        self._source, self._inputs = source, inputs

    def formula(self, node: Any) -> Formula:
        kind = type(node).__name__
        if kind in {"And", "Or"}:
            parts = tuple(self.formula(part) for part in node.args)
            return All(parts) if kind == "And" else Some(parts)
        if kind not in _OPERATORS:
            raise UnsupportedQueryError(f"{self._source}: the condition {str(node)[:60]} is not supported")
        return compared(_OPERATORS[kind], self._linear(node.lhs), self._linear(node.rhs))

    def _linear(self, node: Any) -> Linear:
        kind = type(node).__name__
        if kind == "Var":
            return Linear({("X" if node.name == self._inputs else "Y", self._place(node)): Fraction(1)})
        if kind in {"Float", "Int", "IntExpr"}:
            return Linear({}, Fraction(node.lexeme))
        if kind == "Negate":
            return self._linear(node.expr).times(Fraction(-1))
        if kind in {"Plus", "Minus"}:
            parts = node.args if kind == "Plus" else (node.head, *node.rest)
            whole = self._linear(parts[0])
            for part in parts[1:]:
                whole = whole.plus(self._linear(part), 1 if kind == "Plus" else -1)
            return whole
        if kind == "Multiply":
            whole = Linear({}, Fraction(1))
            for factor in map(self._linear, node.args):
                if whole.terms and factor.terms:
                    raise UnsupportedQueryError(
                        f"{self._source}: polynomial term {str(node)[:60]}; only linear conditions are supported"
                    )
                whole = whole.times(factor.constant) if not factor.terms else factor.times(whole.constant)
            return whole
        raise UnsupportedQueryError(f"{self._source}: the expression {str(node)[:60]} is not supported")

    def _place(self, node: Any) -> int:
        """Number of an element in C order."""
        place = 0
        for index, length in zip(node.indices, node.shape, strict=True):
            place = place * length + index
        return place
