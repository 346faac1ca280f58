"""Costs of confusions on a run's page."""

from dataclasses import dataclass

from robustly.evidence import Summary
from robustly.evidence.cost_pairs import CostNumbers
from robustly.evidence.costs import CostSummary

_MOST = 8
_LONGEST = 60


@dataclass(frozen=True)
class CostRow:
    """A confusion under attack: names of its classes, cost, number of examples, share of all costs."""

    label: str
    predicted: str
    cost: str
    count: int
    share: float


@dataclass(frozen=True)
class CostView:
    """The costs of a run in words.

    Args:
        text: the costs as their user wrote them, shortened.
        digest: first digits of the digest of the matrix.
        numbers: the numbers.
        worst: expected worst cost.
        worst_ends: its interval.
        without: mean cost without an attack.
        largest: the largest cost of the matrix.
        rows: the confusions with the largest total cost.
        worst_8bit: expected worst cost as 8-bit files; empty in schema 1.
    """

    text: str
    digest: str
    numbers: CostNumbers
    worst: str
    worst_ends: str
    without: str
    largest: str
    rows: tuple[CostRow, ...]
    worst_8bit: str = ""


def cost_view(evaluation: Summary, costs: CostSummary) -> CostView:
    """The costs of an evaluation for its page."""
    numbers, classes = costs.numbers, evaluation.data.classes
    total = numbers.worst.mean * evaluation.data.count
    low, high = numbers.worst.interval
    rows = tuple(
        CostRow(
            classes[one.label],
            classes[one.predicted],
            f"{one.cost:g}",
            one.count,
            one.cost * one.count / total if total else 0.0,
        )
        for one in numbers.confusions[:_MOST]
    )
    text = costs.text if len(costs.text) <= _LONGEST else f"{costs.text[: _LONGEST - 3]}..."
    return CostView(
        text=text,
        digest=costs.sha256[:12],
        numbers=numbers,
        worst=f"{numbers.worst.mean:.3g}",
        worst_ends=f"[{low:.3g}, {high:.3g}]",
        without=f"{numbers.clean_cost.mean:.3g}",
        largest=f"{costs.costs().largest:g}",
        rows=rows,
        worst_8bit="" if numbers.eight_bit is None else f"{numbers.eight_bit.worst.mean:.3g}",
    )
