"""Audit of the certificates: verdicts, counterexamples, and contradictions with the attacks."""

from collections.abc import Iterator

import numpy as np
import torch

from robustly.evaluation.audit.check import Check, first_id, placed
from robustly.evaluation.certificates import is_counterexample
from robustly.evaluation.recording import LONGEST_TEXT, STAGE, as_array
from robustly.evaluation.target import EvaluationTarget
from robustly.evidence import Evidence
from robustly.evidence.metrics import MODEL, certified_at, contradiction_problem
from robustly.evidence.schema import CertificateColumns, EvidenceTable
from robustly.output_text import one_line
from robustly.threats import ThreatModel

_MOST_WORK = 10**15
_TIE = 1e-4  # clean margins up to this may have another sign in another precision


def certificates_checks(evidence: Evidence, target: EvaluationTarget) -> Iterator[Check]:
    """Yield the checks of each certificate, and of contradictions with the rest of the evidence."""
    summary, table = evidence.summary, evidence.table
    terms = {one.name: one.certifies for one in summary.suite.certificates}
    for name, certifies in terms.items():
        columns = table.certificates[name]
        stated = summary.terms[name].certifies
        problem = "" if stated == certifies else f"the summary names two classifiers: {stated} and {certifies}"
        problem = problem or _row_problem(table, columns, certifies, summary.threat.limit) or _form_problem(columns)
        if certifies == MODEL and not summary.terms[name].failure_probability:  # else bounds are probabilities
            problem = problem or _bound_problem(table, columns, target)
        yield Check(f"certificate {name}: verdicts follow from the rows", problem)
        yield Check(f"certificate {name}: counterexamples", _image_problem(name, columns, evidence, target))
    if terms:
        problem = contradiction_problem(table, summary.terms) or _nearer_problem(evidence, target)
        yield Check("no example both certified and broken", problem)


def _row_problem(table: EvidenceTable, columns: CertificateColumns, certifies: str, limit: float) -> str:
    """The problem with the rows of a certificate, or an empty text."""
    if not ((columns.radius >= 0) & np.isfinite(columns.radius)).all():
        return "a radius is negative, infinite or not a number"
    unfounded = columns.verified & ~certified_at(table, columns, limit)
    if unfounded.any():
        return f"{int(unfounded.sum())} are verified with another class or a smaller radius than the threat"
    if (columns.verified & (columns.lower_bound <= 0)).any():
        return f"{int((columns.verified & (columns.lower_bound <= 0)).sum())} are verified without a positive bound"
    if certifies != MODEL:
        return "only a certificate of the model itself can falsify" if columns.falsified.any() else ""
    is_tie = np.abs(table.examples.clean_margin) < _TIE
    other = (columns.radius > 0) & (columns.prediction != table.examples.clean_prediction) & ~is_tie
    if other.any():
        where = f"first id {first_id(table, other)}"
        return f"{int(other.sum())} have a radius of another class than the model predicts, {where}"
    both = columns.falsified & ((columns.lower_bound > 0) | certified_at(table, columns, limit))
    return f"{int(both.sum())} are falsified and proved at once" if both.any() else ""


def _bound_problem(table: EvidenceTable, columns: CertificateColumns, target: EvaluationTarget) -> str:
    """The problem with bounds of margins, or an empty text: none exceeds the margin of the unchanged image.

    Bounds speak of outputs before a softmax, so those of a model that gives probabilities are not compared.
    """
    if not len(table):
        return ""
    first = torch.zeros(1, dtype=torch.int64, device=target.data.device)
    outputs = target.verdict(target.data.floats(first), target.data.labels[first])
    if bool((outputs >= 0).all()) and abs(float(outputs.sum()) - 1) < _TIE:
        return ""
    clean = table.examples.clean_margin
    above = columns.lower_bound > clean + _TIE * (1 + np.abs(clean))
    where = f"first id {first_id(table, above)}" if above.any() else ""
    return f"{int(above.sum())} bounds exceed the margin of the unchanged image, {where}" if above.any() else ""


def _form_problem(columns: CertificateColumns) -> str:
    """The problem with values that an audit cannot derive, or an empty text."""
    if (columns.work < 0).any() or (columns.work > _MOST_WORK).any():
        return "work is negative, or more than any certificate does"
    if not (np.isnan(columns.seconds) | ((columns.seconds >= 0) & (columns.seconds < 1e9))).all():
        return "a duration is negative or infinite"
    if any(not STAGE.fullmatch(one) for one in np.unique(columns.stage).tolist()):
        return "the name of a stage is more than a few plain words"
    if (~columns.open & (columns.reason != "")).any():
        return "a decided row has a reason for being open"
    words = np.unique(columns.reason).tolist()
    long = any(len(one) > LONGEST_TEXT or one != one_line(one) for one in words)
    return "a reason is too long or not printable" if long else ""


def _nearer_problem(evidence: Evidence, target: EvaluationTarget) -> str:
    """The problem with radii beyond the counterexamples of certificates, or an empty text."""
    table = evidence.table
    if not isinstance(target.threat, ThreatModel):
        return ""
    nearest = np.full(len(table), np.inf)
    for stored in evidence.images.certificates.values():
        found = placed(stored, table, target)
        size = as_array(target.threat.distance(found.images, target.data.floats(found.rows)), torch.float64)
        nearest[found.here] = np.fmin(nearest[found.here], size)
    for name, terms in evidence.summary.terms.items():
        columns = table.certificates[name]
        beyond = (columns.prediction == table.examples.label) & (columns.radius * (1 - 1e-5) > nearest + 1e-6)
        if terms.certifies == MODEL and not terms.failure_probability and beyond.any():
            where = f"first id {first_id(table, beyond)}"
            return f"{int(beyond.sum())} radii of {name} reach beyond a counterexample, {where}"
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
