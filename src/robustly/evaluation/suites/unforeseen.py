"""Threats of all kinds that a network was not trained on, each with the searches that suit it."""

from dataclasses import replace

from robustly.attacks import TITLES
from robustly.attacks.composite import Composite
from robustly.attacks.grid_search import GridSearch
from robustly.attacks.parameter_search import ParameterSearch
from robustly.evaluation.suites.builtin import standard
from robustly.evaluation.suites.protocol import ImageShape, Protocol
from robustly.evaluation.suites.semantic import has_grid
from robustly.evaluation.suites.suite import Suite, ThreatOrKind, kind_of
from robustly.threats import Affine, Chain, Threat
from robustly.threats.corruption import COLLECTIONS
from robustly.threats.lp import NORMS

NAME = "unforeseen"
LARGE_SIDE = 64
"""Side in pixels from which images get the sizes that are usual for ImageNet."""
_DIGITS = ("linf:0.3", "l2:2", "l1:10")
_CIFAR = ("linf:8/255", "l2:0.5", "l1:12")
_IMAGENET = ("linf:4/255", "l2:2", "l1:255")
DIGITS = (1, 28, 28)
"""Shape of the images that MNIST-C is defined for."""
_DIGIT_CORRUPTIONS = "mnist_c:1"
_GREY = ("brightness:0.2+contrast:0.3", "lightness:16")
_COLOUR = ("hue:3.14+saturation:0.3+brightness:0.2", "ace:16", "recolor:0.06")


def unforeseen(threat: ThreatOrKind) -> Suite:
    """The stages of `standard`, and for threats that are not Lp balls searches without gradients.

    These are a random search, a grid for at most four parameters, and the composite attack for chains in any order.

    Args:
        threat: the threat, or its kind.
    """
    kind = kind_of(threat)
    base = replace(standard(kind), name=NAME, curve=None)
    if kind in NORMS or kind in COLLECTIONS:
        return base
    attacks = {**base.attacks, "parameter_search": ParameterSearch(250, precision="bfloat16")}
    if has_grid(threat):
        attacks["grid"] = GridSearch()
    if kind == "any_order":
        attacks["composite"] = Composite()
    return replace(base, attacks=attacks, titles={**TITLES, **base.titles})


def usual_threats(shape: ImageShape) -> tuple[str, ...]:
    """Threats of all kinds for images of a shape, at the sizes that are usual for such images.

    Lp balls have the sizes of Maini et al. (ICML 2020) for digits, and of Croce and Hein (ICML 2022) for CIFAR-10
    and ImageNet. Rotations and shifts are those of Engstrom et al. (ICML 2019), hue, saturation and brightness
    those of Hsiung et al. (CVPR 2023), flows those of StAdv's bounded form: 0.05 in coordinates of -1 to 1. Grey
    images of 28 x 28 pixels have two columns of corruptions: those of ImageNet-C, as all images, and of MNIST-C.

    Args:
        shape: channels, height and width. Images of one channel count as digits.
    """
    channels, *sides = shape
    side = min(sides)
    balls = _DIGITS if channels == 1 else _CIFAR if side < LARGE_SIDE else _IMAGENET
    shift = 3 if side < LARGE_SIDE else round(side * 3 / 32)
    patch = 5 if side < LARGE_SIDE else round(side * 5 / 32)
    return (
        *balls,
        f"affine:rotation=30,shift={shift}",
        *(_GREY if channels == 1 else _COLOUR),
        f"flow:{side / 40:g}",
        f"patch:{patch}",
        "corruption:3",
        *((_DIGIT_CORRUPTIONS,) if shape == DIGITS else ()),
    )


def earlier_threats(shape: ImageShape) -> tuple[tuple[str, ...], ...]:
    """Threats that earlier versions had for images of a shape: digits had no corruptions of MNIST-C."""
    usual = usual_threats(shape)
    return (tuple(text for text in usual if text != _DIGIT_CORRUPTIONS),) if _DIGIT_CORRUPTIONS in usual else ()


def kinds_in(threat: Threat) -> frozenset[str]:
    """Kinds of a threat's parts; its own kind if it has none."""
    if isinstance(threat, Chain | Affine):
        return frozenset().union(*(kinds_in(part) for part in threat.parts))
    return frozenset([threat.kind])


UNFORESEEN = Protocol(
    NAME,
    "Threats of all kinds that the network was not trained on, compared with those of its training.",
    threats=usual_threats,
    earlier=earlier_threats,
    suite=unforeseen,
    mean="of_threats",
    compares=True,
    notes=(
        "Accuracies under attack are upper bounds. Fewer attacks exist for threats that are not Lp balls, so that "
        "their bounds may be less tight.",
        "The sizes are conventions: a difference between two threats compares these sizes, and not the threats.",
    ),
)
