"""Audit an evaluation: every number from the rows, every row from the images and the weights."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from robustly.evaluation.audit.attacks import attacks_checks
from robustly.evaluation.audit.certificates import certificates_checks
from robustly.evaluation.audit.check import Check
from robustly.evaluation.audit.costs import costs_checks
from robustly.evaluation.audit.curve import curve_check
from robustly.evaluation.audit.fields import fields_check
from robustly.evaluation.audit.identity import (
    clean_check,
    description_check,
    files_check,
    gallery_check,
    identity_checks,
    parts_check,
    picture_words_check,
    suite_check,
)
from robustly.evaluation.audit.numbers import numbers_check
from robustly.evaluation.audit.proofs import proofs_checks
from robustly.evaluation.audit.rerun import rerun_checks
from robustly.evaluation.audit.rounding import Rounding
from robustly.evaluation.audit.sampling import Sampling
from robustly.evaluation.audit.statements import Named, statement_checks
from robustly.evaluation.curve import recorded_curve
from robustly.evaluation.diagnostics import cheap_findings, masking_suspected
from robustly.evaluation.diagnostics.model_checks import GIVEN_TRAINING
from robustly.evaluation.recording import stored_threat
from robustly.evaluation.suites.suite import Suite
from robustly.evaluation.target import EvaluationTarget
from robustly.evidence import Evidence, EvidenceError, Finding, read_evidence
from robustly.evidence.audit_record import AuditRecord
from robustly.evidence.costs import digest_of_costs
from robustly.evidence.provenance import now, software_versions
from robustly.evidence.schema import SUMMARY
from robustly.evidence.storage import read_summary_fields
from robustly.files import file_sha256
from robustly.models.modes import modes_kept


@dataclass(frozen=True, repr=False)
class Audit:
    """All checks of an evaluation, in order.

    Args:
        checks: the checks.
        guarantee: the statement of a passed audit on the standing verdicts, as a sentence.
    """

    checks: tuple[Check, ...]
    guarantee: str

    @property
    def passed(self) -> bool:
        """True if every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the checks that failed."""
        return tuple(check.name for check in self.checks if not check.passed)

    def __repr__(self) -> str:
        count = len(self.checks)
        words = f"Audit {'passed' if self.passed else 'FAILED'}: {count - len(self.failed)} of {count} checks"
        wrong = [f"  FAILED {one.name}: {one.problem}" for one in self.checks if not one.passed]
        return "\n".join([words, *wrong, *([f"  {self.guarantee}"] if self.passed else [])])

    def record(self, folder: Path, notes: tuple[str, ...] = ()) -> AuditRecord:
        """The outcome as it is kept beside the evidence.

        Args:
            folder: folder of the audited evidence.
            notes: remarks for readers.
        """
        return AuditRecord(
            passed=self.passed,
            checks=len(self.checks),
            failed=self.failed,
            guarantee=self.guarantee,
            notes=notes,
            created=now(),
            evidence=file_sha256(folder / SUMMARY),
            version=software_versions()["robustly"],
            costs=digest_of_costs(folder),
        )


def audit(
    folder: Path,
    target: EvaluationTarget,
    suite: Suite | None,
    *,
    sampling: Sampling | None = None,
    named: Named | None = None,
) -> Audit:
    """Recompute all numbers and verdicts of an evaluation.

    The files must have the hashes of the summary, and data and weights must be the named ones. Every image of a
    broken example must lie in the threat set and be misclassified. Rows must agree with the images, and numbers
    and sentences with the rows. Counterexamples of certificates must break the model. A random sample of the
    standing examples is attacked again, and a random sample of the proofs is repeated, with more work where the
    certificate allows it. Every audit draws other samples; their size follows from the guarantee, and nothing in
    the evidence changes how hard the audit searches.

    Args:
        folder: folder of the evaluation.
        target: the model and the data, loaded independently of the evidence. Threat, seed and batch size are taken
            from the evidence.
        suite: the suite of the evaluation, from a source other than the evidence. None fails the audit, because
            unbroken and certified examples could not be checked again.
        sampling: the guarantee; None for the default, 2 % with 99 %.
        named: names that the run gives to model and data; None without a run.
    """
    sampling = sampling or Sampling()
    checks: list[Check] = []
    try:
        evidence = read_evidence(folder)
        for check in _checks(folder, evidence, target, suite, sampling, named):
            checks.append(check)
    except EvidenceError as error:
        checks.append(Check("the evidence is complete and readable", str(error)))
    except (KeyError, TypeError, IndexError, ValueError) as error:
        checks.append(Check("the evidence has the form it should", f"{type(error).__name__}: {error}"))
    statements = [check.statement for check in checks if check.statement]
    return Audit(tuple(checks), " ".join([sampling.words(), *statements]))


def _checks(
    folder: Path,
    evidence: Evidence,
    target: EvaluationTarget,
    suite: Suite | None,
    sampling: Sampling,
    named: Named | None,
) -> Iterator[Check]:
    summary, table = evidence.summary, evidence.table
    target = _as_evaluated(target, evidence)
    suite = None if suite is None else recorded_curve(suite, summary.suite)
    yield files_check(folder, summary)
    yield fields_check(folder, summary)
    parts = parts_check(evidence)
    yield parts
    identity = tuple(identity_checks(evidence, target))
    yield from identity
    if not (identity[-1].passed and parts.passed):
        return  # rows of another model or of other images cannot be compared
    clean = target.logits(target.data.floats, torch.arange(len(target.data), device=target.data.device))
    rounding = Rounding.of(clean, target.data.labels)
    yield clean_check(table, clean, rounding)
    with _given_mode(target.model, evidence.summary.findings):
        findings = cheap_findings(target)
    yield from statement_checks(evidence, clean, findings, named)
    yield from attacks_checks(evidence, target, rounding, bool(masking_suspected(findings)))
    curve = curve_check(evidence, target, suite, rounding)
    if curve is not None:
        yield curve
    yield numbers_check(evidence, read_summary_fields(folder))
    yield from certificates_checks(evidence, target)
    yield suite_check(summary, suite)
    yield gallery_check(evidence, target)
    yield from picture_words_check(evidence, target)
    if suite is not None:
        yield description_check(summary, target, suite)
        yield from rerun_checks(evidence, target, suite, sampling, rounding, clean)
        yield from proofs_checks(evidence, target, suite, sampling)
    yield from costs_checks(folder, evidence, target, sampling, rounding)


def _as_evaluated(target: EvaluationTarget, evidence: Evidence) -> EvaluationTarget:
    """The target under the threat, with the seed and the batch size of the evaluation."""
    summary = evidence.summary
    threat = stored_threat(summary.threat, evidence.images.threat)
    return replace(target, threat=threat, seed=summary.suite.seed, batch_size=summary.suite.batch_size)


@contextmanager
def _given_mode(model: nn.Module, stated: Sequence[Finding]) -> Iterator[None]:
    """Switch a model to the mode in which it was given to the evaluation, of which a finding speaks."""
    with modes_kept(model):
        model.train(any(one.id == "eval_mode" and one.words.startswith(GIVEN_TRAINING) for one in stated))
        yield
