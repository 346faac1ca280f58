"""A suite: attacks and certificates, and the examples that each attack is run on."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from robustly.attacks import ATTACKS, TITLES, Attack, RandomDraws
from robustly.certification import Certificate
from robustly.evidence.provenance import Plan
from robustly.evidence.schema import RESERVED
from robustly.models import weights_hash
from robustly.randomness import KeyedGenerator, derive_seed
from robustly.threats import NORMS, Threat
from robustly.threats.corruption import COLLECTIONS

ThreatOrKind = Threat | str
"""A threat, or where it is not known its kind ("linf", "rotation", "chain")."""
EVERYONE = Plan()
DRAWS = "random_draws"
"""Name of the random draws in suites of presets."""


def kind_of(threat: ThreatOrKind) -> str:
    """Kind of a threat."""
    return threat if isinstance(threat, str) else threat.kind


def planned_rows(
    plan: Plan,
    unbroken: Bool[Tensor, " n"],
    closeness: Float[Tensor, " n"],
    ids: Int64[Tensor, " n"],
    seed: int,
) -> Int64[Tensor, " m"]:
    """The rows to attack, ascending. They do not depend on the order of the examples.

    Args:
        plan: selection of the unbroken examples.
        unbroken: mask of the unbroken examples.
        closeness: highest margin of each example so far.
        ids: ids of the examples.
        seed: seed of the evaluation.
    """
    rows = unbroken.nonzero()[:, 0]
    if plan.closest < 1:
        count = min(max(math.ceil(plan.closest * len(rows)), plan.at_least), len(rows))
        by_id = rows[ids[rows].argsort()]
        order = closeness[by_id].argsort(descending=True, stable=True)
        rows = by_id[order[:count]]
    sample = min(plan.sample or len(rows), math.ceil(plan.sample_share * len(rows)))
    if sample < len(rows):
        draw = KeyedGenerator(derive_seed(seed, "sample"), ids[rows]).bits(1)[:, 0]
        rows = rows[draw.argsort()[:sample]]
    return rows.sort().values


@dataclass(frozen=True)
class Suite:
    """The attacks and certificates of an evaluation.

    Args:
        name: name of the suite in reports.
        attacks: attacks by name, in the order in which they run; names are words without dots.
        titles: titles of attacks in tables, if they differ from the names.
        certificates: certificates by name.
        plans: selection of the unbroken examples, by attack; all without a plan.
        worst_case: whether each attack runs on the unbroken examples only, in every mode.
        curve: name of the attack of the security curve; None for no curve.
        curve_factors: the radii of the curve, as multiples of the evaluated epsilon, ascending.
        curve_sizes: radii that the user gave in their place, as texts.
    """

    name: str
    attacks: Mapping[str, Attack]
    titles: Mapping[str, str] = field(default_factory=lambda: dict(TITLES))
    certificates: Mapping[str, Certificate] = field(default_factory=dict)
    plans: Mapping[str, Plan] = field(default_factory=dict)
    worst_case: bool = False
    curve: str | None = None
    curve_factors: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
    curve_sizes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not self.attacks and not self.certificates:
            raise ValueError(f"suite {self.name!r} is empty: give it an attack or a certificate")
        names = [*self.attacks, *self.certificates]
        bad = [name for name in names if not name.isidentifier() or name in RESERVED]
        if bad:
            raise ValueError(
                f"names in a suite are plain words other than {', '.join(RESERVED)}, got {', '.join(bad)}"
            )
        if self.curve is not None and self.curve not in self.attacks:
            raise ValueError(f"the curve's attack {self.curve!r} is not one of {', '.join(self.attacks)}")
        stray = [name for name in self.plans if name not in self.attacks]
        if stray:
            raise ValueError(
                f"plans for {', '.join(stray)}, which are not attacks of the suite: {', '.join(self.attacks)}"
            )
        if self.plans and not self.worst_case:
            raise ValueError(f"suite {self.name!r} has plans: that needs worst_case=True")

    def title(self, name: str) -> str:
        """Title of an attack in tables."""
        return self.titles.get(name, name)

    def plan(self, name: str) -> Plan:
        """Selection of the unbroken examples that an attack is run on."""
        return self.plans.get(name, EVERYONE)


def in_full_precision(suite: Suite) -> Suite:
    """The same suite without bfloat16, for machines on which it is not faster."""
    return replace(suite, attacks={name: _full(attack) for name, attack in suite.attacks.items()})


def _full(attack: Attack) -> Attack:
    if getattr(attack, "precision", None) != "bfloat16":
        return attack
    part: Any = attack
    changed: Attack = replace(part, precision="full")
    return changed


def presets(name: str, attacks: tuple[str, ...], curve: str, threat: ThreatOrKind) -> Suite:
    """A suite of attack presets, by their names, with random draws where gradients alone say little.

    Under threats that are not Lp balls the objective has many local maxima, and draws may break more than ascent
    (Engstrom et al., ICML 2019), so that no table of such a threat is without them.

    Args:
        name: name of the suite.
        attacks: names of presets.
        curve: the preset of the security curve.
        threat: the threat, or its kind.
    """
    found: dict[str, Attack] = {attack: ATTACKS[attack] for attack in attacks}
    if kind_of(threat) not in (*NORMS, *COLLECTIONS):
        found[DRAWS] = RandomDraws(50)
    return Suite(name, found, curve=curve)


def without_draws(suite: Suite, recorded: Collection[str]) -> Suite:
    """A suite of presets as earlier versions had it, if the recorded attacks do not include the random draws."""
    if suite.attacks.get(DRAWS) != RandomDraws(50) or DRAWS in recorded:
        return suite
    return replace(suite, attacks={name: attack for name, attack in suite.attacks.items() if name != DRAWS})


def settings(part: object) -> dict[str, Any]:
    """The settings of an attack or certificate as plain values."""
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
        count = sum(part.numel() for part in value.parameters())
        return {"kind": type(value).__name__, "parameters": count, "weights_sha256": weights_hash(value)}
    return getattr(value, "__name__", None) or settings(value)
