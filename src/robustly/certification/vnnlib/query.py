"""A property in normal form: cases of one input box and the violations over it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from robustly.certification.specification import Specification
from robustly.certification.vnnlib.boxes import Bounds, Box, BoxBuilder, as_bound, decimal, rounded_down, tightened
from robustly.certification.vnnlib.formulas import (
    Condition,
    Formula,
    Linear,
    UnsupportedQueryError,
    VnnlibError,
    disjuncts,
)
from robustly.certification.vnnlib.places import place_of_number

LARGEST_BOXES = 2**25
"""Most inputs of all boxes together, about 1 GB of bounds."""
_ALWAYS = Condition(Linear({}, Fraction(-1)))


@dataclass(frozen=True)
class Declared:
    """A tensor as the property declares it: name, element type, and shape."""

    name: str
    type: str
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Case:
    """All violations over one input box; the property holds if each case does.

    Args:
        box: the box.
        disjuncts: exact conditions of each disjunct.
        specification: the same in float64, for one example; offsets are rounded down, so that a proof of it is a
            proof of the exact conditions. Its columns are the outputs, then the inputs if `reads_inputs`.
        inexact: largest errors of the factors of `specification`, `(R, columns)`; None if all are exact.
        reads_inputs: whether a condition reads inputs and is not a simple bound.
    """

    box: Box
    disjuncts: tuple[tuple[Condition, ...], ...]
    specification: Specification
    inexact: Tensor | None
    reads_inputs: bool

    def clamped(self, x: Tensor) -> Tensor:
        """Float32 inputs, `(B, inputs)` after flattening, moved into the written bounds."""
        flat = x.reshape(len(x), -1).to(torch.float64)
        return flat.clamp(self.box.least.double(), self.box.most.double()).float()

    def violated(self, x: Tensor, y: Tensor) -> bool:
        """Return True if an input `(inputs,)` is in the box and it and outputs `(outputs,)` fulfil a disjunct.

        The arithmetic is exact.
        """
        inside = bool(((x >= self.box.least) & (x <= self.box.most)).all())
        if not inside or not bool(y.isfinite().all()):
            return False
        values = {
            "X": [Fraction(value) for value in x.tolist()] if self.reads_inputs else [],
            "Y": [Fraction(value) for value in y.tolist()],
        }
        return any(all(condition.holds(values) for condition in disjunct) for disjunct in self.disjuncts)


@dataclass(frozen=True, eq=False)
class Query:
    """A property.

    Args:
        source: name of the file.
        version: 1 or 2, version of VNN-LIB.
        inputs: number of inputs.
        outputs: number of outputs.
        cases: one case for each input box; none if no input violates the property, whatever the network.
        remark: what is unusual about the property; empty if nothing is.
        tensors: input and output as version 2 declares them; empty in version 1.
    """

    source: str
    version: int
    inputs: int
    outputs: int
    cases: tuple[Case, ...]
    remark: str = ""
    tensors: tuple[Declared, ...] = ()


@dataclass(frozen=True)
class _Group:
    """Disjuncts with the same box."""

    bounds: Bounds
    disjuncts: list[tuple[Condition, ...]] = field(default_factory=list)


def query_of(
    formula: Formula,
    inputs: int,
    outputs: int,
    source: str,
    version: int = 1,
    tensors: Sequence[Declared] = (),
    text: str = "",
) -> Query:
    """The normal form of a violation.

    Args:
        formula: the violation.
        inputs: number of inputs.
        outputs: number of outputs.
        source: name of the property, for messages.
        version: 1 or 2.
        tensors: see `Query`.
        text: contents of the file, for the places in messages.

    Raises:
        VnnlibError: an input has no bounds, or one beyond float32.
        UnsupportedQueryError: there are too many disjuncts, or boxes, or a number is beyond `LARGEST_FACTOR`.
    """
    shared, alternatives = disjuncts(formula, source)
    shared_bounds, shared_rest = _divided(Bounds({}, {}), shared)
    contradiction = _contradiction(shared_bounds, range(inputs))
    groups: dict[object, _Group] = {}
    for alternative in () if contradiction else alternatives:
        bounds, rest = _divided(shared_bounds, alternative)
        conditions = (*shared_rest, *rest)
        found = _contradiction(bounds.over(shared_bounds), (*bounds.below, *bounds.above))
        if found:
            contradiction = found
        elif all(condition.holds({}) for condition in conditions if not condition.left.terms):
            key = (tuple(sorted(bounds.below.items())), tuple(sorted(bounds.above.items())))
            group = groups.setdefault(key, _Group(bounds))
            group.disjuncts.append(tuple(one for one in conditions if one.left.terms) or (_ALWAYS,))
    if len(groups) * inputs > LARGEST_BOXES:
        raise UnsupportedQueryError(
            f"{source}: {len(groups)} boxes of {inputs} inputs; the most bounds of all boxes are {LARGEST_BOXES}"
        )
    for group in groups.values():
        _check_numbers(group, source, text)
    builder = BoxBuilder(shared_bounds, inputs, source, text)
    cases = tuple(_case(group, builder, outputs, inputs) for group in groups.values())
    remark = _remark(cases, contradiction)
    return Query(source, version, inputs, outputs, cases, remark, tuple(tensors))


def _divided(outer: Bounds, conditions: Sequence[Condition]) -> tuple[Bounds, list[Condition]]:
    """Simple bounds that are tighter than `outer`, and the other conditions."""
    bounds, rest = [], []
    for condition in conditions:
        bound = as_bound(condition)
        if bound is None:
            rest.append(condition)
        else:
            bounds.append(bound)
    return tightened(outer, bounds), rest


def _contradiction(bounds: Bounds, among: Iterable[int]) -> str:
    index = bounds.contradiction(among)
    if index is None:
        return ""
    low, high = decimal(bounds.below[index][0]), decimal(-bounds.above[index][0])
    return f"X_{index} >= {low} and X_{index} <= {high}"


def _remark(cases: Sequence[Case], contradiction: str) -> str:
    if not cases:
        why = f"the bounds {contradiction} contradict" if contradiction else "its conditions contradict"
        return f"vacuous: {why}, so no input violates the property"
    if any(disjunct == (_ALWAYS,) for case in cases for disjunct in case.disjuncts):
        return "the property has no condition on the outputs, so every input in the box violates it"
    return ""


LARGEST_FACTOR = 10**100
"""Largest magnitude of factors and constants of conditions on outputs."""


def _check_numbers(group: _Group, source: str, text: str) -> None:
    for disjunct in group.disjuncts:
        for condition in disjunct:
            for one in (*condition.left.terms.values(), condition.left.constant):
                if abs(one) > LARGEST_FACTOR:
                    raise UnsupportedQueryError(
                        f"{source}{place_of_number(text, one)}: a condition has a number beyond {LARGEST_FACTOR:g}"
                    )


def _case(group: _Group, builder: BoxBuilder, outputs: int, inputs: int) -> Case:
    conditions = [condition for disjunct in group.disjuncts for condition in disjunct]
    reads_inputs = any(kind == "X" for condition in conditions for kind, _ in condition.left.terms)
    columns = outputs + (inputs if reads_inputs else 0)
    rows = np.zeros((len(conditions), columns))
    errors: dict[tuple[int, int], float] = {}
    for place, condition in enumerate(conditions):
        for (kind, index), factor in condition.left.terms.items():
            column, nearest = (index if kind == "Y" else outputs + index), float(factor)
            rows[place, column] = nearest
            if Fraction(nearest) != factor:
                errors[place, column] = -rounded_down(-abs(Fraction(nearest) - factor))
    offset = [rounded_down(condition.left.constant) for condition in conditions]
    inexact = None
    if errors:
        inexact = torch.zeros(rows.shape, dtype=torch.float64)
        for spot, error in errors.items():
            inexact[spot] = error
    specification = Specification(
        torch.from_numpy(rows).unsqueeze(0),
        torch.tensor([offset], dtype=torch.float64),
        torch.tensor([number for number, disjunct in enumerate(group.disjuncts) for _ in disjunct]),
        torch.tensor([condition.strict for condition in conditions]),
    )
    return Case(builder.box(group.bounds), tuple(group.disjuncts), specification, inexact, reads_inputs)


__all__ = ["Case", "Declared", "Query", "VnnlibError", "query_of"]
