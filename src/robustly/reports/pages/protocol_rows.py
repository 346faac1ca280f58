"""Accuracy under the threats of a protocol, for the page of a run: a table and sentences."""

from dataclasses import dataclass

from robustly.evidence.protocol_result import Gap, ProtocolColumn, ProtocolResult
from robustly.reports.formats import interval, percent
from robustly.statistics import Proportion


@dataclass(frozen=True)
class ProtocolRow:
    """A row of the table.

    Args:
        title: the threat, or the name of a number over several.
        words: the threat in one sentence; empty for other rows.
        searches: the attacks, or the suite.
        share: the accuracy.
        ends: its 95 % interval.
        part: the accuracy as a share of examples, for the ruler; None for a mean.
        gap: difference from the threats of the training, in percentage points; empty without one.
        gap_ends: its 95 % interval.
        total: whether the row is over several threats.
    """

    title: str
    words: str
    searches: str
    share: str
    ends: str
    part: Proportion | None = None
    gap: str = ""
    gap_ends: str = ""
    total: bool = False


@dataclass(frozen=True)
class ProtocolView:
    """The table of one protocol.

    Args:
        name: name of the protocol, with that of its evaluations if it is another.
        words: description in one sentence.
        compares: whether there are differences from the threats of the training.
        rows: the rows.
        doubts: sentences on suspected gradient masking and on attacks that failed, with their threats.
        remarks: threats of the training, and those that the user chose or named, or that are left out.
        notes: sentences on the limits of the numbers.
    """

    name: str
    words: str
    compares: bool
    rows: tuple[ProtocolRow, ...]
    doubts: tuple[str, ...]
    remarks: tuple[str, ...]
    notes: tuple[str, ...]


def protocol_view(result: ProtocolResult) -> ProtocolView:
    """The content of the table of a protocol."""
    terms = result.terms
    trained = [one for one in result.columns if one.role == "trained"]
    rows = [_row("No attack (clean)", result.clean), *(_column(one, terms.compares) for one in trained)]
    if result.trained is not None and len(trained) > 1:
        rows.append(_row("All threats of the training", result.trained.robust))
    rows += [_column(one, terms.compares) for one in result.tested]
    mean = result.mean
    rows.append(
        ProtocolRow(_capital(result.mean_words), "", "", percent(mean.accuracy), interval(mean), total=True)
    )
    rows.append(_row("Union: robust to all", result.union, total=True))
    reference = ", ".join(one.threat for one in trained)
    remarks = [f"Trained on, and compared with the others: {reference}."] if terms.compares and trained else []
    remarks += [f"Left out: {one}." for one in result.left_out]
    if terms.stated:
        remarks.append(f"Named by the user as threats of the training: {', '.join(terms.stated)}.")
    if terms.chosen:
        remarks.append("The user chose the threats, in place of those of the protocol.")
    name = terms.protocol if terms.label == terms.protocol else f"{terms.protocol} ({terms.label})"
    return ProtocolView(name, terms.words, terms.compares, tuple(rows), result.doubts, tuple(remarks), terms.notes)


def _column(one: ProtocolColumn, compares: bool) -> ProtocolRow:
    title = f"{one.threat} (trained on)" if one.role == "trained" else one.threat
    gap, ends = _gap(one.gap)
    return ProtocolRow(
        title,
        one.words,
        f"suite {one.suite}" if compares else ", ".join(one.attacks),
        percent(one.robust.share),
        interval(one.robust),
        one.robust,
        gap,
        ends,
    )


def _row(title: str, part: Proportion, *, total: bool = False) -> ProtocolRow:
    return ProtocolRow(title, "", "", percent(part.share), interval(part), part, total=total)


def _gap(gap: Gap | None) -> tuple[str, str]:
    if gap is None:
        return "", ""
    low, high = gap.interval
    return f"{100 * gap.value:.1f}", f"[{100 * low:.1f}, {100 * high:.1f}]"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
