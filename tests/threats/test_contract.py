"""Every threat keeps the contract, and the contract's suite catches those that do not."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from robustly.randomness import KeyedGenerator
from robustly.testing import check_threat
from robustly.threats import (
    KINDS,
    THREATS,
    BoundedTransformation,
    Chain,
    Features,
    Flow,
    ParameterBox,
    Patch,
    Planes,
    Rotation,
    Subspace,
    Threat,
    ThreatError,
    ThreatModel,
    parse_threat,
)
from robustly.threats.parameter_box import all_zero

HALF = torch.tensor([[1, 0, 1, 0, 1]] * 6, dtype=torch.bool)
SHARES = torch.linspace(0, 1, 30).reshape(6, 5)
DIRECTIONS = torch.linalg.qr(KeyedGenerator(7, torch.arange(2)).normal(90, 4))[0].mT
PLANES = Planes(torch.cat([torch.full((2, 1, 90), 0.5), DIRECTIONS], 1))
LIMITS = (KeyedGenerator(8, torch.arange(2)).uniform(90) - 0.3).clamp_min(0)
ALL = [
    *(parse_threat(text) for text in ("linf:0.1", "l2:0.5", "l1:3", "l0:4", "rotation:30")),
    *(parse_threat(text) for text in ("rotation:30+linf:0.1", "l2:0.5+rotation:10", "rotation:5+linf:0.1+l1:2")),
    *(parse_threat(text) for text in ("hue:0.5", "saturation:0.3", "brightness:0.2", "contrast:0.3", "retouch:1")),
    *(parse_threat(text) for text in ("ace:16", "hsv_curve:16", "lightness:16", "recolor:0.06")),
    parse_threat("hue:0.5+brightness:0.2+linf:4/255", (-1.0, 2.0)),
    ThreatModel("linf", 20, box=(0, 255)),
    *(parse_threat(text) for text in ("shift:2", "scale:0.2", "shear:20", "affine:rotation=30,shift=2")),
    *(parse_threat(text) for text in ("affine:scale=0.3,shear=10", "shift:1.5+linf:0.1")),
    *(parse_threat(text) for text in ("rotation:30&linf:8/255", "rotation:30&shift:2&linf:0.1")),
    parse_threat("affine:rotation=20,shift=1,scale=0.1,shear=5", (-1.0, 2.0)),
    Rotation(45, box=(-1.0, 2.0)),
    *(
        parse_threat(text)
        for text in (
            "flow:0.8",
            "flow:1.5+linf:0.1",
            "patch:3",
            "patch:2+linf:0.1",
            "rotation:9+patch:3",
            "physical_patch:3",
        )
    ),
    Flow(2, box=(-1.0, 2.0)),
    Patch(4, box=(-1.0, 2.0)),
    Subspace(1, PLANES),
    Subspace("0.7", Planes(PLANES.values[1:]), box=(-1.0, 2.0)),
    Chain([Rotation(5), Subspace(1, PLANES)]),
    Features(1, LIMITS),
    Features("0.5", LIMITS, box=(-1.0, 2.0)),
    Chain([Features(1, LIMITS), ThreatModel("linf", 0.1)]),
    *(ThreatModel(norm, size, mask=HALF) for norm, size in (("linf", 0.1), ("l2", 0.5), ("l1", 2), ("l0", 3))),
    ThreatModel("linf", 0.2, mask=SHARES),
]


@pytest.mark.parametrize("threat", ALL, ids=str)
def test_threats_keep_the_contract(threat: Threat) -> None:
    check_threat(threat)


@pytest.mark.parametrize("threat", ALL, ids=str)
def test_the_text_form_gives_the_threat_back(threat: Threat) -> None:
    if getattr(threat, "mask", None) is None:
        assert parse_threat(str(threat), threat.box, threat.arrays or None) == threat
    assert threat.kind in KINDS


def test_every_kind_of_the_table_is_checked() -> None:
    assert {threat.kind for threat in ALL} == set(KINDS) - {
        "corruption",
        "mnist_c",
    }  # see test_corruption_threat.py


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rotation", "KIND:SIZE"),
        ("rotation:200", "0 to 180 degrees, got 200"),
        ("subspace:2", "must have the form subspace:SIZE@FILE"),
        ("features:1@nowhere.csv", "'nowhere.csv' is not a readable CSV file"),
        ("patch:2.5", "whole number of pixels of at least 0, got 2.5"),
        ("flow:-1", "at least 0 pixels, got -1"),
        ("rotation:x", "finite number"),
        ("turn:30", "unknown threat 'turn': allowed are linf, l2"),
        ("rotation:30+", "empty part"),
        ("rotation:0.5rad", r"finite number without its unit \(degrees\), got '0.5rad'"),
        ("rotation:-1", "0 to 180 degrees, got -1"),
        ("shift:-2", "at least 0 pixels, got -2"),
        ("shift:3px", r"without its unit \(pixels\)"),
        ("scale:1", "0 to 0.9 times the size, got 1"),
        ("shear:85", "0 to 80 degrees, got 85"),
        ("affine:30", "PART=LIMIT"),
        ("affine:rotation=30,shift", "PART=LIMIT"),
        ("affine:rotation=30,hue=1", "rotation, shift, scale, shear, got hue"),
        ("affine:shift=3,shift=2", "names shift twice"),
        ("affine:shift=3,rotation=30", "order rotation, shift, scale, shear, got shift, rotation"),
        ("affine:rotation=30rad", r"without its unit \(degrees\)"),
        ("rotation:30+linf:8", "did you mean 8/255"),
    ],
)
def test_nonsense_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(ThreatError, match=message):
        parse_threat(text)


def test_chains_of_what_does_not_fit_are_refused() -> None:
    rotation = Rotation(30)
    with pytest.raises(ThreatError, match="at least two parts"):
        Chain([rotation])
    with pytest.raises(ThreatError, match="share one box"):
        Chain([rotation, ThreatModel("linf", 1, box=(0, 255))])
    with pytest.raises(ThreatError, match="single threat with one extent"):
        Chain([rotation, ThreatModel("linf", torch.tensor([0.1, 0.2]))])
    with pytest.raises(ThreatError, match="single threat with one extent"):
        Chain([Chain([rotation, ThreatModel("linf", 0.1)]), rotation])
    with pytest.raises(ThreatError, match="names each kind of threat once, got linf 2 times"):
        parse_threat("linf:0.1+rotation:30+linf:0.2")
    with pytest.raises(ThreatError, match=r"mixes '\+' .* and '&'"):
        parse_threat("linf:0.1+rotation:30&shift:1")


THIRTY = Rotation(30)


@dataclass(frozen=True)
class Broken:
    """A rotation with one property replaced; `flaw` names what is wrong with its sets."""

    flaw: str
    rotation: BoundedTransformation = THIRTY

    kind = "rotation"
    unit = "degrees"
    arrays: ClassVar[dict[str, Tensor]] = {}
    set_type = ParameterBox

    @property
    def box(self) -> tuple[float, float]:
        return self.rotation.box

    @property
    def extent(self) -> Fraction:
        return self.rotation.extent

    @property
    def extent_text(self) -> str:
        return self.rotation.extent_text

    def __str__(self) -> str:
        return str(self.rotation)

    def words(self) -> str:
        return "no sentence" if self.flaw == "words" else self.rotation.words()

    def scaled(self, factor: float) -> "Broken":
        return self if self.flaw == "scaled" else replace(self, rotation=self.rotation.scaled(factor))

    def with_extent(self, extent: float | str | Fraction) -> "Broken":
        return replace(self, rotation=self.rotation.with_extent(extent))

    def extents_at(self, factors: Sequence[float]) -> list[Fraction]:
        found = self.rotation.extents_at(factors)
        return [Fraction(0), *found] if self.flaw == "extents" else found

    def select(self, index: Tensor) -> "Broken":
        return self

    def around(self, x: Tensor) -> ParameterBox:
        found = self.rotation.around(x)
        broken: Any = FLAWS.get(self.flaw, found.__class__)
        return broken(found.x, found.radius, found.neutral, found.scale, found.transform)


class NoIdentity(ParameterBox):
    def apply(self, theta: Tensor) -> Tensor:
        return (super().apply(theta) + 0.01).clamp(0, 1)


class Leaves(ParameterBox):
    def step(self, theta: Tensor, gradient: Tensor, step_size: Tensor) -> Tensor:
        return theta + 10 * self.radius[:, None] * gradient.sign()


class Unprojected(ParameterBox):
    def project(self, theta: Tensor) -> Tensor:
        return theta


class Shrinks(ParameterBox):
    def project(self, theta: Tensor) -> Tensor:
        return 0.5 * super().project(theta)


class Still(ParameterBox):
    def random_start(self, generator: object) -> Tensor:
        return self.identity()


class Detached(ParameterBox):
    def apply(self, theta: Tensor) -> Tensor:
        return super().apply(theta.detach() + 0 * theta)


class Bright(ParameterBox):
    def apply(self, theta: Tensor) -> Tensor:
        return torch.where(theta[:, :, None, None] == 0, self.x, super().apply(theta) + 1)


class ByBatch(ParameterBox):
    def random_start(self, generator: Any) -> Tensor:
        return super().random_start(generator) * len(self.x) / 5


class Negative(ParameterBox):
    def size(self, theta: Tensor) -> Tensor:
        return theta[:, 0]


class Descends(ParameterBox):
    def step(self, theta: Tensor, gradient: Tensor, step_size: Tensor) -> Tensor:
        return super().step(theta, -gradient, step_size)


class FixedStep(ParameterBox):
    def step(self, theta: Tensor, gradient: Tensor, step_size: Tensor) -> Tensor:
        return super().step(theta, gradient, 0.01 * self.radius)


class AcceptsAll(ParameterBox):
    def contains(self, theta: Tensor) -> Tensor:
        return theta[:, 0] == theta[:, 0]


class AcceptsNoNumber(ParameterBox):
    def contains(self, theta: Tensor) -> Tensor:
        return ~(self.size(theta) > self.radius * 1.00001)


class HalfSize(ParameterBox):
    def size(self, theta: Tensor) -> Tensor:
        return 0.5 * super().size(theta)

    def contains(self, theta: Tensor) -> Tensor:
        return super().size(theta) <= self.radius * 1.00001


class NoSize(ParameterBox):
    def size(self, theta: Tensor) -> Tensor:
        return 0 * super().size(theta)


class NoGraph(ParameterBox):
    def apply(self, theta: Tensor) -> Tensor:
        return super().apply(theta.detach())


class Wordless(ParameterBox):
    def describe(self, theta: Tensor) -> list[str]:
        return [""] * len(theta)


class SameWords(ParameterBox):
    def describe(self, theta: Tensor) -> list[str]:
        return ["unchanged"] * len(theta)


FLAWS: dict[str, type[ParameterBox]] = {
    "identity": NoIdentity,
    "leaves": Leaves,
    "unprojected": Unprojected,
    "shrinks": Shrinks,
    "still": Still,
    "detached": Detached,
    "bright": Bright,
    "batch": ByBatch,
    "negative": Negative,
    "descends": Descends,
    "fixed step": FixedStep,
    "accepts all": AcceptsAll,
    "accepts NaN": AcceptsNoNumber,
    "half size": HalfSize,
    "no size": NoSize,
    "no graph": NoGraph,
    "no words": Wordless,
    "same words": SameWords,
}


def test_the_broken_rotation_without_a_flaw_passes() -> None:
    check_threat(Broken("none"))


@pytest.mark.parametrize(
    ("flaw", "message"),
    [
        ("words", "not a sentence"),
        ("scaled", "scaled by 1/2 equals itself"),
        ("extents", "not ascending or has 0"),
        ("identity", "differs from the inputs"),
        ("leaves", "a step leaves the set"),
        ("unprojected", "leaves the set"),
        ("shrinks", "project.. moves"),
        ("still", "changes nothing"),
        ("detached", "disagrees with finite differences"),
        ("bright", "leaves the box"),
        ("batch", "depends on the other examples"),
        ("negative", "size"),
        ("descends", "does not raise the objective"),
        ("fixed step", "a thousandth of the radius"),
        ("accepts all", "accepts a perturbation larger"),
        ("accepts NaN", "accepts NaN"),
        ("half size", "rejects a perturbation smaller"),
        ("no size", "size.. is 0"),
        ("no graph", "no gradient flows"),
        ("no words", "not called unchanged"),
        ("same words", "start is called unchanged"),
    ],
)
def test_each_broken_property_is_caught(flaw: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_threat(Broken(flaw))


def test_the_table_builds_every_kind() -> None:
    sizes = {"affine": "rotation=30", "scale": "0.5"}
    for kind, build in THREATS.items():
        assert build(sizes.get(kind, "1"), (0.0, 1.0)).kind == kind


@pytest.mark.parametrize("count", [7, 4096, 9001])
def test_all_zero_compares_every_value(count: int) -> None:
    """Of many values some are compared first."""
    values = torch.zeros(4, count)
    values[1, 1], values[2, -1], values[3] = 1.0, torch.nan, 2.0
    assert all_zero(values).tolist() == [True, False, False, False]
    assert all_zero(values[3:]).tolist() == [False]
