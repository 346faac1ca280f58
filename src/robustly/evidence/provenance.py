"""Provenance: model, data, threat, suite, versions."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Literal

Mode = Literal["every", "worst_case"]
Seen = Literal["training", "selection"]
LAST_CHECKPOINT = "checkpoints/last.pt"
"""Name of the weights after the last epoch of a run, in its folder."""


@dataclass(frozen=True)
class ModelRecord:
    """The tested network.

    Args:
        name: architecture.
        parameters: number of parameters.
        weights_sha256: hash of the weights.
        checkpoint: file or epoch of the run that holds the weights; None without a run.
    """

    name: str
    parameters: int
    weights_sha256: str
    checkpoint: str | None = None

    @property
    def is_last_epoch(self) -> bool:
        """True for the weights after the last epoch of a run, False for those that it selected."""
        return self.checkpoint == LAST_CHECKPOINT


@dataclass(frozen=True)
class DataRecord:
    """The test examples.

    Args:
        source: source of the data.
        count: number of examples.
        sha256: hash of images, labels and ids.
        classes: names of the classes.
        split: part of the data set, such as "test".
        note: a sentence for readers of the report.
        settings: settings with which an audit loads the same examples.
        trained_on: number of examples whose image the model was trained on; None if unknown.
        selected_on: number of examples whose image the model was selected on; None if unknown.

    Raises:
        ValueError: one of these numbers is not between 0 and the number of examples.
    """

    source: str
    count: int
    sha256: str
    classes: tuple[str, ...]
    split: str | None = None
    note: str | None = None
    settings: Mapping[str, object] | None = None
    trained_on: int | None = None
    selected_on: int | None = None

    def __post_init__(self) -> None:
        for name in ("trained_on", "selected_on"):
            number = getattr(self, name)
            if number is not None and not 0 <= number <= self.count:
                raise ValueError(f"{name} should be between 0 and {self.count} examples, but is {number}")

    @property
    def seen_words(self) -> str:
        """A statement on the examples that were trained or selected on."""
        if self.trained_on is None or self.selected_on is None:
            known = [f"at least {self.trained_on} trained on"] if self.trained_on else []
            known += [f"at least {self.selected_on} selected on"] if self.selected_on else []
            return f"{', '.join(known) or 'unknown'}: there is no full record of the images that were trained on"
        if not self.trained_on and not self.selected_on:
            return f"0 of {self.count} test images were trained or selected on"
        return f"{self.trained_on} of {self.count} test images were trained on, {self.selected_on} were selected on"

    @property
    def seen(self) -> bool:
        """True if an example is known to have been trained or selected on."""
        return bool(self.trained_on or self.selected_on)

    def class_name(self, label: int) -> str:
        """The name of a class, or its number if it is not one of the classes."""
        return class_name(self.classes, label)


@dataclass(frozen=True)
class ThreatRecord:
    """The threat model.

    Args:
        text: as users write it, such as "linf:8/255"; it can be parsed.
        kind: "linf", "l2", "l1", "l0", or another kind of threat.
        words: one sentence that describes the threat.
        box: least and largest valid value of a pixel.
        limit: the largest allowed size of a change, in `unit`; epsilon of an Lp ball.
        limit_text: the same as users write it, such as "8/255".
        unit: unit of a size, such as "input units", "pixels" or "degrees".
        norm: norm of an Lp ball; None for other threats.
    """

    text: str
    kind: str
    words: str
    box: tuple[float, float]
    limit: float
    limit_text: str
    unit: str
    norm: str | None = None


@dataclass(frozen=True)
class Plan:
    """Selection of the unbroken examples that a stage of a suite attacks; by default all.

    Args:
        closest: share of the unbroken examples with the smallest margins so far, in (0, 1].
        at_least: smallest number of examples in that share.
        sample: largest number of examples, drawn at random; None for all.
        sample_share: largest share of the examples that is drawn, in (0, 1].
        sentinel: whether a success of this stage is a sign of masked gradients in the stages before.
        on_suspicion: whether the stage runs only after such a sign or a failed diagnostic.

    Raises:
        ValueError: a setting that is out of range.
    """

    closest: float = 1.0
    at_least: int = 0
    sample: int | None = None
    sample_share: float = 1.0
    sentinel: bool = False
    on_suspicion: bool = False

    def __post_init__(self) -> None:
        for name in ("closest", "sample_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share in (0, 1], got {getattr(self, name)}")
        if self.at_least < 0 or (self.sample is not None and self.sample < 1):
            raise ValueError(
                f"at_least must be at least 0 and sample at least 1, got {self.at_least}, {self.sample}"
            )


@dataclass(frozen=True)
class SuiteAttack:
    """An attack of a suite: name, title in tables, settings, and selection of the examples."""

    name: str
    title: str
    settings: Mapping[str, object]
    plan: Plan


@dataclass(frozen=True)
class SuiteCertificate:
    """A certificate of a suite; `certifies` names the certified classifier, "model" for the attacked one."""

    name: str
    title: str
    certifies: str
    settings: Mapping[str, object]


@dataclass(frozen=True)
class SuiteRecord:
    """The suite that was run.

    Args:
        name: name of the suite.
        mode: "every" runs each attack on every correctly classified example, "worst_case" on the unbroken ones.
        seed: seed of every random number.
        batch_size: images per batch.
        attacks: attacks in the order in which they ran.
        certificates: certificates in the order in which they ran.
        curve: name of the attack that draws the security curve; None without one.
        curve_sizes: sizes of the curve that the user gave, as texts; None for those of the suite.
    """

    name: str
    mode: Mode
    seed: int
    batch_size: int
    attacks: tuple[SuiteAttack, ...]
    certificates: tuple[SuiteCertificate, ...]
    curve: str | None = None
    curve_sizes: tuple[str, ...] | None = None

    @property
    def names(self) -> list[str]:
        """Names of the attacks."""
        return [attack.name for attack in self.attacks]

    def title(self, name: str) -> str:
        """Title of an attack or a certificate, or its name if the suite does not have it."""
        parts: tuple[SuiteAttack | SuiteCertificate, ...] = (*self.attacks, *self.certificates)
        return next((one.title for one in parts if one.name == name), name)


def class_name(classes: Sequence[str], label: int) -> str:
    """The name of a class, or its number if it is not one of the classes."""
    return classes[label] if 0 <= label < len(classes) else str(label)


def size_unit(norm: str) -> str:
    """The unit of sizes under an Lp norm."""
    return "pixels" if norm == "l0" else "input units"


def now() -> str:
    """The time in UTC, to the second, in ISO format."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def software_versions() -> dict[str, str]:
    """Versions of robustly, PyTorch and Python."""
    return {"robustly": version("robustly"), "torch": version("torch"), "python": platform.python_version()}
