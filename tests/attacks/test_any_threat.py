"""Gradient searches work over threats that are not balls: rotation, and rotation followed by linf noise."""

import pytest
import torch
from torch import Tensor, nn

from robustly.attacks import APGD, FAB, MIM, NES, PGD, PMA, Attack, AttackError, TargetedAPGD, Transfer
from robustly.attacks.mim import InputDiversity
from robustly.data import Splits
from robustly.objectives import margin
from robustly.randomness import KeyedGenerator
from robustly.testing import check_attack
from robustly.threats import Rotation, Threat, ThreatModel, parse_threat

ROTATION, CHAIN = parse_threat("rotation:60"), parse_threat("rotation:30+linf:0.1")
GENERAL: dict[str, Attack] = {
    "pgd": PGD(5),
    "gaussian": PGD(4, start="gaussian", objective=margin),
    "halfway": PGD(4, start="halfway", restarts=2),
    "draws": PGD(0, restarts=5),
    "adam": PGD(5, update="adam"),
    "normalised": PGD(5, update="normalised"),
    "nes": PGD(3, estimator=NES(samples=4)),
    "mim": MIM(4),
    "apgd": APGD(8),
    "apgd_t": TargetedAPGD(6, targets=2),
    "pma": PMA(4),
}


@pytest.mark.slow
@pytest.mark.parametrize("threat", [ROTATION, CHAIN], ids=str)
@pytest.mark.parametrize("name", list(GENERAL))
def test_the_contract_is_kept(name: str, threat: Threat) -> None:
    check_attack(GENERAL[name], (threat,))


def bright_half(shift: float = 0.0) -> nn.Module:
    """Class 0 where the upper half is brighter than the lower one: turning the image over changes the class."""

    class Halves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            half = x.shape[2] // 2
            upper, lower = x[:, :, :half].mean((1, 2, 3)), x[:, :, half:].mean((1, 2, 3))
            return torch.stack([upper - lower + shift, lower - upper], dim=1)

    return Halves()


def upper_bright(count: int = 6) -> Tensor:
    x = torch.zeros(count, 1, 10, 10)
    x[:, :, :5] = torch.linspace(0.4, 1, count).view(-1, 1, 1, 1)
    return x


@pytest.mark.parametrize("name", ["pgd", "apgd", "mim", "draws", "adam"])
def test_an_image_is_turned_past_a_quarter(name: str) -> None:
    """The class changes at 90 degrees: a limit of 120 suffices, one of 80 does not, whatever the search."""
    x, y, attack = upper_bright(), torch.zeros(6, dtype=torch.int64), GENERAL[name]
    draws = KeyedGenerator(0, torch.arange(6))
    wide, narrow = Rotation(120), Rotation(80)
    if name != "draws":
        attack = {"pgd": PGD(30), "apgd": APGD(30), "mim": MIM(30), "adam": PGD(30, update="adam")}[name]
    else:
        attack = PGD(0, restarts=30)
    found = attack(bright_half(), x, y, threat=wide, generator=draws)
    assert found.broken.all()
    assert found.theta is not None
    assert (found.theta.abs() > 89).all()
    assert torch.allclose(wide.around(x).apply(found.theta), found.x_adv)
    assert torch.allclose(found.distance, found.theta.abs()[:, 0])
    assert not attack(bright_half(), x, y, threat=narrow, generator=draws).broken.any()


def test_a_chain_does_what_neither_part_can() -> None:
    """85 degrees leave the upper half a little brighter; noise of 0.05 makes up for it, and cannot do so alone."""
    x, y = upper_bright(), torch.zeros(6, dtype=torch.int64)
    draws = KeyedGenerator(0, torch.arange(6))
    for text, expected in (("rotation:85", False), ("linf:0.05", False), ("rotation:85+linf:0.05", True)):
        found = APGD(40)(bright_half(), x, y, threat=parse_threat(text), generator=draws)
        assert found.broken.all() == expected, text
        assert found.broken.any() == expected, text


@pytest.mark.slow
def test_real_digits_fall_to_rotation(digit_net: nn.Module, digits: Splits) -> None:
    x, y = digits.test.floats()[:100], digits.test.labels[:100]
    draws = KeyedGenerator(0, torch.arange(100))
    worst = PGD(10, restarts=3)(digit_net, x, y, threat=Rotation(45), generator=draws).broken
    clean = digit_net(x).argmax(1) != y
    draw = PGD(0, restarts=1)(digit_net, x, y, threat=Rotation(45), generator=draws).broken
    assert int(clean.sum()) <= int(draw.sum()) < int(worst.sum())
    mixed = PGD(10, restarts=3)(digit_net, x, y, threat=CHAIN, generator=draws).broken
    noise = PGD(10, restarts=3)(digit_net, x, y, threat=ThreatModel("linf", 0.1), generator=draws).broken
    assert int(mixed.sum()) > int(noise.sum())


def test_what_needs_a_ball_refuses_by_name() -> None:
    x, y = upper_bright(), torch.zeros(6, dtype=torch.int64)
    draws = KeyedGenerator(0, torch.arange(6))
    with pytest.raises(AttackError, match=r"linf, l2, l1.* rotation:60"):
        FAB()(bright_half(), x, y, threat=ROTATION, generator=draws)
    with pytest.raises(AttackError, match=r"'malt' .*Lp balls.* rotation:60"):
        TargetedAPGD(ranking="malt")(bright_half(), x, y, threat=ROTATION, generator=draws)
    with pytest.raises(AttackError, match="input diversity resizes images"):
        MIM(diversity=InputDiversity())(bright_half(), x, y, threat=ROTATION, generator=draws)


def test_rotations_transfer() -> None:
    x, y = upper_bright(), torch.zeros(6, dtype=torch.int64)
    draws = KeyedGenerator(0, torch.arange(6))
    attack = Transfer(PGD(30), (bright_half(shift=0.02),))
    found = attack(bright_half(), x, y, threat=Rotation(150), generator=draws)
    assert found.broken.all()
    assert found.theta is not None
