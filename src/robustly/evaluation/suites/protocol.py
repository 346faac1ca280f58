"""An evaluation under several threats, each with attacks of its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from robustly.evaluation.suites.suite import Suite, ThreatOrKind, kind_of

ImageShape = tuple[int, int, int]
"""Channels, height and width."""
PLANES = "planes"
"""Stands in a text of a threat for the file of principal directions, as in "subspace:2@planes"."""
AS_STRONG = ("standard", "strong", "unforeseen", "semantic", "aa_standard", "aa_plus")
"""Suites whose evaluations under a threat of the training a protocol takes over."""
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

    def versions(self, shape: ImageShape) -> tuple[tuple[str, ...], ...]:
        """Threats of today's and of each earlier version, without the files of principal directions."""
        return tuple(tuple(map(without_file, texts)) for texts in (self.threats(shape), *self.earlier(shape)))


def without_file(text: str) -> str:
    """Text of a threat without the file or the digest of its principal directions, which depend on the run."""
    return text.partition("@")[0] if text.startswith("subspace:") else text


def undefined(name: str, threat: ThreatOrKind, kinds: Sequence[str]) -> ValueError:
    """Error for a threat that a protocol does not have."""
    return ValueError(
        f"the suite {name} has attacks for the threats {', '.join(kinds)}, got {kind_of(threat)}: leave out "
        "--threat to evaluate all of them, or choose another suite"
    )
