"""Exact linear conditions on inputs and outputs, and their disjunctive normal form."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from math import prod

LARGEST_DISJUNCTS, LARGEST_CONDITIONS = 100_000, 5_000_000
"""Most disjuncts of a property, and most conditions in all of them together."""

Variable = tuple[str, int]
"""("X", i): input i; ("Y", j): output j; in C order of the flattened tensors."""


class VnnlibError(ValueError):
    """A property that is not written correctly."""


class UnsupportedQueryError(VnnlibError):
    """A correct property of a kind that the verifier does not support; its verdict is "unknown"."""


@dataclass(frozen=True, slots=True)
class Linear:
    """A sum of multiples of variables, and a constant; `terms` has no coefficient 0."""

    terms: Mapping[Variable, Fraction]
    constant: Fraction = Fraction(0)

    def plus(self, other: "Linear", factor: Fraction | int = 1) -> "Linear":
        """`self + factor * other`."""
        terms = dict(self.terms)
        for variable, value in other.terms.items():
            terms[variable] = terms.get(variable, Fraction(0)) + factor * value
        kept = {variable: value for variable, value in terms.items() if value}
        return Linear(kept, self.constant + factor * other.constant)

    def times(self, factor: Fraction) -> "Linear":
        """`factor * self`."""
        return Linear({}).plus(self, factor)

    def value(self, values: Mapping[str, Sequence[Fraction]]) -> Fraction:
        """Its value where "X" and "Y" have these values."""
        return self.constant + sum(
            (factor * values[kind][index] for (kind, index), factor in self.terms.items()), Fraction(0)
        )


@dataclass(frozen=True, slots=True)
class Condition:
    """`left <= 0`, or `left < 0` if it is strict."""

    left: Linear
    strict: bool = False

    def holds(self, values: Mapping[str, Sequence[Fraction]]) -> bool:
        """Return True if the values fulfil it."""
        value = self.left.value(values)
        return value < 0 if self.strict else value <= 0


@dataclass(frozen=True, slots=True)
class All:
    """All parts hold."""

    parts: "tuple[Formula, ...]"


@dataclass(frozen=True, slots=True)
class Some:
    """At least one part holds."""

    parts: "tuple[Formula, ...]"


Formula = Condition | All | Some


def compared(operator: str, left: Linear, right: Linear) -> Formula:
    """The formula of `left operator right`.

    Args:
        operator: "<=", "<", ">=", ">", "=", "==" or "!=".
        left: the left side.
        right: the right side.
    """
    if operator in {">=", ">"}:
        left, right = right, left
    below = left.plus(right, -1)
    if operator in {"<=", "<", ">=", ">"}:
        return Condition(below, strict=operator in {"<", ">"})
    both = (
        Condition(below, strict=operator == "!="),
        Condition(below.times(Fraction(-1)), strict=operator == "!="),
    )
    return Some(both) if operator == "!=" else All(both)


def disjuncts(formula: Formula, source: str) -> tuple[list[Condition], list[tuple[Condition, ...]]]:
    """Disjunctive normal form: the conditions that all disjuncts share, and the further ones of each disjunct.

    Args:
        formula: the formula.
        source: name of the property, for messages.

    Raises:
        UnsupportedQueryError: there are too many disjuncts.
    """
    count, conditions = _size(formula)
    if count > LARGEST_DISJUNCTS or conditions > LARGEST_CONDITIONS:
        raise UnsupportedQueryError(
            f"{source}: its 'and' and 'or' expand to {_short(count)} disjuncts with {_short(conditions)} "
            f"conditions; the most are {LARGEST_DISJUNCTS} and {LARGEST_CONDITIONS}"
        )
    parts = list(_flattened(formula))
    shared = [part for part in parts if isinstance(part, Condition)]
    choices = [_expanded(part) for part in parts if not isinstance(part, Condition)]
    return shared, [_joined(choice) for choice in product(*choices)]


def _short(count: int) -> str:
    return str(count) if count < 10**15 else "more than 10^15"


def _flattened(formula: Formula) -> Iterable[Formula]:
    if isinstance(formula, All):
        for part in formula.parts:
            yield from _flattened(part)
    else:
        yield formula


def _expanded(formula: Formula) -> list[tuple[Condition, ...]]:
    if isinstance(formula, Condition):
        return [(formula,)]
    parts = [_expanded(part) for part in formula.parts]
    if isinstance(formula, Some):
        return [one for part in parts for one in part]
    return [_joined(choice) for choice in product(*parts)]


def _joined(parts: Iterable[tuple[Condition, ...]]) -> tuple[Condition, ...]:
    return tuple(one for part in parts for one in part)


def _size(formula: Formula) -> tuple[int, int]:
    """Number of disjuncts, and of conditions in all of them, without expanding."""
    if isinstance(formula, Condition):
        return 1, 1
    sizes = [_size(part) for part in formula.parts]
    if isinstance(formula, Some):
        return sum(count for count, _ in sizes), sum(conditions for _, conditions in sizes)
    count = prod(count for count, _ in sizes)
    return count, sum(count // max(1, own) * conditions for own, conditions in sizes) if count else 0
