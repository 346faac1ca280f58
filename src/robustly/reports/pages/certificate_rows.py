"""Tables of the certificates of a run's page: their results, and the examples that stayed open."""

from dataclasses import dataclass

import numpy as np

from robustly.evidence import EvidenceTable, Summary
from robustly.evidence.certified_numbers import CertificateSummary
from robustly.evidence.metrics import MODEL


@dataclass(frozen=True)
class CertificateRow:
    """A certificate with its numbers.

    Args:
        title: its title.
        of: the certified classifier, in words.
        numbers: its numbers.
        open: number of rows that are neither verified nor falsified.
        work: total work; 0 if it is not recorded.
        seconds: total time; None if it was not measured.
    """

    title: str
    of: str
    numbers: CertificateSummary
    open: int
    work: int
    seconds: float | None


@dataclass(frozen=True)
class OpenRow:
    """Open rows of a certificate with one reason.

    Args:
        title: title of the certificate.
        reason: the reason in words.
        count: number of rows.
        unbroken: of these, the rows that nothing else broke or proved; None without the table of rows.
    """

    title: str
    reason: str
    count: int
    unbroken: int | None


def certificate_rows(evaluation: Summary) -> tuple[CertificateRow, ...]:
    """The certificates in the order of the suite."""
    return tuple(
        CertificateRow(
            title=_title(evaluation, one.name),
            of="the model itself" if one.terms.certifies == MODEL else one.terms.certifies,
            numbers=one,
            open=sum(one.verdicts.get(word, 0) for word in ("unknown", "timeout", "error")),
            work=sum(stage.work for stage in one.stages.values()),
            seconds=_seconds(one),
        )
        for one in evaluation.metrics.certificates
    )


def open_rows(evaluation: Summary, table: EvidenceTable | None) -> tuple[OpenRow, ...]:
    """Open rows by certificate and reason, the most frequent first."""
    found = []
    decided = None if table is None else _decided(evaluation, table)
    for one in evaluation.metrics.certificates:
        title = _title(evaluation, one.name)
        if table is None or decided is None:
            found += [OpenRow(title, reason, number, None) for reason, number in one.reasons.items()]
            continue
        columns = table.certificates[one.name]
        reasons = np.where(columns.reason == "", "not recorded", columns.reason)
        words, counts = np.unique(reasons[columns.open], return_counts=True)
        for place in np.argsort(-counts, kind="stable"):
            here = columns.open & (reasons == words[place])
            found.append(OpenRow(title, str(words[place]), int(here.sum()), int((here & ~decided).sum())))
    return tuple(found)


def _decided(evaluation: Summary, table: EvidenceTable) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Mask of the rows that are broken, misclassified, or verified or falsified by a certificate of the model."""
    names = [name for name, terms in evaluation.terms.items() if terms.certifies == MODEL]
    shut = [~table.certificates[name].open for name in names]
    decided: np.ndarray[tuple[int], np.dtype[np.bool_]] = np.any([table.worst_case.broken, *shut], axis=0)
    return decided


def _title(evaluation: Summary, name: str) -> str:
    return next((one.title for one in evaluation.suite.certificates if one.name == name), name)


def _seconds(one: CertificateSummary) -> float | None:
    seconds = [stage.seconds for stage in one.stages.values()]
    known = [value for value in seconds if value is not None]
    return sum(known) if known and len(known) == len(seconds) else None
