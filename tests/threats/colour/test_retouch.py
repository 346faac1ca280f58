"""Each part of retouching follows its formula, and all parts at zero are the identity."""

import math

import pytest
import torch

from robustly.randomness import KeyedGenerator
from robustly.threats import parse_threat
from robustly.threats.colour.cie import decoded, encoded
from robustly.threats.colour.retouch import RETOUCH, sharpened, white_balanced

IDS = torch.arange(2)
IMAGES = KeyedGenerator(0, IDS).uniform(3, 6, 5)
PARTS = {"gamma": 192, "saturation": 193, "white balance": 194, "contrast": 195, "hue": 196, "sharpness": 197}


def retouched(part: str, share: float) -> torch.Tensor:
    theta = torch.zeros(2, 198)
    theta[:, PARTS[part]] = share
    return parse_threat("retouch:1").around(IMAGES).apply(theta)


def test_gamma_and_contrast_are_curves_of_linear_light() -> None:
    linear = decoded(IMAGES)
    assert torch.allclose(retouched("gamma", 1.0), encoded(linear**2), atol=1e-4)
    assert torch.allclose(retouched("gamma", -1.0), encoded(linear.sqrt()), atol=1e-3)
    middle = encoded(0.5 * linear + 0.5 * (0.5 - 0.5 * (math.pi * linear).cos()))
    assert torch.allclose(retouched("contrast", 0.5), middle, atol=1e-4)


def test_no_saturation_is_grey() -> None:
    grey = retouched("saturation", -1.0)
    assert float((grey - grey.mean(1, keepdim=True)).abs().max()) < 1e-4


def test_white_balance_keeps_the_luminance_of_white() -> None:
    white = torch.ones(2, 3, 1, 1)
    found = white_balanced(white, torch.tensor([2.0, 0.5])).flatten(1)
    assert torch.allclose(found @ torch.tensor([0.27, 0.67, 0.06]), torch.ones(2))
    assert (found[:, 2] / found[:, 0]).tolist() == pytest.approx([2.0, 0.5])


def test_sharpness_doubles_a_peak_over_its_neighbours() -> None:
    peak = torch.zeros(1, 1, 5, 5)
    peak[0, 0, 2, 2] = 1.0
    found = sharpened(peak, torch.tensor([2.0]))[0, 0]
    assert float(found[2, 2]) == pytest.approx(2 - 5 / 13)
    assert float(found[1, 2]) == pytest.approx(-1 / 13)
    assert torch.equal(retouched("sharpness", 0.7), retouched("sharpness", -0.7))


@pytest.mark.parametrize("part", PARTS)
def test_every_part_changes_images_and_can_be_searched_from_the_identity(part: str) -> None:
    assert float((retouched(part, 0.5) - IMAGES).abs().max()) > 1e-2
    theta = torch.zeros(2, 198, requires_grad=True)
    weight = KeyedGenerator(1, IDS).normal(3, 6, 5)
    changed = parse_threat("retouch:1").around(IMAGES).apply(theta)
    (gradient,) = torch.autograd.grad((changed * weight).sum(), theta)
    assert (gradient[:, PARTS[part]] != 0).all()


def test_words_name_every_part() -> None:
    words = RETOUCH.words([*[0.0] * 192, 1.0, -0.5, 0.0, 0.25, -0.1, 0.4])
    assert words.startswith(
        "gamma 2, saturation times 0.5, blue times 1, contrast +0.25, hue shifted by -0.1 radians"
    )
