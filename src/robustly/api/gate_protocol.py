"""The decision on a suite of several threats: mean, worst threat and union against limits, and conditions."""

from dataclasses import dataclass, replace
from pathlib import Path

from robustly.api.gate import ANY, Condition, Limits, mean_condition, share_condition, sound, suite_problem
from robustly.evaluation import PROTOCOLS
from robustly.evaluation.suites.protocol import AS_STRONG, without_file
from robustly.evidence import Evidence, EvidenceError, Summary, read_evidence
from robustly.evidence.protocol_result import (
    ProtocolColumn,
    ProtocolResult,
    contradiction,
    protocol_file,
    read_protocol,
    recomputed,
)
from robustly.settings import SettingsError


@dataclass(frozen=True)
class ProtocolGate:
    """All conditions of a gate on a suite of several threats, in order, and the result that they speak of.

    Args:
        conditions: the conditions.
        result: the numbers, as computed from the rows.
        model: name of the network.
        source: source of the images.
    """

    conditions: tuple[Condition, ...]
    result: ProtocolResult
    model: str
    source: str

    @property
    def passed(self) -> bool:
        """True if every condition holds."""
        return all(one.passed for one in self.conditions)


def gate_protocol(run: Path, label: str, limits: Limits) -> ProtocolGate:
    """Decide on a suite of several threats of a run, from its files alone; nothing is attacked again.

    Robust accuracy is that under all threats at once. The numbers are computed again from the rows.

    Args:
        run: folder of the run.
        label: name of the suite's evaluations.
        limits: the limits.

    Raises:
        EvidenceError: a file is missing, cut off or of another schema; evaluations that do not fit together.
        SettingsError: a limit that a suite of several threats does not have.
    """
    stated = read_protocol(protocol_file(run, label))
    _check(limits, stated)
    evidences = {one.evaluation: read_evidence(run / one.evaluation) for one in stated.columns}
    result = recomputed(run, stated)
    conditions = [
        _sound(run, stated, evidences),
        _suites(result.columns, evidences, limits),
        _threats(result, evidences, limits),
        _attacks(result, limits),
        _masking(result, limits),
    ]
    worst = next(one for one in result.tested if one.threat == result.worst)
    for name, share, least in (
        ("clean accuracy", result.clean, limits.clean),
        ("robust accuracy under all threats", result.union, limits.robust),
        (f"accuracy under the worst threat, {worst.threat}", worst.robust, limits.worst),
    ):
        conditions += [] if least is None else [share_condition(name, share, least, limits.confident)]
    if limits.mean is not None:
        conditions.append(mean_condition(result.mean_words, result.mean, limits.mean, limits.confident))
    first = next(iter(evidences.values())).summary
    return ProtocolGate(tuple(conditions), result, first.model.name, first.data.source)


def _check(limits: Limits, stated: ProtocolResult) -> None:
    name = stated.terms.protocol
    if limits.certified is not None:
        raise SettingsError(f"{name} has no certificates: leave out --certified")
    if limits.threat is not None:
        raise SettingsError(f"{name} has several threats: leave out --under")
    if limits.suite not in (Limits.suite, name, ANY):
        raise SettingsError(f"--suite {limits.suite} is not comparable with {name}: leave it out")


def _sound(run: Path, stated: ProtocolResult, evidences: dict[str, Evidence]) -> Condition:
    parts = {name: sound(run / name, evidence) for name, evidence in evidences.items()}
    wrong = [f"{name}: {part.words}" for name, part in parts.items() if not part.passed]
    try:
        problem = contradiction(run, stated)
    except EvidenceError as error:
        problem = str(error)
    wrong += [problem] if problem else []
    good = f"files, rows and numbers of {len(evidences)} evaluations belong together"
    return Condition("evidence", not wrong, "; ".join(wrong) or good)


def _suites(columns: tuple[ProtocolColumn, ...], evidences: dict[str, Evidence], limits: Limits) -> Condition:
    """Condition that the attacks under every threat are those of the suites' names."""
    wrong = [
        f"{one.evaluation}: {problem}"
        for one in columns
        if (problem := suite_problem(evidences[one.evaluation].summary))
    ]
    wrong += [
        f"{one.evaluation} under a threat of the training is by {one.suite}"
        for one in columns
        if one.role == "trained" and not _is_strong(evidences[one.evaluation].summary)
    ]
    words = "; ".join(wrong) or f"the attacks are those of {', '.join(dict.fromkeys(one.suite for one in columns))}"
    return Condition("suite", not wrong, words)


def _is_strong(summary: Summary) -> bool:
    """Return True for a suite by which a protocol evaluates a threat of the training, or takes it over."""
    return summary.composed is None and summary.suite.name.partition("+")[0] in AS_STRONG


def _threats(result: ProtocolResult, evidences: dict[str, Evidence], limits: Limits) -> Condition:
    """Condition that the threats are those of the protocol, not chosen by the user, unless any are allowed."""
    tested = ", ".join(one.threat for one in result.tested)
    left_out = f"; left out: {'; '.join(result.left_out)}" if result.left_out else ""
    protocol = PROTOCOLS.get(result.terms.protocol)
    if not result.terms.chosen and protocol is not None:
        channels, *sides = next(iter(evidences.values())).images.gallery.images.shape[1:]
        versions = protocol.versions((channels, sides[0], sides[1]))
        found = [without_file(one.threat) for one in result.tested]
        known = {one.threat for one in result.columns} | {text.partition(": ")[0] for text in result.left_out}
        if not any(
            set(found) <= set(texts) and all(text in found or text in known for text in texts) for texts in versions
        ):
            return Condition("threats", False, f"not those of {protocol.name}: {tested}{left_out}")
    if not result.terms.chosen:
        return Condition("threats", True, f"those of {result.terms.protocol}: {tested}{left_out}")
    tail = "allowed" if limits.suite == ANY else "--suite any allows them"
    return Condition("threats", limits.suite == ANY, f"chosen by the user: {tested}; {tail}")


def _attacks(result: ProtocolResult, limits: Limits) -> Condition:
    failed = [f"{title} under {one.threat}" for one in result.columns for title in one.failed]
    if not failed:
        return Condition("attacks", True, f"none failed under {len(result.columns)} threats")
    return Condition("attacks", limits.allow_failed, f"{', '.join(failed)} failed{_allowed(limits.allow_failed)}")


def _masking(result: ProtocolResult, limits: Limits) -> Condition:
    found = [f"{one.threat}: {one.masking[0]}" for one in result.columns if one.masking]
    if not found:
        return Condition("gradient masking", True, "not suspected")
    words = f"suspected{_allowed(limits.allow_masking)}: {found[0]}"
    return Condition("gradient masking", limits.allow_masking, words)


def _allowed(allowed: bool) -> str:
    return "; allowed" if allowed else ""


def with_audit(result: ProtocolGate, passed: bool) -> ProtocolGate:
    """The gate with the condition that an audit of all evaluations passed."""
    words = "every evaluation, and the numbers over all of them" if passed else "a check failed, see above"
    return replace(result, conditions=(*result.conditions, Condition("audit", passed, words)))
