"""Accuracy by domain for the page of a run: a table of sources, target and gap."""

from dataclasses import dataclass

from robustly.evidence.audit_record import AuditRecord
from robustly.evidence.domains import DomainAccuracy, DomainResult, Gap
from robustly.evidence.provenance import DataRecord
from robustly.reports.formats import NO_VALUE, count, interval
from robustly.statistics import Proportion


@dataclass(frozen=True)
class DomainCell:
    """A share or a gap in per cent, and its interval; a dash without one."""

    text: str = NO_VALUE
    ends: str = ""


@dataclass(frozen=True)
class DomainRow:
    """A row of the table; `kind` is "source", "target" or "gap"."""

    title: str
    kind: str
    images: str
    cells: tuple[DomainCell, ...]


@dataclass(frozen=True)
class DomainView:
    """The section on domains.

    Args:
        left_out: name of the target.
        columns: titles of the accuracies.
        trained: a sentence on the training.
        rows: the source domains, all of them together, the target, and the gap.
        audit: the state of the audit of the evaluation on the source domains.
    """

    left_out: str
    trained: str
    columns: tuple[str, ...]
    rows: tuple[DomainRow, ...]
    audit: str


def domain_view(result: DomainResult, audit: AuditRecord | None, data: DataRecord) -> DomainView:
    """The content of the section on domains.

    Args:
        result: the accuracies.
        audit: the last audit of the evaluation on the source domains.
        data: the data of the evaluation on the target.
    """
    has_proofs = result.target.certified is not None or result.source.certified is not None
    columns = ("Clean", "Robust", *(("Certified",) if has_proofs else ()))
    number = len(columns)
    together = [_row(result.source, "source", number)] if len(result.sources) > 1 else []
    gaps = (result.clean_gap, result.robust_gap, result.certified_gap)[:number]
    rows = (
        *(_row(one, "source", number) for one in result.sources),
        *together,
        _row(result.target, "target", number),
        DomainRow("Gap: sources - target", "gap", "", tuple(map(_gap, gaps))),
    )
    states = {None: "is not audited", True: "passed its audit", False: "FAILED its audit"}
    trained = "The model was trained and selected without images of the target."
    if data.trained_on is None or data.selected_on is None:
        trained = "It is not known which domains the model was trained on."
    elif data.seen:
        trained = "The model was trained or selected on images of the target."
    return DomainView(result.left_out, trained, columns, rows, states[None if audit is None else audit.passed])


def _row(one: DomainAccuracy, kind: str, columns: int) -> DomainRow:
    shares = (one.clean, one.robust, one.proved)[:columns]
    return DomainRow(one.name, kind, count(one.clean.count), tuple(map(_share, shares)))


def _share(part: Proportion | None) -> DomainCell:
    return DomainCell() if part is None else DomainCell(f"{100 * part.share:.1f}", interval(part))


def _gap(gap: Gap | None) -> DomainCell:
    if gap is None:
        return DomainCell()
    low, high = gap.interval
    return DomainCell(f"{100 * gap.difference:+.1f}", f"[{100 * low:+.1f}, {100 * high:+.1f}]")
