"""Audit of what is neither a row nor an image: findings, sentences, names, and the form of mere statements."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from torch import Tensor

from robustly.evaluation.audit.check import Check
from robustly.evaluation.derived import derived_warnings, unconfirmed_counterexamples, unconfirmed_warning
from robustly.evaluation.diagnostics import masking_suspected
from robustly.evaluation.sentinel import SentinelOutcome
from robustly.evidence import Evidence, Finding, Summary
from robustly.evidence.collapse import collapse_words
from robustly.evidence.schema import RULES_SINCE
from robustly.evidence.schema_3 import OLD_RULE

_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")
_FEW_IMAGES = 0.03  # as a share of the images of the diagnostics
_DEVICE = re.compile(r"(cpu|cuda|mps|xpu|hpu)(:\d{1,3})?", re.ASCII)
_PRECISIONS = ("full", "as the suite says")
_LARGEST_BATCH = 1_000_000
_VERSIONS = ("robustly", "torch", "python")


@dataclass(frozen=True)
class Named:
    """The names that a run gives to model and data; evidence must state the same.

    Args:
        model: name of the architecture.
        checkpoint: file of the weights.
        source: source of the data.
        split: part of the data set.
    """

    model: str
    checkpoint: str | None
    source: str
    split: str | None = "test"


def statement_checks(
    evidence: Evidence, clean: Tensor, findings: Sequence[Finding], named: Named | None
) -> list[Check]:
    """All checks of statements.

    Args:
        evidence: the evidence.
        clean: logits of the clean images, `(N, K)`.
        findings: the cheap diagnostics, computed again.
        named: names that the run gives; None without a run.
    """
    summary = evidence.summary
    return [
        _findings_check(evidence, findings),
        _masking_check(evidence, findings),
        _warnings_check(evidence, clean),
        Check("names of model and data", "" if named is None else _name_problem(summary, named)),
        Check("what is stated has its form", _form_problem(summary)),
    ]


def _sentinels(evidence: Evidence) -> list[SentinelOutcome]:
    """The outcome of every sentinel that ran, from the rows."""
    table, found = evidence.table, []
    before = ~table.correct
    for attack in evidence.summary.suite.attacks:
        columns = table.attacks[attack.name]
        tried = columns.tried
        if attack.plan.sentinel and tried.any():
            broken = int(columns.broken[tried].sum())
            unbroken = int((~before).sum())
            found.append(SentinelOutcome(attack.name, attack.title, broken, int(tried.sum()), unbroken, len(table)))
        before = before | columns.broken
    return found


def _findings_check(evidence: Evidence, cheap: Sequence[Finding]) -> Check:
    expected = [*cheap, *(one.finding for one in _sentinels(evidence))]
    stated = evidence.summary.findings
    name = "the diagnostics are reproduced"
    if evidence.summary.schema < RULES_SINCE:
        return Check(name, _older_problem(evidence, cheap), _older_note(evidence.summary))
    if [one.id for one in stated] != [one.id for one in expected]:
        return Check(name, "other tests are stated than the evaluation makes")
    pairs = zip(expected, stated, strict=True)
    same = [
        _same_finding(one, other) if index < len(cheap) else one == other
        for index, (one, other) in enumerate(pairs)
    ]
    wrong = [one.id for one, is_same in zip(expected, same, strict=True) if not is_same]
    return Check(name, f"other outcome: {', '.join(wrong)}" if wrong else "")


def _older_problem(evidence: Evidence, cheap: Sequence[Finding]) -> str:
    """The problem with findings of an older schema, or an empty text.

    Its tests had other words and limits. A sentinel failed with a single success.
    """
    again = {one.id: one.passed for one in cheap} | {
        one.finding.id: one.broken == 0 for one in _sentinels(evidence)
    }
    stated = {one.id: one.passed for one in evidence.summary.findings}
    missing = [name for name, passed in again.items() if passed is False and name not in stated]
    wrong = [name for name, passed in stated.items() if again.get(name, passed) != passed]
    return f"other outcome: {', '.join([*missing, *wrong])}" if missing or wrong else ""


def _older_masking_problem(evidence: Evidence, cheap: Sequence[Finding]) -> str:
    """The problem with the sentences on masked gradients of an older schema, or an empty text."""
    summary, sentinels = evidence.summary, _sentinels(evidence)
    suspected = bool(masking_suspected(cheap)) or any(one.broken for one in sentinels)
    if bool(summary.masking) != suspected:
        return "they differ"
    known = {one.words for one in summary.findings if one.passed is False}
    forms = [one.suspicion for one in sentinels if one.broken]
    stray = [text for text in summary.masking if text not in known and not any(similar(text, one) for one in forms)]
    return f"no failed diagnostic has {stray[0][:60]!r}" if stray else ""


def _older_note(summary: Summary) -> str:
    return f"the evidence is of schema {summary.schema}: the words of its diagnostics are stated, not checked"


def _same_finding(one: Finding, other: Finding) -> bool:
    same = (one.passed, one.title, one.threshold) == (other.passed, other.title, other.threshold)
    if one.value is None or other.value is None:
        return same and one.value == other.value and similar(one.words, other.words)
    close = math.isclose(one.value, other.value, rel_tol=0.1, abs_tol=_FEW_IMAGES)
    return same and close and similar(one.words, other.words)


def similar(one: str, other: str) -> bool:
    """Return True if two sentences differ in their numbers by no more than other rounding explains.

    An attack may break one or two other images then; counts differ by as much, and the probabilities with them.
    """
    if _NUMBER.split(one) != _NUMBER.split(other):
        return False
    pairs = zip(_NUMBER.findall(one), _NUMBER.findall(other), strict=True)
    return all(math.isclose(float(a), float(b), rel_tol=0.1, abs_tol=_tolerated(a + b)) for a, b in pairs)


def _tolerated(digits: str) -> float:
    """Difference of two numbers, written one after the other: two images, or a probability that they change."""
    return 2 if digits.isdigit() else 0.3


def _masking_check(evidence: Evidence, cheap: Sequence[Finding]) -> Check:
    name = "the sentences on masked gradients follow from the findings"
    if evidence.summary.schema < RULES_SINCE:
        return Check(name, _older_masking_problem(evidence, cheap))
    expected = list(masking_suspected(cheap))
    for outcome in _sentinels(evidence):
        expected += outcome.suspicions
    stated = evidence.summary.masking
    same = len(stated) == len(expected) and all(map(similar, expected, stated))
    return Check(name, "" if same else "they differ")


def _warnings_check(evidence: Evidence, clean: Tensor) -> Check:
    """Check that derived warnings are there, and others have the form of those that cannot be derived."""
    name = "the warnings are those of the evaluation"
    summary = evidence.summary
    expected = list(derived_warnings(clean, summary.metrics.invalid, summary.failures))
    collapse = collapse_words(evidence.table.examples, summary.data.classes)
    expected += [collapse] if collapse else []
    rest = [text for text in summary.warnings if text not in expected]
    if [text for text in summary.warnings if text in expected] != expected:  # none missing, none twice
        return Check(name, "a warning is missing")
    forms = [unconfirmed_warning(1)]
    forms += [unconfirmed_counterexamples(1, one.name) for one in summary.suite.certificates]
    forms += [OLD_RULE] if summary.schema < RULES_SINCE else []
    allowed = {_NUMBER.sub("#", form) for form in forms}
    most = sum(int(columns.tried.sum()) for columns in evidence.table.attacks.values()) + len(evidence.table)
    shapes = [_NUMBER.sub("#", text) for text in rest]
    stray = [
        text
        for text, shape in zip(rest, shapes, strict=True)
        if shape not in allowed or shapes.count(shape) > 1 or _count(text) > most
    ]
    return Check(name, f"the evaluation does not write {stray[0][:60]!r}" if stray else "")


def _count(text: str) -> float:
    """The count in a sentence, its first number; 0 for the sentence of older schemas."""
    return 0.0 if text == OLD_RULE else float(_NUMBER.findall(text)[0])


def _name_problem(summary: Summary, named: Named) -> str:
    pairs = {
        "model": (summary.model.name, named.model),
        "checkpoint": (summary.model.checkpoint, named.checkpoint),
        "data source": (summary.data.source, named.source),
        "split": (summary.data.split, named.split),
    }
    wrong = [f"{key} is {own!r}, stated {stated!r}" for key, (stated, own) in pairs.items() if stated != own]
    return "; ".join(wrong)


def _form_problem(summary: Summary) -> str:
    """The problem with the statements that an audit cannot derive, or an empty text."""
    versions = summary.versions.values()
    known = set(summary.suite.names)
    wrong = {
        f"precision should be one of {', '.join(_PRECISIONS)}": summary.precision not in _PRECISIONS,
        "the evaluation writes no note on the data": summary.data.note is not None,
        "the device is not one of PyTorch's": not _DEVICE.fullmatch(summary.device),
        f"versions should be those of {', '.join(_VERSIONS)}": bool(set(summary.versions) - set(_VERSIONS))
        or not all(re.fullmatch(r"\d[\w.+-]{0,39}", text, re.ASCII) for text in versions),
        "durations should be non-negative, one for each attack": bool(set(summary.seconds) - known)
        or not all(value is None or 0 <= value < 1e9 for value in summary.seconds.values()),
        "the time beside the attacks should be non-negative, of known parts": bool(
            set(summary.overhead) - {"tuning", "diagnostics", "curve"}
        )
        or not all(0 <= value < 1e9 for value in summary.overhead.values()),
        "a failure of an attack that the suite does not have": bool(set(summary.failures) - known),
        f"the batch size should be 1 to {_LARGEST_BATCH:,}": not 1 <= summary.suite.batch_size <= _LARGEST_BATCH,
    }
    found = [problem for problem, is_wrong in wrong.items() if is_wrong]
    return "; ".join(found) or _date_problem(summary.created)


def _date_problem(text: str) -> str:
    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        return f"the date {text[:40]!r} is not in ISO format"
    if date.tzinfo is None or date > datetime.now(UTC) + timedelta(days=1):
        return f"the date {text[:40]} lies in the future or has no time zone"
    return ""
