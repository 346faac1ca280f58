"""Threats: the allowed perturbations of an input.

A threat is a value. It alone defines its geometry: projection, random start, step and size.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from robustly.threats.balls import LpBall
from robustly.threats.chain import Chain
from robustly.threats.contract import EditSet, Threat, ThreatError, ThreatSet
from robustly.threats.corruption import CorruptionSet, CorruptionThreat, corruption_threat
from robustly.threats.exact_size import fraction_text, parse_epsilon
from robustly.threats.lp import NORMS, Norm, ThreatModel, read_mask
from robustly.threats.parameter_box import ParameterBox
from robustly.threats.rotation import Rotation

Box = Sequence[float]
THREATS: dict[str, Callable[[str, Box], Threat]] = {
    "linf": lambda size, box: ThreatModel("linf", size, box),
    "l2": lambda size, box: ThreatModel("l2", size, box),
    "l1": lambda size, box: ThreatModel("l1", size, box),
    "l0": lambda size, box: ThreatModel("l0", size, box),
    "rotation": Rotation,
    "corruption": corruption_threat,
}
"""Threats by the word in front of the colon of their text form. A new threat adds a line here."""
KINDS: tuple[str, ...] = (*THREATS, "chain")
LONGEST_CHAIN = 16
"""Most parts of a chain."""


def parse_threat(text: str, box: Box = (0.0, 1.0), arrays: Mapping[str, Tensor] | None = None) -> Threat:
    """Parse a threat from its text: KIND:SIZE, or several joined by "+" (applied in that order).

    For instance "linf:8/255", "l2:0.5", "l1:12", "l0:10", "rotation:30" or "rotation:30+linf:8/255". A mask of the
    values that may change follows an Lp threat as a NumPy file: "linf:8/255@mask.npy".

    Args:
        text: the text.
        box: least and largest valid value of an input.
        arrays: masks by their digests, for texts such as "linf:8/255@3f2a9c81d0e4" that a threat itself printed.
            With them no file is read, because such a text may come from a stranger.

    Raises:
        ThreatError: another form, an unknown kind, a size that the threat cannot have, more than `LONGEST_CHAIN`
            parts, or an unreadable mask.
    """
    pieces = _split(str(text))
    if len(pieces) > LONGEST_CHAIN:
        raise ThreatError(f"a chain has at most {LONGEST_CHAIN} parts, got {len(pieces)}")
    parts = [_parse_part(part, str(text), box, arrays) for part in pieces]
    return parts[0] if len(parts) == 1 else Chain(parts)


def map_mask_files(text: str, rename: Callable[[str], str]) -> str:
    """Text of a threat with every mask file renamed, for instance to its absolute path."""
    parts = [part.partition("@") for part in _split(text)]
    return "+".join(f"{head}@{rename(file)}" if at else head for head, at, file in parts)


def _split(text: str) -> list[str]:
    """Parts of a chain; a "+" in a file name does not split."""
    return re.split(r"\+(?=\s*\w+:)", text)


def _parse_part(part: str, text: str, box: Box, arrays: Mapping[str, Tensor] | None) -> Threat:
    kind, colon, rest = part.partition(":")
    kind = kind.strip().lower()
    if not colon or not rest.strip():
        raise ThreatError(f"threat {text!r} must have the form KIND:SIZE, such as linf:8/255 or rotation:30")
    if kind not in THREATS:
        raise ThreatError(f"unknown threat {kind!r}: allowed are {', '.join(THREATS)}")
    size, at, mask = rest.partition("@")
    threat = THREATS[kind](size, box)
    if not at:
        return threat
    if not isinstance(threat, ThreatModel):
        raise ThreatError(f"a mask belongs to an Lp threat, got {part!r}")
    if arrays is not None and mask not in arrays:
        raise ThreatError(f"the mask {mask!r} of the threat {text!r} is not among its stored arrays")
    values = read_mask(mask) if arrays is None else arrays[mask]
    return ThreatModel(threat.norm, threat.epsilon, threat.box, values)


__all__ = [
    "KINDS",
    "NORMS",
    "THREATS",
    "Chain",
    "CorruptionSet",
    "CorruptionThreat",
    "EditSet",
    "LpBall",
    "Norm",
    "ParameterBox",
    "Rotation",
    "Threat",
    "ThreatError",
    "ThreatModel",
    "ThreatSet",
    "fraction_text",
    "map_mask_files",
    "parse_epsilon",
    "parse_threat",
]
