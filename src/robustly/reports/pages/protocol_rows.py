"""Accuracy under the threats of a protocol, for the page of a run: a table and sentences."""

from dataclasses import dataclass

from robustly.evidence.corruption_result import MeanAccuracy
from robustly.evidence.protocol_result import Gap, ProtocolColumn, ProtocolResult
from robustly.reports.figures.threat_rows import Kind, ThreatRow, threat_title
from robustly.reports.tables.protocol_tables import ends
from robustly.statistics import Proportion


@dataclass(frozen=True)
class ProtocolView:
    """The table of one protocol.

    Args:
        name: name of the protocol, with that of its evaluations if it is another.
        words: description in one sentence.
        compares: whether there are differences from the threats of the training.
        rows: clean, each threat, the mean, and all at once.
        clean: accuracy without an attack, in [0, 1].
        doubts: sentences on suspected gradient masking and on attacks that failed, with their threats.
        remarks: threats of the training, and those that the user chose or named, or that are left out.
        notes: sentences on the limits of the numbers.
    """

    name: str
    words: str
    compares: bool
    rows: tuple[ThreatRow, ...]
    clean: float
    doubts: tuple[str, ...]
    remarks: tuple[str, ...]
    notes: tuple[str, ...]


def protocol_view(result: ProtocolResult) -> ProtocolView:
    """The content of the table of a protocol."""
    terms = result.terms
    trained = [one for one in result.columns if one.role == "trained"]
    rows = [_row("clean", "No attack (clean)", result.clean), *(_column(one, terms.compares) for one in trained)]
    if result.trained is not None and len(trained) > 1:
        rows.append(_row("threat", "All threats of the training", result.trained.robust))
    rows += [_column(one, terms.compares) for one in result.tested]
    rows.append(_row("mean", _capital(result.mean_words), result.mean))
    rows.append(_row("union", "Union: robust to all", result.union))
    reference = ", ".join(one.threat for one in trained)
    remarks = [f"Trained on, and compared with the others: {reference}."] if terms.compares and trained else []
    remarks += [f"Left out: {one}." for one in result.left_out]
    if terms.stated:
        remarks.append(f"Named by the user as threats of the training: {', '.join(terms.stated)}.")
    if terms.chosen:
        remarks.append("The user chose the threats, in place of those of the protocol.")
    name = terms.protocol if terms.label == terms.protocol else f"{terms.protocol} ({terms.label})"
    return ProtocolView(
        name=name,
        words=terms.words,
        compares=terms.compares,
        rows=tuple(rows),
        clean=result.clean.share,
        doubts=result.doubts,
        remarks=tuple(remarks),
        notes=terms.notes,
    )


def _column(one: ProtocolColumn, compares: bool) -> ThreatRow:
    title = threat_title(one.threat)
    gap, ends = _gap(one.gap)
    return ThreatRow(
        kind="threat",
        name=f"{title} (trained on)" if one.role == "trained" else title,
        share=one.robust.share,
        low=one.robust.low,
        high=one.robust.high,
        words=one.words,
        suite=one.suite if compares else ", ".join(one.attacks),
        masking=one.masking,
        gap=gap,
        gap_ends=ends,
    )


def _row(kind: Kind, name: str, part: Proportion | MeanAccuracy) -> ThreatRow:
    return ThreatRow(kind, name, *ends(part))


def _gap(gap: Gap | None) -> tuple[str, str]:
    if gap is None:
        return "", ""
    low, high = gap.interval
    return f"{100 * gap.value:.1f}", f"[{100 * low:.1f}, {100 * high:.1f}]"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
