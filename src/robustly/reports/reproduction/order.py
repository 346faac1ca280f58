"""Order of methods in a table: ours against the published one."""

from dataclasses import dataclass
from itertools import combinations

from robustly.reports.tables.columns import CLEAN
from robustly.reports.tables.paper_results import ResultTable, robust_column
from robustly.reports.tables.paper_tables import TITLES

FEWEST_PAIRS = 3
"""Fewer pairs say nothing about an order."""


@dataclass(frozen=True)
class Order:
    """Pairs of methods with different numbers on both sides; `same` of them are ordered as published."""

    title: str
    same: int
    pairs: int


def order_of(table: ResultTable, key: str) -> Order | None:
    """Order by a column; None with fewer than two methods that have a number on both sides.

    Rows with suspected masking are left out, except for clean accuracy.
    """
    place = table.table.columns.index(key)
    numbers = [
        (score.share, row.published[key])
        for row in table.rows
        if (score := row.cells[place].value) is not None
        and key in row.published
        and (key == CLEAN.key or not row.suspected)
    ]
    steps = [
        (ours - others) * (theirs - published)
        for (ours, theirs), (others, published) in combinations(numbers, 2)
        if ours != others and theirs != published
    ]
    return Order(TITLES.get(key, key), sum(step > 0 for step in steps), len(steps)) if steps else None


def order_words(table: ResultTable) -> str:
    """A sentence on the order by clean and by robust accuracy; empty with fewer than `FEWEST_PAIRS` pairs."""
    keys = [key for key in (CLEAN.key, robust_column(table.table)) if key in table.table.columns]
    orders = [order_of(table, key) for key in dict.fromkeys(keys)]
    found = [order for order in orders if order is not None and order.pairs >= FEWEST_PAIRS]
    if not found:
        return ""
    words = "; ".join(f"{order.title} {order.same} of {order.pairs}" for order in found)
    return f"Pairs of methods that have the published order: {words}. Half of the pairs would have it by chance."
