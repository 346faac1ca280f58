"""Audit of the certificates: verdicts, counterexamples, and contradictions with the attacks."""

from collections.abc import Iterator

import numpy as np

from robustly.evaluation.audit.check import Check, placed
from robustly.evaluation.certificates import is_counterexample
from robustly.evaluation.recording import as_array
from robustly.evaluation.target import EvaluationTarget
from robustly.evidence import Evidence
from robustly.evidence.metrics import MODEL, certified_at, contradiction_problem
from robustly.evidence.schema import CertificateColumns, EvidenceTable
from robustly.threats import ThreatModel


def certificates_checks(evidence: Evidence, target: EvaluationTarget) -> Iterator[Check]:
    """Yield the checks of each certificate, and of contradictions with the rest of the evidence."""
    summary, table = evidence.summary, evidence.table
    terms = {one.name: one.certifies for one in summary.suite.certificates}
    for name, certifies in terms.items():
        columns = table.certificates[name]
        stated = summary.terms[name].certifies
        problem = "" if stated == certifies else f"the summary names two classifiers: {stated} and {certifies}"
        problem = problem or _row_problem(table, columns, certifies, summary.threat.limit)
        yield Check(f"certificate {name}: verdicts follow from the rows", problem)
        yield Check(f"certificate {name}: counterexamples", _image_problem(name, columns, evidence, target))
    if terms:
        yield Check("no example both certified and broken", contradiction_problem(table, summary.terms))


def _row_problem(table: EvidenceTable, columns: CertificateColumns, certifies: str, limit: float) -> str:
    """The problem with the rows of a certificate, or an empty text."""
    if not (columns.radius >= 0).all():
        return "a radius is negative or not a number"
    unfounded = columns.verified & ~certified_at(table, columns, limit)
    if unfounded.any():
        return f"{int(unfounded.sum())} are verified with another class or a smaller radius than the threat"
    if certifies != MODEL and columns.falsified.any():
        return "only a certificate of the model itself can falsify"
    return ""


def _image_problem(name: str, columns: CertificateColumns, evidence: Evidence, target: EvaluationTarget) -> str:
    """The problem with the counterexamples of a certificate, or an empty text."""
    stored = evidence.images.certificates.get(name)
    if stored is None:
        count = int(columns.falsified.sum())
        return f"{count} rows are falsified without a counterexample" if count else ""
    shown = np.isin(evidence.table.examples.id, stored.ids)
    if not np.array_equal(shown, columns.falsified) or int(shown.sum()) != len(stored):
        return f"{int((shown != columns.falsified).sum())} rows do not agree with the counterexamples"
    found = placed(stored, evidence.table, target)
    if not isinstance(target.threat, ThreatModel):
        return f"certificates are defined for Lp balls, the threat is {target.threat.kind!r}"
    bad = ~as_array(is_counterexample(target, target.threat, found.rows, found.images))
    return f"{int(bad.sum())} do not break the model within the threat" if bad.any() else ""
