"""A table of robust accuracy under several threats, on average, and under all of them."""

from rich.markup import escape
from rich.table import Table

from robustly.evidence.unions import ThreatUnion
from robustly.statistics import Proportion


def union_table(run: str, union: ThreatUnion) -> Table:
    """A table with a row for each threat, the mean, and the union.

    Args:
        run: name of the run.
        union: accuracies of the run.
    """
    title = f"{run}: {union.clean.count} images, {len(union.threats)} threats"
    table = Table(title=escape(title), title_justify="left")
    table.add_column("threat")
    for column in ("accuracy", "95 % interval"):
        table.add_column(column, justify="right")
    table.add_row("clean", *_share(union.clean))
    for one in union.threats:
        table.add_row(escape(one.text), *_share(one.robust))
    low, high = union.average.interval
    table.add_row("mean of the threats", f"{100 * union.average.accuracy:.1f} %", _interval(low, high))
    table.add_row("union: robust to all", *_share(union.union), style="bold")
    return table


def _share(part: Proportion) -> tuple[str, str]:
    return f"{100 * part.share:.1f} %", _interval(part.low, part.high)


def _interval(low: float, high: float) -> str:
    return f"[{100 * low:.1f}, {100 * high:.1f}]"
