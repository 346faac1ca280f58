"""What a report knows about a run: plain frozen values, read from the run's files by `reading`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robustly.budgets import Spent
from robustly.statistics import wilson_interval


class ReportError(ValueError):
    """A run folder that no report can be made of; the message is one sentence for its owner."""


@dataclass(frozen=True)
class Proportion:
    """A share of examples with its 95 % Wilson interval; `low` and `high` in [0, 1]."""

    correct: int
    count: int
    low: float
    high: float

    @property
    def share(self) -> float:
        """The share itself, in [0, 1]."""
        return self.correct / self.count

    def clearly_above(self, other: "Proportion") -> bool:
        """Whether the two intervals do not even touch, this one being the higher."""
        return self.low > other.high


def wilson(correct: int, count: int) -> Proportion:
    """The share `correct / count` with its 95 % Wilson interval."""
    low, high = wilson_interval(correct, count)
    return Proportion(correct, count, low, high)


@dataclass(frozen=True)
class ModelFacts:
    """Which network was tested: its architecture, size, weights file and checkpoint."""

    name: str
    parameters: int | None = None
    weights_sha256: str | None = None
    checkpoint: str | None = None


@dataclass(frozen=True)
class DataFacts:
    """Which examples the network was tested on."""

    source: str
    split: str | None
    count: int
    sha256: str | None = None
    classes: tuple[str, ...] = ()
    note: str | None = None

    def class_name(self, label: int) -> str:
        """The name of a class, or its number where no name is known."""
        return self.classes[label] if 0 <= label < len(self.classes) else str(label)


@dataclass(frozen=True)
class ThreatFacts:
    """What the adversary may do, in numbers and in words."""

    text: str
    norm: str
    epsilon: float
    epsilon_text: str
    box: tuple[float, float] = (0.0, 1.0)
    words: str = ""


@dataclass(frozen=True)
class AttackResult:
    """What one attack of the suite left standing, and what it cost per example.

    `state` says why it has no number: "failed" or "not needed".
    """

    name: str
    title: str
    settings: Mapping[str, object]
    robust: Proportion
    robust_8bit: Proportion | None = None
    forwards: float | None = None
    backwards: float | None = None
    seconds: float | None = None
    state: str = ""


@dataclass(frozen=True)
class Certified:
    """How many examples are proved to be classified rightly within `radius`."""

    name: str
    robust: Proportion
    radius: float | None = None


@dataclass(frozen=True)
class SecurityCurve:
    """Accuracy under attack for a grid of epsilons; all the tuples have one length."""

    attack: str
    epsilon: tuple[float, ...]
    epsilon_text: tuple[str, ...]
    accuracy: tuple[float | None, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]
    certified: tuple[float | None, ...] | None = None


@dataclass(frozen=True)
class ClassResult:
    """Clean and worst-case robust accuracy of one class."""

    name: str
    clean: Proportion
    robust: Proportion


@dataclass(frozen=True)
class Finding:
    """One check of whether the attacks can be trusted; `passed` is None where it could not be decided."""

    id: str
    title: str
    passed: bool | None
    value: float | None
    threshold: str
    words: str


@dataclass(frozen=True)
class Evaluation:
    """The whole of `evaluation/summary.json`."""

    run: str | None
    created: str
    model: ModelFacts
    data: DataFacts
    threat: ThreatFacts
    suite: str
    mode: str
    seed: int | None
    clean: Proportion
    attacks: tuple[AttackResult, ...]
    worst_case: Proportion
    worst_case_8bit: Proportion | None
    certified: Certified | None
    curve: SecurityCurve | None
    per_class: tuple[ClassResult, ...]
    invalid: int = 0
    warnings: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    device: str | None = None
    findings: tuple[Finding, ...] = ()
    masking: tuple[str, ...] = ()


@dataclass(frozen=True)
class Training:
    """`metrics.csv` as columns of equal length (NaN where a cell is empty) and `status.json`."""

    columns: Mapping[str, NDArray[np.float64]]
    state: str | None = None
    best_epoch: int | None = None
    seconds: float | None = None
    message: str = ""

    def column(self, name: str) -> NDArray[np.float64] | None:
        """A column that holds at least one number, else None."""
        values = self.columns.get(name)
        return None if values is None or not np.isfinite(values).any() else values


@dataclass(frozen=True)
class AttackRecord:
    """The columns of one attack in the evidence table, each `(N,)`."""

    broken: NDArray[np.bool_]
    distance: NDArray[np.float64] | None
    prediction: NDArray[np.int64] | None
    spent: Spent | None = None


@dataclass(frozen=True)
class Examples:
    """The evidence table: one entry per example, each array `(N,)`."""

    ids: NDArray[np.int64]
    label: NDArray[np.int64]
    clean_prediction: NDArray[np.int64]
    attacks: Mapping[str, AttackRecord]
    worst_case_broken: NDArray[np.bool_] | None

    @property
    def clean_right(self) -> NDArray[np.bool_]:
        """Which examples are classified rightly without any attack."""
        correct: NDArray[np.bool_] = self.label == self.clean_prediction
        return correct

    def broken_by(self, attack: str) -> NDArray[np.bool_]:
        """Which rightly classified examples the attack turned."""
        turned: NDArray[np.bool_] = self.attacks[attack].broken & self.clean_right
        return turned


@dataclass(frozen=True)
class Pictures:
    """Clean originals `(G, C, H, W)` and, by attack, the adversarial pictures of their ids."""

    ids: NDArray[np.int64]
    originals: NDArray[np.float32]
    adversarial: Mapping[str, Mapping[int, NDArray[np.float32]]]


@dataclass(frozen=True)
class Spread:
    """How a quantity is spread over examples; the histogram's last bin also holds what lies above it."""

    count: int
    median: float
    low: float
    high: float
    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Gradients:
    """Input gradients on `count` clean pictures: measures by name, and first-order radii of the `right` ones."""

    count: int
    correct: int
    measures: Mapping[str, Spread]
    radius: Spread | None
    beyond: int
    unreachable: int
    epsilon: float


@dataclass(frozen=True)
class Surface:
    """A loss surface on a square grid; rows belong to the second direction."""

    title: str
    axis: tuple[float, ...]
    loss: NDArray[np.float64]
    margin: NDArray[np.float64] | None
    roughness: float
    roughest: float
    misclassified: float


@dataclass(frozen=True)
class ThreatUnion:
    """Robust accuracy by threat, under all of them at once, and the average with its interval."""

    clean: Proportion
    threats: tuple[tuple[str, Proportion], ...]
    union: Proportion
    average: float
    average_ends: tuple[float, float]


@dataclass(frozen=True)
class Analysis:
    """The whole of `analysis.json`."""

    weights_sha256: str | None
    threat: str
    gradients: Gradients | None
    inputs: tuple[Surface, ...]
    weights: Surface | None
    union: ThreatUnion | None


@dataclass(frozen=True)
class RunEvidence:
    """All that a run folder holds; parts that are not there are None."""

    path: Path
    name: str
    config: Mapping[str, object] | None
    training: Training | None
    evaluation: Evaluation | None
    examples: Examples | None
    pictures: Pictures | None
    notes: tuple[str, ...] = ()
    analysis: Analysis | None = None
