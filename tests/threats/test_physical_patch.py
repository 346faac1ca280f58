"""A printed patch under drawn conditions: its rendering, its conditions, and the search in expectation."""

import math

import pytest
import torch
from torch import Tensor, nn

from robustly.attacks import PGD, AttackError, ExpectedPatch
from robustly.evaluation.audit.check import Placed
from robustly.randomness import KeyedGenerator
from robustly.testing.attacks import check_attack
from robustly.testing.threats import check_threat
from robustly.threats import Patch, PhysicalPatch, ThreatError, parse_threat, physical_patch
from robustly.threats.physical_patch_set import drawn_from

STILL = {"rotation": 0, "scale": 0, "brightness": 0}


def images(count: int = 4, channels: int = 2, height: int = 9, width: int = 8) -> Tensor:
    return KeyedGenerator(0, torch.arange(count)).uniform(channels, height, width)


@pytest.mark.parametrize("box", [(0.0, 1.0), (-1.0, 2.0)])
@pytest.mark.parametrize("shape", [(3, 6, 5), (1, 9, 9)])
def test_the_contract_of_threats(shape: tuple[int, ...], box: tuple[float, float]) -> None:
    check_threat(PhysicalPatch(4, box=box), shape=shape)


def test_without_conditions_it_is_a_patch() -> None:
    x = images()
    allowed, flat = PhysicalPatch(3, **STILL).around(x), Patch(3).around(x)
    corners = torch.tensor([[0, 0], [6, 5], [2, 4], [3, 1]])
    contents = KeyedGenerator(1, torch.arange(4)).uniform(2, 3, 3)
    theta = allowed.placed(contents, corners + 1.0)
    assert bool(allowed.contains(theta).all())
    assert torch.allclose(allowed.apply(theta), flat.apply(flat.placed(contents, corners)), atol=1e-6)


def test_turned_scaled_and_lit_prints() -> None:
    x = torch.zeros(1, 1, 12, 12)
    contents = torch.tensor([[0.2, 0.4], [0.6, 0.8]]).view(1, 1, 2, 2)
    threat = PhysicalPatch(2, 90, 0.9, 0.1)
    allowed = threat.around(x)
    theta = allowed.placed(contents, torch.tensor([[5.5, 5.5]]))

    def seen(*conditions: float) -> Tensor:
        return allowed.seen_under(torch.tensor([conditions])).apply(theta)[0, 0]

    upright = seen(0, 0, 0)
    assert torch.allclose(upright[5:7, 5:7], contents[0, 0], atol=1e-6)
    assert float(upright.sum()) == pytest.approx(2.0, abs=1e-5)
    quarter = seen(1, 0, 0)
    assert torch.allclose(quarter, torch.rot90(upright), atol=1e-5), "counter-clockwise, as the threat rotation"
    lit = seen(0, 0, 1)
    assert torch.allclose(lit[5:7, 5:7], contents[0, 0] + 0.1, atol=1e-6)
    assert float(lit.sum()) == pytest.approx(2.4, abs=1e-5), "the image around it is not lit"
    large = seen(0, 1 / 0.9, 0)  # twice the side
    assert int((large > 0.05).sum()) >= 16
    assert float(large.sum()) == pytest.approx(4 * 2.0, rel=0.05)


def test_conditions_belong_to_the_image_alone() -> None:
    x = (images(2000, 1, 6, 6) * 255).round() / 255
    drawn = drawn_from(x, (0.0, 1.0))
    assert torch.equal(drawn_from(x.double(), (0.0, 1.0)), drawn)
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn_from(x[order], (0.0, 1.0)), drawn[order])
    assert torch.equal(drawn_from(3 * x - 1, (-1.0, 2.0)), drawn), "another box of the same 8-bit images"
    assert torch.equal(drawn_from(x + 0.001, (0.0, 1.0)), drawn)
    assert float(drawn.abs().max()) <= 1
    assert float(drawn.mean(0).abs().max()) < 4 / math.sqrt(3 * 2000)
    assert drawn.var(0).tolist() == pytest.approx([1 / 3] * 3, abs=0.03)
    assert float(torch.corrcoef(drawn.T).fill_diagonal_(0).abs().max()) < 0.1
    changed = x.clone()
    changed[:, 0, 0, 0] = 1 - changed[:, 0, 0, 0]
    other = drawn_from(changed, (0.0, 1.0))
    assert float(torch.corrcoef(torch.cat([drawn, other], 1).T)[:3, 3:].abs().max()) < 0.1


def test_an_audit_finds_images_under_other_conditions() -> None:
    """A forger renders a print under conditions that fool the model."""
    allowed, rows = PhysicalPatch(4).around(images()), torch.arange(4)
    theta = allowed.random_start(KeyedGenerator(2, rows))
    honest = Placed(rows, rows.numpy(), allowed.apply(theta), theta)
    assert not honest.rendering_problem(allowed)
    others = allowed.seen_under(allowed.conditions.roll(1, 0)).apply(theta)
    assert "4 images differ" in Placed(rows, rows.numpy(), others, theta).rendering_problem(allowed)


def test_the_parameters_are_those_of_a_print() -> None:
    allowed = PhysicalPatch(3).around(images())
    theta = allowed.random_start(KeyedGenerator(2, torch.arange(4)))
    assert theta.shape == (4, 2 * 8 * 8 + 3)
    for column, value in (
        (0, 1.01),
        (3, 0.5),
        (-3, 0.5),
        (-2, 6.5),
        (-1, 2.5),
        (-1, 2.0),
        (-1, 4.0),
        (5, math.nan),
    ):
        wrong = theta.clone()
        wrong[1, column] = value
        assert allowed.contains(wrong).tolist() == [True, False, True, True], (column, value)
    larger = PhysicalPatch(5).around(images()).random_start(KeyedGenerator(2, torch.arange(4)))
    assert not allowed.contains(larger).any()
    assert PhysicalPatch(5).around(images()).contains(theta).all(), "a smaller print is allowed"
    words = allowed.describe(theta)[0]
    assert words.startswith("print of 3 x 3 pixels centred at row ")
    assert "degrees, scaled by " in words


def test_text_forms() -> None:
    threat = parse_threat("physical_patch:5")
    assert str(threat) == "physical_patch:5,rotation=20,scale=0.2,brightness=0.1"
    assert parse_threat(str(threat)) == threat
    other = parse_threat("physical_patch:5, scale=0, rotation=45")
    assert isinstance(other, PhysicalPatch)
    assert (other.rotation, other.scale, float(other.brightness)) == (45, 0, 0.1)
    assert "counts as right if it is classified correctly under its own" in threat.words()
    assert str(threat.scaled(0.5)) == "physical_patch:3,rotation=20,scale=0.2,brightness=0.1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("physical_patch:2.5", "whole number of pixels of at least 0, got 2.5"),
        (
            "physical_patch:3,rotation=200",
            "rotation of .* must be between 0 and 180 degrees, got 200",
        ),
        ("physical_patch:3,scale=1", "scale of a physical patch must be between 0 and 0.9, got 1"),
        ("physical_patch:3,light=1", "has the form physical_patch:8,rotation=20"),
        ("physical_patch:3,scale=0.1,scale=0.2", "each may occur once"),
        ("physical_patch:3,scale", "has the form"),
    ],
)
def test_bad_texts_are_refused(text: str, message: str) -> None:
    with pytest.raises(ThreatError, match=message):
        parse_threat(text)


def test_bad_inputs_are_refused() -> None:
    with pytest.raises(ThreatError, match="print of 9 pixels is larger than images of 9 x 8 pixels"):
        PhysicalPatch(9).around(images())
    with pytest.raises(ThreatError, match=r"images \(N, C, H, W\), got \(3, 7\)"):
        PhysicalPatch(2).around(torch.rand(3, 7))
    with pytest.raises(ThreatError, match="cannot be a part of a chain"):
        parse_threat("physical_patch:3+linf:0.1").around(images())
    net = nn.Sequential(nn.Flatten(), nn.Linear(2 * 72, 3))
    y, draws = torch.zeros(4, dtype=torch.int64), KeyedGenerator(0, torch.arange(4))
    with pytest.raises(AttackError, match="defined for PhysicalPatchSet, the threat is patch"):
        ExpectedPatch()(net, images(), y, threat=Patch(3), generator=draws)
    for settings in ({"steps": -1}, {"samples": 0}, {"locations": 0}, {"relative_step_size": 0.0}):
        with pytest.raises(AttackError, match="must be"):
            ExpectedPatch(**settings)  # type: ignore[arg-type]


class Bright(nn.Module):
    """The second class where the image as a whole is brighter than a threshold."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        lead = 10 * (x.flatten(1).mean(1) - self.threshold)
        return torch.stack([torch.zeros_like(lead), lead], 1)


def test_the_search_climbs_in_expectation() -> None:
    """A white print of 5 x 5 of 12 x 12 pixels has a mean of 25 / 144 times the square of its scale."""
    x = KeyedGenerator(3, torch.arange(40)).uniform(1, 12, 12) * 0.02
    y, draws = torch.zeros(40, dtype=torch.int64), KeyedGenerator(0, torch.arange(40))
    threat = PhysicalPatch(5, 0, 0.5, 0)
    scale = 1 + 0.5 * drawn_from(x, (0.0, 1.0))[:, 1]
    found = ExpectedPatch(8, samples=2, locations=2)(Bright(0.18), x, y, threat=threat, generator=draws)
    assert found.theta is not None
    broken = found.broken
    assert torch.equal(broken, found.x_adv.flatten(1).mean(1) > 0.18)
    assert float(found.theta[broken][:, :144].sum(1).mean()) > 0.9 * 25, "nearly white"
    assert bool((scale[broken] > 0.9).all())
    assert bool(broken[scale > 1.2].all())
    assert 0.2 < float(broken.float().mean()) < 0.8, "the share of scales that are large enough is near one half"
    allowed = threat.around(x)
    assert torch.equal(allowed.apply(found.theta)[broken], found.x_adv[broken])


def test_the_search_does_not_use_the_conditions_of_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other conditions of the images change verdicts, and no parameters."""
    x, draws = torch.full((12, 1, 9, 9), 0.1), KeyedGenerator(0, torch.arange(12))
    y = torch.zeros(12, dtype=torch.int64)
    found = []
    for least in (-0.9, 0.5):
        own = torch.linspace(least, 0.9, 12)[:, None].expand(-1, 3)
        monkeypatch.setattr(physical_patch, "drawn_from", lambda x, box, own=own: own)
        attack = ExpectedPatch(3, samples=2, locations=2)
        found.append(attack(Bright(0.17), x, y, threat=PhysicalPatch(3, 30, 0.5, 0.2), generator=draws))
    assert int(found[0].broken.sum()) < int(found[1].broken.sum())
    both = found[0].broken & found[1].broken
    assert both.any()
    assert found[0].theta is not None
    assert found[1].theta is not None
    assert torch.equal(found[0].theta[both], found[1].theta[both])


@pytest.mark.slow
def test_the_search_keeps_the_contract_of_attacks() -> None:
    check_attack(ExpectedPatch(2, samples=2, locations=2), (PhysicalPatch(3),))


def test_searches_that_know_the_conditions_take_it_too() -> None:
    x, draws = images(4, 1, 8, 8) * 0.02, KeyedGenerator(0, torch.arange(4))
    y = torch.zeros(4, dtype=torch.int64)
    for start in ("random", "none"):
        found = PGD(10, start=start)(Bright(0.1), x, y, threat=PhysicalPatch(5), generator=draws)  # type: ignore[arg-type]
        assert found.broken.all()
