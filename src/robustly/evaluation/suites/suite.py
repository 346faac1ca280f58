"""Named lists of attacks and certificates, and which examples each of them sees."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from robustly.attacks import ATTACKS, TITLES, Attack
from robustly.certification import Certificate
from robustly.randomness import KeyedGenerator, derive_seed


@dataclass(frozen=True)
class Plan:
    """Which of the examples that still stand a stage of a suite attacks; without settings, all of them.

    Args:
        closest: the share of them that came closest to being misclassified so far, in (0, 1].
        at_least: how many that share is at least.
        sample: how many of them at most, drawn at random; all without it.
        sample_share: the share of them that is drawn at most, in (0, 1].
        sentinel: whether a success here is a sign that the stages before cannot be trusted.
        on_suspicion: whether the stage runs only after such a sign, or a failed diagnostic.

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

    def rows(
        self,
        unbroken: Bool[Tensor, " n"],
        closeness: Float[Tensor, " n"],
        ids: Int64[Tensor, " n"],
        seed: int,
    ) -> Int64[Tensor, " m"]:
        """The rows to attack, ascending; the same however the examples are ordered or batched.

        Args:
            standing: which examples are unbroken.
            closeness: the highest margin seen of each so far.
            ids: their ids.
            seed: seed of the evaluation.
        """
        rows = unbroken.nonzero()[:, 0]
        if self.closest < 1:
            count = min(max(math.ceil(self.closest * len(rows)), self.at_least), len(rows))
            by_id = rows[ids[rows].argsort()]
            order = closeness[by_id].argsort(descending=True, stable=True)
            rows = by_id[order[:count]]
        sample = min(self.sample or len(rows), math.ceil(self.sample_share * len(rows)))
        if sample < len(rows):
            draw = KeyedGenerator(derive_seed(seed, "sample"), ids[rows]).bits(1)[:, 0]
            rows = rows[draw.argsort()[:sample]]
        return rows.sort().values


EVERYONE = Plan()


@dataclass(frozen=True)
class Suite:
    """What a model is evaluated with; a value, to be composed freely.

    Args:
        name: what the report calls it.
        attacks: attacks by name, in the order in which they run; names are words without dots.
        titles: what tables call them, where that differs from the name.
        certificates: proof procedures by name.
        plans: for attacks by name, which examples they see; all that stand, where nothing is said.
        worst_case: whether the suite makes sense only from survivor to survivor, whatever mode is asked for.
        curve: name of the attack that draws the security curve, if one is wanted.
        curve_factors: the radii of the curve, as multiples of the evaluated epsilon, ascending.
    """

    name: str
    attacks: Mapping[str, Attack]
    titles: Mapping[str, str] = field(default_factory=lambda: dict(TITLES))
    certificates: Mapping[str, Certificate] = field(default_factory=dict)
    plans: Mapping[str, Plan] = field(default_factory=dict)
    worst_case: bool = False
    curve: str | None = None
    curve_factors: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)

    def __post_init__(self) -> None:
        if not self.attacks and not self.certificates:
            raise ValueError(f"suite {self.name!r} is empty: give it an attack or a certificate")
        bad = [name for name in [*self.attacks, *self.certificates] if not name.isidentifier() or name == "curve"]
        if bad:
            raise ValueError(f"names in a suite are plain words other than 'curve', got {', '.join(bad)}")
        if self.curve is not None and self.curve not in self.attacks:
            raise ValueError(f"the curve's attack {self.curve!r} is none of {', '.join(self.attacks)}")
        stray = [name for name in self.plans if name not in self.attacks]
        if stray:
            raise ValueError(f"plans for {', '.join(stray)}, which are none of {', '.join(self.attacks)}")
        if self.plans and not self.worst_case:
            raise ValueError(f"suite {self.name!r} plans who sees which attack: that needs worst_case=True")

    def title(self, name: str) -> str:
        """What tables call an attack."""
        return self.titles.get(name, name)

    def plan(self, name: str) -> Plan:
        """Which examples an attack sees."""
        return self.plans.get(name, EVERYONE)


def presets(name: str, attacks: tuple[str, ...], curve: str) -> Suite:
    """A suite of attacks that are known by name."""
    return Suite(name, {attack: ATTACKS[attack] for attack in attacks}, curve=curve)


def settings(part: object) -> dict[str, Any]:
    """The settings of an attack or certificate as plain values, for the record."""
    if not is_dataclass(part):
        return {"kind": getattr(part, "__name__", type(part).__name__)}
    values = {item.name: _plain(getattr(part, item.name)) for item in fields(part)}
    return {"kind": type(part).__name__, **values}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, nn.Module):
        return {"kind": type(value).__name__, "parameters": sum(part.numel() for part in value.parameters())}
    return getattr(value, "__name__", None) or settings(value)
