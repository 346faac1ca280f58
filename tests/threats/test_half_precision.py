"""Inputs in half precision, and autocast: points are inside the set as float32 measures it."""

import pytest
import torch
from torch import Tensor, nn

from robustly.attacks import APGD, PGD
from robustly.randomness import KeyedGenerator
from robustly.threats import Features, Planes, Subspace, Threat, parse_threat

THREATS = (
    "linf:8/255", "l2:0.5", "l1:5", "l0:3", "affine:rotation=30,shift=2", "scale:0.2", "brightness:0.2", "hue:0.5",
    "hsv_curve:16", "lightness:16", "recolor:0.06", "flow:0.8", "patch:3", "hue:0.5+linf:4/255",
    "linf:8/255&shift:1", "recolor:0.06+linf:8/255",
)  # fmt: skip
X = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
DRAWS = KeyedGenerator(0, torch.arange(3))


def every() -> list[Threat]:
    basis = torch.linalg.qr(torch.randn(192, 4, generator=torch.Generator().manual_seed(1)))[0].T
    planes = Planes(torch.cat([torch.full((1, 192), 0.5), basis])[None])
    limits = torch.full((2, 192), 0.03)
    return [*map(parse_threat, THREATS), Subspace(0.7, planes), Features(1, limits)]


class Means(nn.Module):
    """Linear scores of the means of three regions, of images of any type."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(192, 3)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.score(images.flatten(1))
        return scores


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("threat", every(), ids=lambda threat: str(threat).partition("@")[0])
def test_points_around_inputs_in_half_precision_are_inside_in_float32(threat: Threat, dtype: torch.dtype) -> None:
    x = X.to(dtype)
    allowed, measured = threat.around(x), threat.around(x.float())
    theta = allowed.random_start(DRAWS)
    for number in range(3):
        gradient = DRAWS.fold("gradient", number).normal(*theta.shape[1:]).to(theta)
        theta = allowed.step(theta, gradient, allowed.default_step_size(2))
    assert theta.dtype == torch.float32
    assert measured.contains(theta).all()
    assert torch.equal(allowed.apply(theta), measured.apply(theta))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("text", ["linf:8/255", "l2:0.5", "l1:5", "flow:0.8", "hue:0.5+linf:4/255"])
def test_attacks_on_networks_and_images_in_half_precision_stay_inside(text: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net, x, threat = Means().to(dtype), X.to(dtype), parse_threat(text)
    y = net(x).argmax(1)
    for attack in (PGD(3), PGD(3, precision="bfloat16"), APGD(5, precision="bfloat16")):
        found = attack(net, x, y, threat=threat, generator=DRAWS)
        points = found.x_adv if found.theta is None else found.theta
        assert found.x_adv.dtype == torch.float32
        assert threat.around(x.float()).contains(points).all()
        assert torch.equal(net(found.x_adv.to(dtype)).argmax(1) != y, found.broken)


@pytest.mark.parametrize("threat", every(), ids=lambda threat: str(threat).partition("@")[0])
def test_autocast_does_not_change_what_a_threat_renders(threat: Threat) -> None:
    allowed = threat.around(X)
    theta = allowed.random_start(DRAWS)
    expected = allowed.apply(theta)
    with torch.autocast("cpu", torch.bfloat16):
        again = threat.around(X)
        assert torch.equal(again.random_start(DRAWS), theta)
        rendered = again.apply(theta)
    assert rendered.dtype == torch.float32
    assert torch.equal(rendered, expected)
