"""Named lists of attacks and certificates."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from robustly.attacks import ATTACKS, TITLES, Attack
from robustly.certification import Certificate


@dataclass(frozen=True)
class Suite:
    """What a model is evaluated with; a value, to be composed freely.

    Args:
        name: what the report calls it.
        attacks: attacks by name, in the order in which they run; names are words without dots.
        titles: what tables call them, where that differs from the name.
        certificates: proof procedures by name.
        curve: name of the attack that draws the security curve, if one is wanted.
        curve_factors: the radii of the curve, as multiples of the evaluated epsilon, ascending.
    """

    name: str
    attacks: Mapping[str, Attack]
    titles: Mapping[str, str] = field(default_factory=lambda: dict(TITLES))
    certificates: Mapping[str, Certificate] = field(default_factory=dict)
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

    def title(self, name: str) -> str:
        """What tables call an attack."""
        return self.titles.get(name, name)


def _presets(name: str, attacks: tuple[str, ...], curve: str) -> Suite:
    return Suite(name, {attack: ATTACKS[attack] for attack in attacks}, curve=curve)


SUITES: dict[str, Suite] = {
    "dynat": _presets("dynat", ("pgd_10", "pgd_20", "pgd_50", "cw_20"), "pgd_20"),
    "dynat_100": _presets("dynat_100", ("pgd_10", "pgd_20", "pgd_50", "pgd_100", "cw_20"), "pgd_20"),
    "single_step": _presets("single_step", ("fgsm", "r_fgsm", "pgd_20"), "pgd_20"),
}


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
    return getattr(value, "__name__", None) or settings(value)
