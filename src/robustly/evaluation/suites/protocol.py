"""An evaluation under several threats, each with attacks of its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from robustly.evaluation.suites.suite import Suite, ThreatOrKind, kind_of

ImageShape = tuple[int, int, int]
"""Channels, height and width."""
PLANES = "planes"
"""Stands in a text of a threat for the file of principal directions, as in "subspace:2@planes"."""
Mean = Literal["with_clean", "of_threats"]


@dataclass(frozen=True)
class Protocol:
    """An evaluation under several threats, each with attacks of its own.

    Args:
        name: name of the protocol, and of the suite of its attacks.
        words: description in one sentence.
        threats: from the shape of the images to the texts of the threats, in their order.
        suite: attacks for a threat.
        mean: the columns of the mean: accuracy without attack and under every threat, or under the threats alone.
        compares: whether the threats of training come first, and the others are compared with them.
        notes: sentences on the limits of the numbers.
        earlier: the same for earlier versions, whose evidence an audit accepts.
    """

    name: str
    words: str
    threats: Callable[[ImageShape], tuple[str, ...]]
    suite: Callable[[ThreatOrKind], Suite]
    mean: Mean
    compares: bool
    notes: tuple[str, ...]
    earlier: Callable[[ImageShape], tuple[tuple[str, ...], ...]] = lambda _: ()


def undefined(name: str, threat: ThreatOrKind, kinds: Sequence[str]) -> ValueError:
    """Error for a threat that a protocol does not have."""
    return ValueError(
        f"the suite {name} has attacks for the threats {', '.join(kinds)}, got {kind_of(threat)}: leave out "
        "--threat to evaluate all of them, or choose another suite"
    )
