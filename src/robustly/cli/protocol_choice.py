"""Choice of a protocol's threats for a network: those that it was not trained on, and reasons for the others."""

import re
from collections.abc import Sequence

import torch

from robustly.evaluation.suites.protocol import ImageShape
from robustly.evaluation.suites.unforeseen import kinds_in
from robustly.threats import Threat, ThreatError, parse_threat


def untrained(
    every: Sequence[Threat], trained: Sequence[str], shape: ImageShape
) -> tuple[tuple[Threat, ...], tuple[str, ...]]:
    """Threats of other kinds than those of the training, and the reasons why others are left out.

    A threat of the training itself is in neither: it is a column of its own, which the others are compared with.

    Args:
        every: the threats of a protocol.
        trained: texts of the threats of the training.
        shape: channels, height and width of the images.
    """
    kinds = frozenset[str]().union(*map(kinds_of_text, trained))
    tested, left_out = [], []
    for threat in every:
        if str(threat) in trained:
            continue
        seen = kinds_in(threat) <= kinds
        problem = "the network was trained on threats of this kind" if seen else undefined_problem(threat, shape)
        if problem:
            left_out.append(f"{threat}: {problem}")
        else:
            tested.append(threat)
    return tuple(tested), tuple(left_out)


def undefined_problem(threat: Threat, shape: ImageShape) -> str:
    """The reason why a threat is not defined for images; empty if it is."""
    try:
        threat.around(torch.zeros(0, *shape))
    except ThreatError as error:
        return str(error)
    return ""


def kinds_of_text(text: str) -> frozenset[str]:
    """Kinds of a threat's parts, also of one whose text names stored arrays."""
    return frozenset[str]().union(*map(_kinds_of_part, re.split(r"[+&]", text)))


def _kinds_of_part(text: str) -> frozenset[str]:
    try:
        return kinds_in(parse_threat(text, arrays={}))
    except ThreatError:
        return frozenset(re.findall(r"^\s*(\w+):", text))
