"""The two evaluations of TaFD (threat-aware frequency decoupling), with the settings of its public code.

"V10": APGD on cross-entropy under linf and l2, ACE, ReColorAdv, HSVAdv, ALA and RetouchUAA. "V20": the two APGDs,
ACE, GPGD and StAdv. The columns of the paper are these and the accuracy without an attack; its headline is their
mean.
"""

import math
from dataclasses import dataclass
from functools import partial

from robustly.attacks import Attack
from robustly.attacks.apgd import APGD
from robustly.attacks.pgd import PGD
from robustly.evaluation.suites.protocol import PLANES, Protocol, undefined
from robustly.evaluation.suites.suite import Suite, ThreatOrKind, kind_of
from robustly.objectives import margin
from robustly.threats.colour.curve import PIECES

STEPS = 10
"""Steps of every attack but APGD."""


@dataclass(frozen=True)
class Column:
    """A column of the tables of the paper.

    Args:
        threat: text of the threat.
        attack: name of the attack.
        title: title of the attack.
        search: the attack.
    """

    threat: str
    attack: str
    title: str
    search: Attack

    @property
    def kind(self) -> str:
        """Kind of the threat; that of a chain is "chain"."""
        return "chain" if "+" in self.threat else self.threat.partition(":")[0]


def _curves(count: int, *, random: bool = False) -> PGD:
    """Steps of length 1 on slopes over their number; see `robustly.threats.colour.curves.CurveSet.step`."""
    return PGD(STEPS, margin, step_size=math.sqrt(PIECES / count), start="random" if random else "none")


APGD_CE = (
    Column("linf:8/255", "apgd_ce", "APGD-CE, linf", APGD(100)),
    Column("l2:0.5", "apgd_ce", "APGD-CE, l2", APGD(100)),
)
ACE = Column("ace:16", "ace", "ACE", _curves(3))
V10 = (
    *APGD_CE,
    ACE,
    Column(
        "recolor:0.06+linf:8/255",
        "recoloradv",
        "ReColorAdv",
        PGD(STEPS, margin, step_size=0.01, start="none", update="adam"),
    ),
    Column("hsv_curve:16", "hsvadv", "HSVAdv", _curves(3)),
    Column("lightness:16", "ala", "ALA", _curves(1, random=True)),
    Column(
        "retouch:1",
        "retouchuaa",
        "RetouchUAA",
        PGD(STEPS, margin, step_size=0.1, start="none", update="adam"),
    ),
)
V20 = (
    *APGD_CE,
    ACE,
    Column(f"subspace:2@{PLANES}", "gpgd", "GPGD", PGD(STEPS, relative_step_size=1.5 / STEPS, start="none")),
    # 0.045 in the coordinates of a 32 x 32 image whose outer pixels lie at -1 and 1: 0.045 * 31 / 2 pixels
    Column("flow:0.6975", "stadv", "StAdv", PGD(STEPS, relative_step_size=1.5 / STEPS, start="none")),
)
_NOTES = (
    "Semantic attacks have 10 steps and one start, and TaFD trains with the same attacks: their accuracies are "
    "upper bounds that longer searches lower. The suite unforeseen searches longer.",
    "linf and l2 are attacked by APGD on cross-entropy alone, without AutoAttack.",
    "A network that chooses a path by a hard decision is attacked through a differentiable surrogate (BPDA), which "
    "may hide weaknesses.",
    "The paper reports the mean of the columns and no worst case. The union counts the images that withstand every "
    "column.",
    "Sizes are those of the paper for images of 32 x 32 pixels.",
)
_V10_NOTES = (
    "An image counts as broken if any point of a search is misclassified. ReColorAdv runs without its penalty on "
    "rough maps, ALA starts at uniform slopes, and RetouchUAA has the ranges of the threat retouch.",
)
_V20_NOTES = (
    "An image counts as broken if any point of a search is misclassified. GPGD takes the plane that is nearest to "
    "an image, and not that of its label.",
)


def _suite(name: str, columns: tuple[Column, ...], threat: ThreatOrKind) -> Suite:
    """The attack of a column."""
    kind = kind_of(threat)
    for one in columns:
        if one.kind == kind:
            return Suite(name, {one.attack: one.search}, titles={one.attack: one.title})
    raise undefined(name, threat, [one.kind for one in columns])


def _protocol(name: str, title: str, columns: tuple[Column, ...], notes: tuple[str, ...]) -> Protocol:
    return Protocol(
        name,
        f"{title} of TaFD: {', '.join(one.title for one in columns)}, and the mean with clean accuracy.",
        threats=lambda shape: tuple(one.threat for one in columns),
        suite=partial(_suite, name, columns),
        mean="with_clean",
        compares=False,
        notes=(*_NOTES, *notes),
    )


TAFD_V10 = _protocol("tafd_v10", "Evaluation V10", V10, _V10_NOTES)
TAFD_V20 = _protocol("tafd_v20", "Evaluation V20", V20, _V20_NOTES)
