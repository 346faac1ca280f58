"""Audit an evaluation: every number from the rows, every row from the images and the weights."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from robustly.evaluation.audit.attacks import attacks_checks
from robustly.evaluation.audit.certificates import certificates_checks
from robustly.evaluation.audit.check import Check
from robustly.evaluation.audit.curve import curve_check
from robustly.evaluation.audit.identity import (
    clean_check,
    description_check,
    files_check,
    findings_check,
    gallery_check,
    identity_checks,
    suite_check,
)
from robustly.evaluation.audit.numbers import numbers_check
from robustly.evaluation.audit.rerun import rerun_checks
from robustly.evaluation.diagnostics import cheap_findings, masking_suspected
from robustly.evaluation.recording import stored_threat
from robustly.evaluation.suites.suite import Suite
from robustly.evaluation.target import EvaluationTarget
from robustly.evidence import Evidence, EvidenceError, read_evidence
from robustly.evidence.storage import read_summary_fields


@dataclass(frozen=True)
class Audit:
    """All checks of an evaluation, in order."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """True if every check passed."""
        return all(check.passed for check in self.checks)


def audit(folder: Path, target: EvaluationTarget, suite: Suite | None, *, rerun: int = 32) -> Audit:
    """Recompute all numbers and verdicts of an evaluation.

    The files must have the hashes of the summary, and data and weights must be the named ones. Every image of a
    broken example must lie in the threat set and be misclassified. Rows must agree with the images, and numbers
    with the rows. Counterexamples of certificates must break the model. Certificates are computed again. A random
    sample of the unbroken examples is attacked again, a new one in each audit.

    Args:
        folder: folder of the evaluation.
        target: the model and the data, loaded independently of the evidence. Threat, seed and batch size are taken
            from the evidence.
        suite: the suite of the evaluation, from a source other than the evidence. None fails the audit, because
            unbroken and certified examples could not be checked again.
        rerun: number of unbroken examples to attack again with each attack.
    """
    try:
        evidence = read_evidence(folder)
        checks = tuple(_checks(folder, evidence, target, suite, rerun))
    except EvidenceError as error:
        checks = (Check("the evidence is complete and readable", str(error)),)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        checks = (Check("the evidence has the form it should", f"{type(error).__name__}: {error}"),)
    return Audit(checks)


def _checks(
    folder: Path, evidence: Evidence, target: EvaluationTarget, suite: Suite | None, rerun: int
) -> Iterator[Check]:
    summary, table = evidence.summary, evidence.table
    target = _as_evaluated(target, evidence)
    yield files_check(folder, summary)
    identity = tuple(identity_checks(evidence, target))
    yield from identity
    if not identity[-1].passed:
        return  # rows of another model or of other images cannot be compared
    yield clean_check(table, target)
    findings = cheap_findings(target)
    yield findings_check(summary, findings)
    yield from attacks_checks(evidence, target, bool(masking_suspected(findings)))
    curve = curve_check(evidence, target)
    if curve is not None:
        yield curve
    yield numbers_check(evidence, read_summary_fields(folder))
    yield from certificates_checks(evidence, target)
    yield suite_check(summary, suite)
    yield gallery_check(evidence, target)
    if suite is not None:
        yield description_check(summary, target, suite)
        yield from rerun_checks(evidence, target, suite, rerun)


def _as_evaluated(target: EvaluationTarget, evidence: Evidence) -> EvaluationTarget:
    """The target under the threat, with the seed and the batch size of the evaluation."""
    summary = evidence.summary
    threat = stored_threat(summary.threat, evidence.images.threat)
    return replace(target, threat=threat, seed=summary.suite.seed, batch_size=summary.suite.batch_size)
