"""The summary of an evaluation: provenance, and numbers computed from the table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from robustly.evidence.certified_numbers import (
    CertificateSummary,
    CertificateTerms,
    CertifiedSummary,
    RobustInterval,
)
from robustly.evidence.provenance import DataRecord, ModelRecord, Seen, SuiteAttack, SuiteRecord, ThreatRecord
from robustly.evidence.records import Inline, Key, ShareKeys, ShareObject, to_json
from robustly.evidence.schema import SCHEMA
from robustly.statistics import Proportion

EightBit = Annotated[Proportion, ShareKeys(None, "accuracy_8bit", "interval_8bit")]
State = Literal["", "failed", "not needed"]


@dataclass(frozen=True)
class AttackSummary:
    """The numbers of one attack.

    Args:
        robust: share of all examples that are unbroken after it.
        robust_8bit: the same for images of 8 bits: against an attacker who saves files.
        mean_forwards: forward passes per attacked example.
        mean_backwards: passes of the gradient to the input per attacked example.
        mean_passes_8bit: forward and backward passes per attacked example for its image of 8 bits.
        tried: number of attacked examples.
    """

    robust: Annotated[Proportion, ShareKeys("robust")]
    robust_8bit: EightBit
    mean_forwards: float
    mean_backwards: float
    mean_passes_8bit: float
    tried: int


@dataclass(frozen=True)
class WorstCaseSummary:
    """Robust accuracy over all attacks, and the same for their images of 8 bits."""

    robust: Annotated[Proportion, ShareKeys("robust")]
    robust_8bit: EightBit


@dataclass(frozen=True)
class ClassSummary:
    """Clean and worst-case robust accuracy of one class."""

    name: Annotated[str, Key("class")]
    clean: Annotated[Proportion, ShareKeys(None, "clean", "clean_interval")]
    robust: Annotated[Proportion, ShareKeys(None, "robust", "robust_interval")]


@dataclass(frozen=True)
class SecurityCurve:
    """Accuracy against the size of the threat; all lists have one length.

    Args:
        count: number of examples, from the first of the data.
        epsilon: sizes, ascending from 0, in the threat's unit.
        epsilon_text: the same as users write them.
        accuracy: shares of unbroken examples.
        low: lower ends of their 95 % intervals.
        high: upper ends.
        certified: shares of all examples that are certified at these sizes; None without a certificate.

    Raises:
        ValueError: the lists differ in length.
    """

    count: int
    epsilon: tuple[float, ...]
    epsilon_text: tuple[str, ...]
    accuracy: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    certified: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        lists = [self.epsilon, self.epsilon_text, self.accuracy, self.low, self.high, self.certified]
        if len({len(one) for one in lists if one is not None}) > 1 or not self.epsilon:
            raise ValueError("its lists should be of one length, at least 1")


@dataclass(frozen=True)
class Metrics:
    """The numbers computed from the table alone; see `robustly.evidence.metrics.metrics`.

    Args:
        clean: share of correctly classified examples.
        attacks: numbers by name of the attack.
        worst_case: numbers of the union over all attacks.
        certified: numbers over all certificates of the model itself; None without one.
        interval: bounds of the robust accuracy; None without a certificate of the model itself.
        certificates: numbers of each certificate, those of other classifiers included.
        per_class: numbers of the classes that have examples.
        security_curve: the security curve, or None.
        invalid: number of examples with NaN or infinite output under attack.
    """

    clean: Annotated[Proportion, ShareObject("correct")]
    attacks: Mapping[str, AttackSummary]
    worst_case: WorstCaseSummary
    certified: CertifiedSummary | None = None
    interval: RobustInterval | None = None
    certificates: tuple[CertificateSummary, ...] = ()
    per_class: tuple[ClassSummary, ...] = ()
    security_curve: SecurityCurve | None = None
    invalid: int = 0

    @property
    def proved(self) -> Proportion | None:
        """Lower end of the headline: certified accuracy of the model itself; None without such a certificate."""
        if self.interval is not None:
            return self.interval.certified
        return None if self.certified is None else self.certified.robust

    @property
    def attacked(self) -> Proportion:
        """Upper end of the headline: share of examples without a counterexample, of attacks or of certificates."""
        return self.worst_case.robust if self.interval is None else self.interval.attacked

    @property
    def undecided(self) -> int:
        """Number of examples between the two ends of the headline."""
        low = 0 if self.proved is None else self.proved.hits
        return max(self.attacked.hits - low, 0) if self.interval is None else self.interval.undecided


@dataclass(frozen=True)
class Finding:
    """The outcome of one diagnostic.

    Args:
        id: "D1" to "D12", the name of a check of the model, or "sentinel:NAME" of an attack.
        title: the tested property, as a statement.
        passed: whether the property holds; None if it could not be decided.
        value: the measured value, a finite number, or None.
        threshold: the values that pass.
        words: sentences on the result and its meaning.
    """

    id: str
    title: str
    passed: bool | None
    value: float | None
    threshold: str
    words: str


@dataclass(frozen=True)
class AttackOutcome:
    """An attack of the suite with its numbers.

    Args:
        attack: entry of the suite.
        numbers: numbers of the attack.
        seconds: duration; None if it was not recorded.
        state: "failed" or "not needed" if the numbers have no meaning; else empty.
        seen: "training" or "selection" if the model was trained, or its epoch selected, with this kind of attack.
    """

    attack: SuiteAttack
    numbers: AttackSummary
    seconds: float | None = None
    state: State = ""
    seen: Seen | None = None


@dataclass(frozen=True)
class Summary:
    """The content of `summary.json`.

    Args:
        model: the tested network.
        data: the examples.
        threat: the threat model.
        suite: the attacks and certificates.
        metrics: the numbers computed from the table; their keys are among those of the summary.
        findings: outcomes of the diagnostics.
        masking: sentences on suspected gradient masking; empty without suspicion.
        failures: error messages of attacks that raised.
        seconds: time of each attack.
        overhead: seconds of the parts beside the attacks: "tuning", "diagnostics" and "curve"; empty if unknown.
        picture_words: perturbations of the report's pictures in words ("rotated by 12.3 degrees clockwise"), by
            attack and id; empty for Lp balls.
        warnings: sentences for readers.
        precision: "full", or "as the suite says" where searches may have run in bfloat16.
        run: name of the run; empty without a run.
        created: time of the evaluation, in ISO format.
        device: device of the model.
        versions: versions of the software.
        composed: stages of a composed suite, as the user wrote them.
        seen_attacks: by name, the attacks of a kind that the model was trained, or its epoch selected, with; None
            if unknown.
        files: hashes of the other two files; filled in on writing.
        schema: version of the format.

    Raises:
        ValueError: the attacks of the metrics are not those of the suite.
    """

    model: ModelRecord
    data: DataRecord
    threat: ThreatRecord
    suite: SuiteRecord
    metrics: Annotated[Metrics, Inline()]
    findings: tuple[Finding, ...] = ()
    masking: tuple[str, ...] = ()
    failures: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float | None] = field(default_factory=dict)
    overhead: Mapping[str, float] = field(default_factory=dict)
    picture_words: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    precision: str = "full"
    run: str = ""
    created: str = ""
    device: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    composed: Mapping[str, Mapping[str, object]] | None = None
    seen_attacks: Mapping[str, Seen] | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if set(self.suite.names) != set(self.metrics.attacks):
            listed, numbers = ", ".join(self.suite.names), ", ".join(self.metrics.attacks)
            raise ValueError(f"attacks should be those of the suite ({listed}), but are {numbers}")

    def __getitem__(self, key: str) -> Any:
        """The value that `summary.json` holds under a key, as plain values.

        Raises:
            KeyError: a key that the file does not have.
        """
        return to_json(self)[key]

    @property
    def outcomes(self) -> tuple[AttackOutcome, ...]:
        """The attacks in the order of the suite, with their numbers."""
        return tuple(self._outcome(attack) for attack in self.suite.attacks)

    @property
    def overhead_words(self) -> str:
        """A sentence on the time of diagnostics, tuning and curve beside that of the attacks; empty if unknown."""
        if not self.overhead:
            return ""
        total = sum(self.overhead.values()) + sum(value or 0.0 for value in self.seconds.values())
        parts = [
            f"{part} {taken:.1f} s ({100 * taken / max(total, 1e-9):.0f} %)"
            for part, taken in self.overhead.items()
        ]
        return f"attacks, diagnostics, tuning and curve took {total:.1f} s, of these {', '.join(parts)}"

    @property
    def terms(self) -> dict[str, CertificateTerms]:
        """The conditions of the certificates by their names."""
        return {one.name: one.terms for one in self.metrics.certificates}

    def _outcome(self, attack: SuiteAttack) -> AttackOutcome:
        numbers = self.metrics.attacks[attack.name]
        state: State = "not needed" if attack.plan.on_suspicion and numbers.tried == 0 else ""
        state = "failed" if attack.name in self.failures else state
        seen = (self.seen_attacks or {}).get(attack.name)
        return AttackOutcome(attack, numbers, self.seconds.get(attack.name), state, seen)

    @property
    def seen_words(self) -> str:
        """A statement on the attacks that the model has seen in training or selection."""
        if self.seen_attacks is None:
            return "unknown: the model was trained elsewhere"
        groups = {
            "in training": [one.attack.title for one in self.outcomes if one.seen == "training"],
            "in the selection of the epoch": [one.attack.title for one in self.outcomes if one.seen == "selection"],
        }
        found = [f"{', '.join(titles)} ({where})" for where, titles in groups.items() if titles]
        return "; ".join(found) or "none of the suite"
