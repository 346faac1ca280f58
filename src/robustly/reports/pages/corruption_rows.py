"""Accuracy under corruptions for the page of a run: a table of corruptions by severity, and sentences."""

from dataclasses import dataclass

from robustly.evidence.corruption_result import CorruptionResult, CorruptionRow
from robustly.reports.formats import count, interval, percent


@dataclass(frozen=True)
class HeatCell:
    """A cell of the table; `error` in [0, 1] is its colour. Its text is empty where a severity is missing."""

    text: str = ""
    ends: str = ""
    error: float = 0.0


@dataclass(frozen=True)
class HeatRow:
    """A row of the table: a corruption, its severities and their mean."""

    title: str
    family: str
    cells: tuple[HeatCell, ...]
    mean: HeatCell


@dataclass(frozen=True)
class CorruptionView:
    """The section on corruptions.

    Args:
        rows: one entry for each corruption.
        facts: names and values of the numbers above the table.
        words: origin of the corrupted images.
        severities: columns of the table; none if each corruption has one severity, which is the mean.
        intro: the corruptions in one sentence.
    """

    rows: tuple[HeatRow, ...]
    facts: tuple[tuple[str, str], ...]
    words: str
    severities: tuple[int, ...]
    intro: str


_FIVE = (
    "Accuracy under noise, blur, weather and digital changes at five severities, without an adversary (Hendrycks "
    "and Dietterich, ICLR 2019)."
)
_DIGITS = (
    "Accuracy of digits under noise, blur, geometry, weather and strokes, without an adversary (MNIST-C, Mu and "
    "Gilmer, 2019), which has one severity for each corruption."
)


def corruption_view(result: CorruptionResult) -> CorruptionView:
    """The content of the section on corruptions."""
    every = result.images.severities
    severities = every if len(every) > 1 else ()
    rows = tuple(_row(row, severities) for row in result.rows)
    facts = [("Clean accuracy", f"{percent(result.clean.share)} {interval(result.clean)}")]
    if result.mean is not None:
        facts.append((f"Mean over {result.mean_words}", f"{percent(result.mean.accuracy)} {interval(result.mean)}"))
    if result.worst is not None:
        facts.append(("Worst corruption", f"{result.worst.title}, {percent(result.worst.mean.accuracy)}"))
    if result.reference is not None:
        facts.append((f"mCE against {result.reference.name}", percent(result.reference.mce)))
        facts.append(("Relative mCE", percent(result.reference.relative_mce)))
    facts.append(("Images", count(_images(result) if result.images.set == "files" else result.data.count)))
    intro = _DIGITS if result.images.set == "MNIST-C" else _FIVE
    return CorruptionView(rows, tuple(facts), result.images.words, severities, intro)


def _images(result: CorruptionResult) -> int:
    return result.rows[0].cells[0].accuracy.count if result.rows else 0


def _row(row: CorruptionRow, severities: tuple[int, ...]) -> HeatRow:
    found = {
        cell.severity: HeatCell(
            f"{100 * cell.accuracy.share:.1f}", interval(cell.accuracy), 1 - cell.accuracy.share
        )
        for cell in row.cells
    }
    mean = HeatCell(f"{100 * row.mean.accuracy:.1f}", interval(row.mean), 1 - row.mean.accuracy)
    cells = tuple(found.get(severity, HeatCell()) for severity in severities)
    return HeatRow(row.title, row.family, cells, mean)
