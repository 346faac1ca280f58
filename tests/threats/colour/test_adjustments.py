"""Hue, saturation, brightness and contrast change what they name, and nothing else."""

import math
import pickle

import pytest
import torch
from torch import Tensor, nn

from robustly.attacks import PGD
from robustly.objectives import margin
from robustly.randomness import KeyedGenerator
from robustly.threats import Described, ThreatError, parse_threat
from robustly.threats.colour import COLOUR_FAMILIES

IDS = torch.arange(4)
IMAGES = KeyedGenerator(0, IDS).uniform(3, 6, 5)
LIMITS = {"hue": 0.5, "ace": 16, "hsv_curve": 16, "lightness": 16, "recolor": 0.06, "retouch": 1}
ALL = [f"{family.kind}:{LIMITS.get(family.kind, 0.3)}" for family in COLOUR_FAMILIES]
GREY_TOO = ("brightness", "contrast", "lightness")


class Sum(nn.Module):
    """Two logits: the sum of all values minus a constant, and 0."""

    def __init__(self, constant: float) -> None:
        super().__init__()
        self.constant = constant

    def forward(self, x: Tensor) -> Tensor:
        total = x.flatten(1).sum(1) - self.constant
        return torch.stack([total, torch.zeros_like(total)], 1)


def test_brightness_and_contrast_are_a_sum_and_a_product() -> None:
    shift = parse_threat("brightness:0.2").around(IMAGES).apply(torch.full((4, 1), -0.2))
    assert torch.allclose(shift, (IMAGES - 0.2).clamp(0, 1))
    factor = parse_threat("contrast:0.3").around(IMAGES).apply(torch.full((4, 1), 1.3))
    assert torch.allclose(factor, (IMAGES * 1.3).clamp(0, 1))


@pytest.mark.parametrize("text", ALL)
def test_another_box_gives_the_same_change(text: str) -> None:
    inside = parse_threat(text).around(IMAGES)
    theta = inside.random_start(KeyedGenerator(1, IDS))
    elsewhere = parse_threat(text, (-1.0, 2.0)).around(IMAGES * 3 - 1)
    assert torch.allclose(elsewhere.apply(theta), inside.apply(theta) * 3 - 1, atol=1e-4)


def test_a_full_turn_of_hue_changes_nothing() -> None:
    turned = parse_threat("hue:3.14159").around(IMAGES).apply(torch.full((4, 1), 2 * math.pi))
    assert torch.allclose(turned, IMAGES, atol=1e-5)


@pytest.mark.parametrize("text", ["hue:3", "saturation:1"])
def test_grey_pixels_have_neither_hue_nor_saturation(text: str) -> None:
    grey = IMAGES[:, :1].expand(-1, 3, -1, -1)
    allowed = parse_threat(text).around(grey)
    changed = allowed.apply(allowed.random_start(KeyedGenerator(1, IDS)))
    assert torch.allclose(changed, grey, atol=1e-6)


@pytest.mark.parametrize("text", ALL)
def test_gradients_are_finite_at_grey_black_and_pure_colours(text: str) -> None:
    images = torch.tensor(
        [[0.5] * 3, [0.0] * 3, [1.0] * 3, [1.0, 0.0, 0.0], [1e-30, 0.0, 0.0], [0.5, 0.5, 0.5 + 1e-7]]
    )
    images = images.T.reshape(1, 3, 6, 1).clone().requires_grad_()
    allowed = parse_threat(text).around(images)
    for theta in (allowed.identity(), allowed.random_start(KeyedGenerator(0, torch.arange(1)))):
        point = theta.detach().requires_grad_()
        for gradient in torch.autograd.grad(allowed.apply(point).square().sum(), (point, images)):
            assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("text", ALL)
def test_grey_images_are_refused_by_name_where_colour_is_needed(text: str) -> None:
    threat, grey = parse_threat(text), IMAGES[:, :1]
    if threat.kind in GREY_TOO:
        assert (
            threat.around(grey).apply(threat.around(grey).random_start(KeyedGenerator(0, IDS))).shape == grey.shape
        )
    else:
        with pytest.raises(ThreatError, match=rf"{threat.kind} .*\(4, 1, 6, 5\): grey images have no colour"):
            threat.around(grey)
    with pytest.raises(ThreatError, match=rf"{threat.kind} is defined for images .*\(4, 30\)"):
        threat.around(torch.zeros(4, 30))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hue:30", "radians, got 30; 30 degrees are 0.5236 radians"),
        ("hue:3.2", "0 to 3.14159"),
        ("hue:0.5rad", "without its unit .radians."),
        ("saturation:1.3", "0 to 1 times the saturation, got 1.3"),
        ("brightness:51", "0 to 1 times the range of values, got 51"),
        ("contrast:-0.1", "0 to 1"),
        ("ace:0.5", "at least 1 times the least slope, got 0.5 .1 allows the identity only"),
        ("recolor:6", "0 to 1"),
        ("retouch:2", "0 to 1 times the ranges"),
    ],
)
def test_sizes_out_of_range_are_refused(text: str, message: str) -> None:
    with pytest.raises(ThreatError, match=message):
        parse_threat(text)


@pytest.mark.parametrize("beyond", [1e-3, -1e-3])
def test_pgd_reaches_the_end_of_the_interval_of_brightness(beyond: float) -> None:
    """The sum of all values falls by 0.2 per value and no further."""
    x = IMAGES[:1] * 0.4 + 0.3
    constant = float(x.sum()) - 0.2 * x.numel() * (1 + beyond)
    found = PGD(5, objective=margin)(
        Sum(constant),
        x,
        torch.zeros(1, dtype=torch.int64),
        threat=parse_threat("brightness:0.2"),
        generator=KeyedGenerator(0, IDS[:1]),
    )
    assert bool(found.broken) == (beyond < 0)
    assert found.theta is not None
    assert float(found.theta) == pytest.approx(-0.2)


def test_a_chain_whose_other_parts_are_0_equals_pgd() -> None:
    net, attack = nn.Sequential(nn.Flatten(), nn.Linear(90, 3)), PGD(3, start="none", early_stop=False)
    y = net(IMAGES).argmax(1)
    alone, chained = (
        attack(net, IMAGES, y, threat=parse_threat(text), generator=KeyedGenerator(0, IDS)).x_adv
        for text in ("linf:4/255", "hue:0+brightness:0+linf:4/255")
    )
    assert not torch.equal(alone, IMAGES)
    assert torch.allclose(alone, chained, atol=1e-6)


@pytest.mark.parametrize("order", [ALL, ALL[::-1]], ids=["forward", "backward"])
def test_every_colour_threat_is_a_part_of_a_chain(order: list[str]) -> None:
    allowed = parse_threat("+".join([*order, "linf:4/255"])).around(IMAGES)
    theta = allowed.random_start(KeyedGenerator(0, IDS)).requires_grad_()
    (gradient,) = torch.autograd.grad(allowed.apply(theta).square().sum(), theta)
    assert torch.isfinite(gradient).all()
    assert allowed.contains(allowed.step(theta.detach(), gradient, allowed.radius)).all()
    assert torch.equal(allowed.apply(allowed.identity()), IMAGES)


@pytest.mark.parametrize("text", ALL)
def test_changes_are_described_and_threats_can_be_sent_to_other_processes(text: str) -> None:
    allowed = parse_threat(text).around(IMAGES)
    assert isinstance(allowed, Described)
    assert allowed.describe(allowed.identity()) == ["unchanged"] * 4
    words = allowed.describe(allowed.random_start(KeyedGenerator(0, IDS)))
    assert len(words) == 4
    assert "unchanged" not in words
    assert pickle.loads(pickle.dumps(parse_threat(text))) == parse_threat(text)  # noqa: S301
