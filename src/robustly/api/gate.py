"""The decision on a result: accuracies against limits, and conditions without which they mean little."""

import math
from dataclasses import dataclass
from pathlib import Path

from robustly.api.result import suite_of
from robustly.evaluation.audit.fields import fields_check
from robustly.evaluation.audit.identity import files_check, parts_check, suite_check
from robustly.evaluation.audit.numbers import numbers_check
from robustly.evaluation.diagnostics import masking_suspected
from robustly.evaluation.suites import SUITES
from robustly.evidence import Evidence, Summary, read_evidence
from robustly.evidence.audit_record import AuditRecord
from robustly.evidence.corruption_result import MeanAccuracy
from robustly.evidence.schema import RULES_SINCE
from robustly.evidence.storage import read_summary_fields
from robustly.settings import SettingsError
from robustly.statistics import Proportion
from robustly.threats import Threat, parse_threat

ANY = "any"
"""Word that allows every suite."""
AT_LEAST: dict[str, tuple[str, ...]] = {
    "single_step": ("dynat", "dynat_100", "quick", "standard", "strong", "aa_standard", "aa_plus"),
    "dynat": ("dynat_100", "quick", "standard", "strong", "aa_standard", "aa_plus"),
    "dynat_100": ("standard", "strong", "aa_standard", "aa_plus"),
    "quick": ("standard", "strong", "aa_standard", "aa_plus"),
    "standard": ("strong", "aa_standard", "aa_plus"),
    "strong": (),
    "aa_standard": ("aa_plus",),
    "aa_plus": (),
    "aa_rand": (),
    "semantic": (),
    "tafd_v10": (),
    "tafd_v20": (),
    "unforeseen": (),
}
"""For each suite, the others that count as at least as strong. A missing pair is not ordered."""


@dataclass(frozen=True)
class Limits:
    """The conditions of a gate.

    Args:
        clean: least clean accuracy, in [0, 1]; None for no limit.
        robust: least worst-case accuracy under attack, in [0, 1].
        certified: least certified accuracy, in [0, 1].
        confident: whether the lower end of the 95 % interval decides, not the share itself.
        suite: name of the weakest suite that is allowed, or "any".
        threat: the weakest threat that is allowed, such as "linf:8/255"; None allows every threat.
        allow_masking: whether suspected gradient masking is allowed.
        allow_failed: whether attacks that raised an error are allowed.
        mean: least mean accuracy over the threats of a suite of several, in [0, 1].
        worst: least accuracy under the worst single threat of such a suite, in [0, 1].

    Raises:
        SettingsError: no limit, a limit outside [0, 1], or an unknown suite or threat.
    """

    clean: float | None = None
    robust: float | None = None
    certified: float | None = None
    confident: bool = False
    suite: str = "standard"
    threat: str | None = None
    allow_masking: bool = False
    allow_failed: bool = False
    mean: float | None = None
    worst: float | None = None

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in ("clean", "robust", "certified", "mean", "worst")}
        if all(value is None for value in given.values()):
            raise SettingsError(
                "a gate needs at least one of --clean, --robust and --certified, or --mean and --worst for a suite "
                "of several threats"
            )
        for name, value in given.items():
            if value is not None and not 0 <= value <= 1:  # false for NaN too
                hint = f": write {value / 100:g}" if math.isfinite(value) and 1 < value <= 100 else ""
                raise SettingsError(f"--{name} is a share between 0 and 1, got {value:g}{hint}")
        if not self.suite.isprintable() or not self.suite:
            raise SettingsError(f"--suite takes the name of a suite or 'any', got {self.suite!r}")
        if self.threat is not None:
            parse_threat(self.threat)


@dataclass(frozen=True)
class Condition:
    """One condition of a gate and its outcome.

    Args:
        name: the condition, in a few words.
        passed: whether it holds.
        words: the measured value against the required one, as a sentence.
        value: the share or lower end that decided; None for a condition without a number.
        limit: the least allowed value.
    """

    name: str
    passed: bool
    words: str
    value: float | None = None
    limit: float | None = None


@dataclass(frozen=True)
class Gate:
    """All conditions of a gate, in order, and the summary that they speak of."""

    conditions: tuple[Condition, ...]
    summary: Summary

    @property
    def passed(self) -> bool:
        """True if every condition holds."""
        return all(one.passed for one in self.conditions)


def gate(folder: Path, limits: Limits) -> Gate:
    """Decide on the evaluation in a folder, from its files alone; nothing is attacked again.

    The numbers are computed again from the rows, and the recorded attacks are compared with those of the suite of
    that name. Whether the images break the model is left to an audit, see `audit_condition`.

    Args:
        folder: folder of the evidence.
        limits: the limits.

    Raises:
        EvidenceError: a file is missing, cut off or of another schema.
        SettingsError: neither a known suite nor the one of the evidence is required.
    """
    if limits.mean is not None or limits.worst is not None:
        raise SettingsError(
            "--mean and --worst are for suites of several threats: name one with --as, such as --as unforeseen"
        )
    evidence = read_evidence(folder)
    summary = evidence.summary
    conditions = [sound(folder, evidence), _suite(summary, limits.suite)]
    conditions += [] if limits.threat is None else [_threat(summary, limits.threat)]
    conditions += [_failed(summary, limits.allow_failed), _masking(summary, limits.allow_masking)]
    metrics = summary.metrics
    conditions += [
        share_condition(name, share, least, limits.confident)
        for name, share, least in (
            ("clean accuracy", metrics.clean, limits.clean),
            ("robust accuracy", metrics.attacked, limits.robust),
            ("certified accuracy", metrics.proved, limits.certified),
        )
        if least is not None
    ]
    return Gate(tuple(conditions), summary)


def audit_condition(record: AuditRecord | None) -> Condition:
    """The condition that an audit passed.

    Args:
        record: the audit of the evidence as it is now; None if it could not be made.
    """
    if record is None:
        return Condition("audit", False, "the audit left no record")
    if record.passed:
        return Condition("audit", True, f"{record.checks} checks; {record.guarantee}")
    return Condition("audit", False, f"{len(record.failed)} checks failed: {'; '.join(record.failed)}")


def sound(folder: Path, evidence: Evidence) -> Condition:
    """The condition that files, rows and numbers of an evaluation belong together."""
    summary = evidence.summary
    checks = [files_check(folder, summary), fields_check(folder, summary), parts_check(evidence)]
    if all(one.passed for one in checks):
        checks.append(numbers_check(evidence, read_summary_fields(folder)))
    wrong = [f"{one.name}: {one.problem}" for one in checks if not one.passed]
    silent = set(masking_suspected(evidence.summary.findings)) - set(evidence.summary.masking)
    if silent and evidence.summary.schema >= RULES_SINCE:
        wrong.append(f"a failed diagnostic is not among the sentences on masked gradients: {min(silent)}")
    return Condition("evidence", not wrong, "; ".join(wrong) or "files, rows and numbers belong together")


def _suite(summary: Summary, wanted: str) -> Condition:
    """Condition on the strength of the suite, and that its attacks are those of its name."""
    name, own = summary.suite.name, f"the numbers are those of suite {summary.suite.name}"
    is_known = name in SUITES
    if wanted not in (ANY, name, *SUITES):
        raise SettingsError(f"unknown suite {wanted!r}: allowed are {', '.join(SUITES)}, any, and {name!r}")
    if is_known and (problem := suite_problem(summary)):
        return Condition("suite", False, f"{own}, but {problem}")
    if wanted == ANY:
        return Condition("suite", True, f"{own}; any is allowed")
    if name == wanted or (is_known and name in AT_LEAST.get(wanted, ())):
        return Condition("suite", True, f"{own}; at least {wanted} is required")
    why = "which is weaker" if wanted in AT_LEAST.get(name, ()) else "which is not known to be at least as strong"
    return Condition("suite", False, f"{own}, {why}; at least {wanted} is required (--suite any allows it)")


def suite_problem(summary: Summary) -> str:
    """The difference between the recorded attacks and those of the known suite of that name, or an empty text."""
    suite = suite_of(summary)
    check = suite_check(summary, suite)
    if suite is None or not check.passed:
        return check.problem
    other = [one.name for one in summary.suite.attacks if one.plan != suite.plan(one.name)]
    return f"other examples were selected for {', '.join(other)}" if other else ""


def _threat(summary: Summary, wanted: str) -> Condition:
    own, least = summary.threat, parse_threat(wanted)
    words = f"the threat is {own.text}; at least {wanted} is required"
    return Condition("threat", own.text == str(least) or _is_larger(summary, least), words)


def _is_larger(summary: Summary, least: Threat) -> bool:
    """Return True for a threat of the same kind and box with one limit, at least as large, and no mask of pixels.

    Threats whose text is KIND:SIZE contain all smaller ones of their kind; others have further limits.
    """
    own = summary.threat
    same = own.kind == least.kind and str(least) == f"{least.kind}:{least.extent_text}"
    return (
        same
        and tuple(own.box) == tuple(least.box)
        and own.text == f"{own.kind}:{own.limit_text}"
        and own.limit >= float(least.extent) * (1 - 1e-9)
    )


def _failed(summary: Summary, allowed: bool) -> Condition:
    if not summary.failures:
        return Condition("attacks", True, f"none of {len(summary.suite.attacks)} failed")
    tail = "; allowed" if allowed else ""
    return Condition("attacks", allowed, f"{', '.join(summary.failures)} failed{tail}")


def _masking(summary: Summary, allowed: bool) -> Condition:
    if not summary.masking:
        return Condition("gradient masking", True, "not suspected")
    tail = "; allowed" if allowed else ""
    return Condition("gradient masking", allowed, f"suspected{tail}: {summary.masking[0]}")


def mean_condition(name: str, mean: MeanAccuracy, least: float, confident: bool) -> Condition:
    """The condition on a mean over several threats."""
    value = mean.low if confident else mean.accuracy
    decides = "lower end of the interval" if confident else "mean"
    ends = f"{100 * mean.accuracy:.1f} % [{100 * mean.low:.1f}, {100 * mean.high:.1f}]"
    words = f"{ends}; the {decides} must be at least {100 * least:g} %"
    return Condition(name, value >= least - 1e-12, words, value, least)


def share_condition(name: str, share: Proportion | None, least: float, confident: bool) -> Condition:
    """The condition on a share."""
    if share is None:
        return Condition(name, False, f"not measured; at least {100 * least:g} % is required", None, least)
    value = share.low if confident else share.share
    decides = "lower end of the interval" if confident else "share"
    words = f"{share}, {share.hits} of {share.count}; the {decides} must be at least {100 * least:g} %"
    return Condition(name, value >= least - 1e-12, words, value, least)
