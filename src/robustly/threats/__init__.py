"""Threats: the allowed perturbations of an input.

A threat is a value. It alone defines its geometry: projection, random start, step and size.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches

from torch import Tensor

from robustly.threats.affine import Affine
from robustly.threats.balls import LpBall
from robustly.threats.chain import Chain
from robustly.threats.colour import COLOUR_FAMILIES
from robustly.threats.contract import Described, EditSet, MadeFromData, Smooth, Threat, ThreatError, ThreatSet
from robustly.threats.corruption import (
    CorruptionSet,
    CorruptionThreat,
    corruption_threat,
    digit_corruption_threat,
)
from robustly.threats.exact_size import fraction_text, parse_epsilon
from robustly.threats.features import FeatureBox, Features
from robustly.threats.flow import Flow, FlowField
from robustly.threats.geometry import SCALE, SHEAR, SHIFT
from robustly.threats.lp import NORMS, Norm, ThreatModel, read_mask
from robustly.threats.parameter_box import ParameterBox
from robustly.threats.patch import Patch, PatchSet
from robustly.threats.physical_patch import PhysicalPatch
from robustly.threats.physical_patch_set import PhysicalPatchSet
from robustly.threats.planes import Planes
from robustly.threats.rotation import ROTATION, Rotation
from robustly.threats.subspace import Subspace, SubspaceSet
from robustly.threats.transformation import BoundedTransformation, Transformation

Box = Sequence[float]
TRANSFORMATIONS: dict[str, Transformation] = {one.kind: one for one in (ROTATION, SHIFT, SCALE, SHEAR)}
"""Families of geometry with one limit, such as "rotation:30". A new one adds its name here."""
THREATS: dict[str, Callable[[str, Box], Threat]] = {
    "linf": lambda size, box: ThreatModel("linf", size, box),
    "l2": lambda size, box: ThreatModel("l2", size, box),
    "l1": lambda size, box: ThreatModel("l1", size, box),
    "l0": lambda size, box: ThreatModel("l0", size, box),
    **{kind: family.within for kind, family in TRANSFORMATIONS.items()},
    **{family.kind: family.within for family in COLOUR_FAMILIES},
    "affine": Affine.parse,
    "flow": Flow,
    "patch": Patch,
    "physical_patch": PhysicalPatch.parse,
    "corruption": corruption_threat,
    "mnist_c": digit_corruption_threat,
}
"""Threats by the word in front of the colon of their text form. A new threat adds a line here."""
FILED: dict[str, tuple[Callable[[str, Box, str], Threat], Callable[[str, Box, Tensor], Threat]]] = {
    "subspace": (Subspace.read, lambda size, box, values: Subspace(size, Planes(values), box)),
    "features": (Features.read, lambda size, box, values: Features(size, values, box)),
}
"""Threats that need a file, "KIND:SIZE@FILE": from the file's name, and from the tensor that evidence keeps."""
_OTHER_NAMES = {
    **dict.fromkeys(("linf", "l", "linfinity", "inf"), "linf"),
    **dict.fromkeys(("translation", "translate"), "shift"),
    **{"rotate": "rotation", "zoom": "scale", "stadv": "flow", "recoloradv": "recolor", "gpgd": "subspace"},
    **{"hsvadv": "hsv_curve", "ala": "lightness", "advcf": "ace", "retouchuaa": "retouch", "mnistc": "mnist_c"},
}
"""Kinds by the names that papers and other libraries have for them, without signs: "l_inf" is linf."""
KINDS: tuple[str, ...] = (*THREATS, *FILED, "chain", "any_order")
LONGEST_CHAIN = 16
"""Most parts of a chain."""
MOST_THREATS = 16
"""Most threats of one run or command."""


def allows_nothing(threat: Threat) -> bool:
    """Return True if a threat allows no change, such as "rotation:0" and "ace:1"."""
    return str(threat.scaled(0.0)) == str(threat)


def parse_threat(text: str, box: Box = (0.0, 1.0), arrays: Mapping[str, Tensor] | None = None) -> Threat:
    """Parse a threat from its text: KIND:SIZE.

    For instance "linf:8/255", "l2:0.5", "l1:12", "l0:10", "rotation:30" or "affine:rotation=30,shift=3". Several
    are joined by "+" if they are applied in that order, as in "rotation:30+linf:8/255", and by "&" if in any order.
    A mask of the values that may change follows an Lp threat as a NumPy file: "linf:8/255@mask.npy". Some threats
    always need a file: "subspace:2@planes.safetensors", "features:1@limits.csv".

    Args:
        text: the text.
        box: least and largest valid value of an input.
        arrays: masks and other tensors by their digests, for texts such as "linf:8/255@3f2a9c81d0e4" that a threat
            itself printed. With them no file is read, because such a text may come from a stranger.

    Raises:
        ThreatError: another form, an unknown kind, a size that the threat cannot have, more than `LONGEST_CHAIN`
            parts, or an unreadable file.
    """
    _check_joints(str(text))
    pieces = _split(str(text))
    free = [piece for part in pieces for piece in _split(part, "&")]
    if len(free) > len(pieces) > 1:
        raise ThreatError(f"{text!r} mixes '+' (in this order) and '&' (in any order): use one of them")
    any_order, pieces = len(free) > len(pieces), free
    if len(pieces) > LONGEST_CHAIN:
        raise ThreatError(f"a chain has at most {LONGEST_CHAIN} parts, got {len(pieces)}")
    parts = [_parse_part(part, str(text), box, arrays) for part in pieces]
    return parts[0] if len(parts) == 1 else Chain(parts, any_order=any_order)


def map_mask_files(text: str, rename: Callable[[str], str]) -> str:
    """Text of a threat with every mask file renamed, for instance to its absolute path."""
    sign = "&" if len(_split(text, "&")) > 1 else "+"
    parts = [part.partition("@") for part in _split(text, sign)]
    return sign.join(f"{head}@{rename(file.strip())}" if at else head for head, at, file in parts)


def parse_threats(texts: Sequence[str], box: Box = (0.0, 1.0)) -> tuple[Threat, ...]:
    """Parse several different threats.

    Raises:
        ThreatError: as `parse_threat`; none, more than `MOST_THREATS`, or a threat twice.
    """
    if not 1 <= len(texts) <= MOST_THREATS:
        raise ThreatError(f"name 1 to {MOST_THREATS} threats, got {len(texts)}")
    found = tuple(parse_threat(text, box) for text in texts)
    for number, threat in enumerate(found):
        if threat in found[:number]:
            raise ThreatError(f"{threat} is named twice: every threat counts once")
    return found


def short_names(threats: Sequence[Threat]) -> tuple[str, ...]:
    """Names of several threats for columns and folders: their kinds ("linf"), numbered if a kind occurs twice.

    Two threats of one kind are "linf_1" and "linf_2", in their order.
    """
    kinds = [threat.kind for threat in threats]
    return tuple(
        kind if kinds.count(kind) == 1 else f"{kind}_{kinds[: number + 1].count(kind)}"
        for number, kind in enumerate(kinds)
    )


def _check_joints(text: str) -> None:
    """Refuse parts that are empty, and parts that neither "+" nor "&" joins.

    Raises:
        ThreatError: there are such parts.
    """
    heads = "".join(re.findall(r"(?:^|[+&](?=\s*\w+\s*:))[^@]*", text))  # names of files may have any signs
    if re.search(r"^\s*[+&]|[+&]\s*(?:[+&]|$)", heads):
        raise ThreatError(f"the chain {text!r} has an empty part: it has the form KIND:SIZE+KIND:SIZE")
    found = re.search(r"[\s,;|]\s*(\w+)\s*:", re.sub(r"\s*([+&])\s*", r"\1", heads.strip()))
    if found is not None and found[1].lower() in KINDS:
        first = re.sub(r"\s+(?:and|or|then)$", "", text[: text.index(found[0])].strip())
        raise ThreatError(
            f"{text!r} names several threats: join them by '+' to allow all of them at once, as in "
            f"'{first}+{found[1]}:...', or list them after --threats to evaluate each alone"
        )


def _split(text: str, sign: str = "+") -> list[str]:
    """Parts of a chain; a sign in a file name does not split."""
    return re.split(rf"{re.escape(sign)}(?=\s*\w+\s*:)", text)


def _meant(kind: str) -> str:
    """The kind that a misspelt one or a name of other libraries may have meant, as the end of a message."""
    plain = re.sub(r"[\W_]", "", kind)
    near = _OTHER_NAMES.get(plain) or next(iter(get_close_matches(plain, (*THREATS, *FILED), 1)), None)
    return "" if near is None else f", did you mean {near!r}?"


def _parse_part(part: str, text: str, box: Box, arrays: Mapping[str, Tensor] | None) -> Threat:
    kind, colon, rest = part.partition(":")
    kind = kind.strip().lower()
    if not colon or not rest.strip():
        usual = "mnist_c:1" if kind == "mnist_c" else "linf:8/255 or rotation:30"
        raise ThreatError(f"threat {text!r} must have the form KIND:SIZE, such as {usual}")
    if kind not in THREATS and kind not in FILED:
        raise ThreatError(f"unknown threat {kind!r}{_meant(kind)}: allowed are {', '.join((*THREATS, *FILED))}")
    size, at, mask = (piece.strip() for piece in rest.partition("@"))
    if at and arrays is not None and mask not in arrays:
        raise ThreatError(f"the array {mask!r} of the threat {text!r} is not among its stored arrays")
    if kind in FILED:
        if not mask:
            raise ThreatError(f"{part!r} must have the form {kind}:SIZE@FILE")
        from_file, from_tensor = FILED[kind]
        return from_file(size, box, mask) if arrays is None else from_tensor(size, box, arrays[mask])
    threat = THREATS[kind](size, box)
    if not at:
        return threat
    if not isinstance(threat, ThreatModel):
        raise ThreatError(f"a mask belongs to an Lp threat, got {part!r}")
    values = read_mask(mask) if arrays is None else arrays[mask]
    return ThreatModel(threat.norm, threat.epsilon, threat.box, values)


__all__ = [
    "FILED",
    "KINDS",
    "NORMS",
    "THREATS",
    "TRANSFORMATIONS",
    "Affine",
    "BoundedTransformation",
    "Chain",
    "CorruptionSet",
    "CorruptionThreat",
    "Described",
    "EditSet",
    "FeatureBox",
    "Features",
    "Flow",
    "FlowField",
    "LpBall",
    "MadeFromData",
    "Norm",
    "ParameterBox",
    "Patch",
    "PatchSet",
    "PhysicalPatch",
    "PhysicalPatchSet",
    "Planes",
    "Rotation",
    "Smooth",
    "Subspace",
    "SubspaceSet",
    "Threat",
    "ThreatError",
    "ThreatModel",
    "ThreatSet",
    "Transformation",
    "allows_nothing",
    "fraction_text",
    "map_mask_files",
    "parse_epsilon",
    "parse_threat",
    "parse_threats",
    "short_names",
]
