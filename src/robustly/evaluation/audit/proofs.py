"""Repeat a sample of the proofs of a certificate, with more work than the evaluation spent."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from robustly.certification import Certificate, ProvesAgain
from robustly.evaluation.audit.check import Check
from robustly.evaluation.audit.sampling import Sampling
from robustly.evaluation.certificates import prepared, run_certificate
from robustly.evaluation.certified_part import CertifiedPart, as_arrays, from_arrays, joined
from robustly.evaluation.parts import ALONE, Arrays, Task, Work
from robustly.evaluation.stages import EvaluationError
from robustly.evaluation.suites.suite import Suite
from robustly.evaluation.target import EvaluationTarget, no_progress
from robustly.evidence import Evidence
from robustly.evidence.certified_numbers import CertificateTerms
from robustly.evidence.schema import CertificateColumns, Flags, Whole
from robustly.threats import ThreatModel

WORK_FACTOR = 4
"""Work of a repeated proof, as a multiple of the budget of the certificate."""
SECONDS = 300.0
"""Time of the audit after which no further proof of a certificate begins, unless all are repeated."""
_ROUNDING = 1e-6
_TOGETHER = 8  # proofs between two readings of the clock
_NAMED = 5  # ids that a message names


@dataclass(frozen=True)
class Drawn:
    """The proofs to repeat.

    Args:
        claims: number of rows with a proof.
        each_stage: one random row of each stage, `(S,)`.
        sample: random rows, in the order in which they are repeated, `(M,)`.
    """

    claims: int
    each_stage: Whole
    sample: Whole


def proofs_checks(
    evidence: Evidence, target: EvaluationTarget, suite: Suite, sampling: Sampling
) -> Iterator[Check]:
    """Repeat proofs of every certificate that the evidence and the suite have.

    The rows are drawn at random, another sample in each audit. It has at least one row of every stage, and ends
    early only by the audit's own time: nothing in the evidence changes how many proofs are repeated. Rows that are
    neither verified nor have a radius claim nothing.

    Args:
        evidence: the evidence.
        target: the model, the data and the threat.
        suite: the suite, from a source other than the evidence.
        sampling: the guarantee.
    """
    order = sampling.order(len(evidence.table), target.crew)
    for name, certificate in suite.certificates.items():
        if name in evidence.table.certificates:
            drawn = draw(evidence.table.certificates[name], order, sampling)
            yield _proofs_check(evidence, target, name, certificate, drawn, sampling)


def draw(columns: CertificateColumns, order: Whole, sampling: Sampling) -> Drawn:
    """The rows whose proofs are repeated.

    Args:
        columns: rows of the certificate.
        order: random order of the rows.
        sampling: the guarantee.
    """
    claims: Flags = columns.verified | (columns.radius > 0)
    rows = order[claims[order]]
    stages = columns.stage[rows]
    first = [rows[np.flatnonzero(stages == stage)[0]] for stage in dict.fromkeys(stages.tolist())]
    return Drawn(len(rows), np.array(first, dtype=np.int64), rows[: sampling.size(len(rows))])


def _proofs_check(
    evidence: Evidence,
    target: EvaluationTarget,
    name: str,
    certificate: Certificate,
    drawn: Drawn,
    sampling: Sampling,
) -> Check:
    columns, terms = evidence.table.certificates[name], evidence.summary.terms[name]
    more = ""
    if isinstance(certificate, ProvesAgain):
        certificate, more = certificate.again(WORK_FACTOR), f" with {WORK_FACTOR} times the work"
        target = _at_stated_radii(target, columns)
    parts: list[CertifiedPart] = []
    until = time.monotonic() + (np.inf if sampling.everything else SECONDS)
    done = 0
    try:
        harder = prepared(target, certificate, name)
        batches, size = [*_batches(drawn)], target.crew.size
        for group in (batches[first : first + size] for first in range(0, len(batches), size)):
            if parts and target.crew.first(lambda: int(time.monotonic() >= until)):
                break
            todo = [{"rows": rows} for rows, _ in group if len(rows)]
            task = Task("proofs repeated", name, target.threat.extent_text)
            found = target.crew.share(task, todo, _again(target, harder, name))
            parts += [from_arrays(one) for one in found]
            done += sum(counted for _, counted in group)
    except EvaluationError as error:
        return Check(f"certificate {name}: proofs repeated{more}", str(error))
    if not parts:
        return Check(f"certificate {name}: it proves nothing")
    again = joined(parts, np.concatenate([part.ids for part in parts]))
    repeated = f"{len(again.ids)} of {drawn.claims} proofs"
    place = {one: row for row, one in enumerate(evidence.table.examples.id.tolist())}
    rows = np.array([place[one] for one in again.ids.tolist()], dtype=np.int64)
    problem = _terms_problem(again.terms, terms)
    if not problem:
        of_label = columns.prediction[rows] == evidence.table.examples.label[rows]
        wrong = _unproved(columns, rows, again.columns, of_label, exact=not more)
        problem = f"{int(wrong.sum())} are not reproduced ({_ids(again.ids[wrong])})" if wrong.any() else ""
    start = f"{repeated} of {name} were repeated{more}"
    statement = start + _conclusion(done, drawn.claims, sampling)
    return Check(f"certificate {name}: {repeated} repeated{more}", problem, statement=statement)


def _again(target: EvaluationTarget, certificate: Certificate, name: str) -> Work:
    """The work of a process on batches of proofs."""
    alone = replace(target, crew=ALONE)

    def work(part: Arrays) -> Arrays:
        places = torch.from_numpy(part["rows"]).to(target.data.device)
        return as_arrays(run_certificate(alone, certificate, name, no_progress, rows=places))

    return work


def _batches(drawn: Drawn) -> Iterator[tuple[Whole, int]]:
    """Batches of distinct rows, one row of each stage first, each with the number of rows of the sample it ends."""
    seen = set(drawn.each_stage.tolist())
    if seen:
        yield drawn.each_stage, 0
    for first in range(0, len(drawn.sample), _TOGETHER):
        batch = drawn.sample[first : first + _TOGETHER]
        yield batch[[row not in seen for row in batch.tolist()]], len(batch)


def _terms_problem(found: CertificateTerms, stated: CertificateTerms) -> str:
    risk = found.failure_probability or 0.0
    if found.certifies != stated.certifies:
        return f"it certifies {found.certifies}, not {stated.certifies}"
    if stated.failure_probability is not None and risk > stated.failure_probability:
        return f"its failure probability is {risk:g}, not {stated.failure_probability:g}"
    return ""


def _at_stated_radii(target: EvaluationTarget, stated: CertificateColumns) -> EvaluationTarget:
    """The target with the stated radius of each example as threat, at least the full size where it is verified."""
    threat = target.threat
    if not isinstance(threat, ThreatModel):
        return target
    limit, radius = float(threat.extent), stated.radius * (1 - _ROUNDING)
    radius = np.floor(stated.radius) if threat.norm == "l0" else radius
    sizes = np.where(stated.verified, np.maximum(radius, limit), np.where(radius > 0, radius, limit))
    width = threat.box[1] - threat.box[0]
    sizes = np.minimum(sizes, width) if threat.norm == "linf" else sizes
    return replace(target, threat=threat.with_epsilon(torch.from_numpy(sizes).to(target.data.device)))


def _unproved(
    stated: CertificateColumns, rows: Whole, again: CertificateColumns, of_label: Flags, *, exact: bool
) -> Flags:
    """Mask of the repeated rows whose statement is not proved again.

    Args:
        stated: all rows of the evidence.
        rows: rows that were repeated.
        again: their results.
        of_label: whether the stated class is the label; of another class there is a radius, but no verdict.
        exact: whether the same certificate ran, which must give the same radius and bound; else with more work and
            the stated radius as threat, which must verify the label.
    """
    radius, verified = stated.radius[rows], stated.verified[rows]
    wrong: Flags = stated.prediction[rows] != again.prediction
    if not exact:
        return wrong | np.where(of_label, ~again.verified, again.radius < radius * (1 - 2 * _ROUNDING))
    wrong = wrong | (verified & ~again.verified)
    bound = stated.lower_bound[rows]
    wrong = wrong | ~np.isclose(radius, again.radius, rtol=1e-4, atol=1e-6)
    return wrong | (verified & ~np.isclose(bound, again.lower_bound, rtol=1e-3, atol=1e-5, equal_nan=True))


def _conclusion(done: int, claims: int, sampling: Sampling) -> str:
    """The conclusion from `done` random proofs on all of them, as the rest of a sentence."""
    if done >= claims:
        return "."
    share = sampling.detected(claims, done)
    if share is None:
        return ", too few for a statement on the others."
    chance = f"this audit would fail with probability {100 * sampling.confidence:g} %"
    return f": if {100 * share:.2g} % or more of all were false, {chance}."


def _ids(ids: Sequence[int] | Whole) -> str:
    shown = ", ".join(str(one) for one in list(ids)[:_NAMED])
    return f"ids {shown}" + (", ..." if len(ids) > _NAMED else "")
