"""Attack unbroken examples again, and certify all examples again."""

import math
import secrets
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from robustly.attacks import Attack
from robustly.certification import Certificate
from robustly.evaluation.audit.check import Check
from robustly.evaluation.certificates import run_certificate
from robustly.evaluation.confirmation import broken_by
from robustly.evaluation.recording import certificate_columns
from robustly.evaluation.suites.suite import Suite
from robustly.evaluation.target import EvaluationTarget, no_progress
from robustly.evidence import Evidence
from robustly.evidence.schema import AttackColumns, CertificateColumns, Flags
from robustly.evidence.summary import CertificateTerms
from robustly.randomness import shuffled

_RERUN_PASSES = 300  # attacks that cost more passes per image are run again on fewer examples
_RERUN_SHARE = 0.02  # share of the examples attacked again that rounding may break


def rerun_checks(evidence: Evidence, target: EvaluationTarget, suite: Suite, count: int) -> Iterator[Check]:
    """Attack some unbroken examples and all examples with NaN outputs again, and certify all examples again.

    Every audit draws other examples, so that wrong rows cannot avoid it.
    """
    table = evidence.table
    for name, attack in suite.attacks.items():
        if name in table.attacks:  # `suite_check` reports other differences
            yield from _attack(target, name, attack, table.attacks[name], count)
    curve, drawn = suite.attacks.get(suite.curve or ""), evidence.summary.metrics.security_curve
    if drawn is not None and curve is not None and table.curve is not None:
        worst, distance = 0, table.curve.distance
        for size in drawn.epsilon[1:]:
            there = replace(target, threat=target.threat.with_extent(size))
            sample = _drawn(distance > size + 1e-6, max(1, count // 4))
            fallen, tried = _attacked_again(there, curve, suite.curve or "", sample)
            worst = max(worst, fallen - max(1, math.floor(_RERUN_SHARE * tried)))
        yield Check(
            "security curve: unbroken examples attacked again",
            "more are broken than rounding explains" if worst > 0 else "",
        )
    for name, certificate in suite.certificates.items():
        if name in table.certificates:
            columns, terms = table.certificates[name], evidence.summary.terms[name]
            yield Check(f"certificate {name}", _certificate_problem(target, name, certificate, columns, terms))


def _attack(
    target: EvaluationTarget, name: str, attack: Attack, columns: AttackColumns, count: int
) -> Iterator[Check]:
    unbroken = columns.tried & ~columns.broken
    passes = (columns.forwards + columns.backwards)[unbroken]
    mean = float(passes.mean()) if len(passes) else 1.0
    affordable = math.ceil(count * min(1.0, _RERUN_PASSES / max(mean, 1.0)))
    fallen, tried = _attacked_again(target, attack, name, _drawn(unbroken, affordable))
    yield Check(
        f"{name}: {tried} of {int(unbroken.sum())} unbroken examples attacked again",
        f"{fallen} broke" if fallen > max(1, math.floor(_RERUN_SHARE * tried)) else "",
    )
    invalid = torch.from_numpy(np.flatnonzero(columns.invalid))
    if len(invalid):
        fallen, tried = _attacked_again(target, attack, name, invalid)
        yield Check(
            f"{name}: {tried} examples without an output attacked again",
            "" if fallen == tried else "some have one",
        )


def _certificate_problem(
    target: EvaluationTarget,
    name: str,
    certificate: Certificate,
    stated: CertificateColumns,
    terms: CertificateTerms,
) -> str:
    """The difference between a certificate and the stated one, or an empty text.

    Counterexamples have a separate check and need not be found again. Verdicts that are neither verified nor
    falsified may differ, because they depend on the available time.
    """
    result = run_certificate(target, certificate, name, no_progress)
    if result.certifies != terms.certifies:
        return f"it certifies {result.certifies}, not {terms.certifies}"
    if terms.failure_probability is not None and result.failure_probability > terms.failure_probability:
        return f"its failure probability is {result.failure_probability:g}, not {terms.failure_probability:g}"
    again = certificate_columns(result)
    wrong = ~np.isclose(stated.radius, again.radius, rtol=1e-4, atol=1e-6)
    wrong |= (stated.prediction != again.prediction) | (stated.verified & ~again.verified)
    return f"{int(wrong.sum())} verdicts are not reproduced" if wrong.any() else ""


def _drawn(mask: Flags, count: int) -> Tensor:
    """Up to `count` rows of a mask, drawn with random numbers of the operating system."""
    rows = torch.from_numpy(np.flatnonzero(mask))
    return rows[shuffled(len(rows), secrets.randbits(62))[:count]].sort().values


def _attacked_again(target: EvaluationTarget, attack: Attack, name: str, sample: Tensor) -> tuple[int, int]:
    """The number of rows of a sample that an attack breaks, and the size of the sample."""
    return int(broken_by(target, attack, sample.to(target.data.images.device), name).sum()), len(sample)
