"""A patch changes one square, and its search finds the square that matters."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustly.attacks import PGD, AttackError, PatchSearch
from robustly.randomness import KeyedGenerator
from robustly.testing import check_attack
from robustly.threats import Patch, ThreatError, ThreatModel, parse_threat


def images(count: int = 3, channels: int = 2, height: int = 7, width: int = 6) -> torch.Tensor:
    return KeyedGenerator(0, torch.arange(count)).uniform(channels, height, width)


def test_contains_is_exact_about_the_square() -> None:
    allowed = Patch(3).around(images(4))
    theta = allowed.identity()
    theta[0, 0, 2, 1] = theta[0, 1, 4, 3] = 0.1  # 3 x 3
    theta[1, 0, 2, 1] = theta[1, 1, 5, 2] = 0.1  # four rows
    theta[2, 0, 2, 1] = theta[2, 1, 2, 4] = 1e-30  # four columns
    assert allowed.size(theta).tolist() == [3.0, 4.0, 4.0, 0.0]
    assert allowed.contains(theta).tolist() == [True, False, False, True]
    assert allowed.describe(theta)[0] == "pixels changed in rows 2 to 4 and columns 1 to 3"
    assert allowed.describe(theta)[3] == "unchanged"


def test_a_projection_keeps_the_best_square_of_all() -> None:
    allowed = Patch(2).around(images(5, 1, 4, 5) * 0.4 + 0.3)
    far = KeyedGenerator(1, torch.arange(5)).normal(1, 4, 5)
    nearest = torch.full((5,), torch.inf)
    clipped = (allowed.x + far).clamp(0, 1) - allowed.x
    for row in range(3):
        for column in range(4):
            inside = torch.zeros(5, 1, 4, 5)
            inside[..., row : row + 2, column : column + 2] = 1
            nearest = torch.minimum(nearest, (far - clipped * inside).square().flatten(1).sum(1))
    found = allowed.project(far)
    assert allowed.contains(found).all()
    assert torch.allclose((far - found).square().flatten(1).sum(1), nearest, rtol=1e-5)


def test_the_first_step_goes_where_the_gradient_is_largest() -> None:
    allowed, gradient = Patch(2).around(torch.full((1, 1, 6, 6), 0.5)), torch.full((1, 1, 6, 6), 0.1)
    gradient[0, 0, 3:5, 1:3] = -1.0
    moved = allowed.step(allowed.identity(), gradient, torch.tensor([0.2]))
    assert allowed.corners(moved).tolist() == [[3, 1]]
    assert moved[0, 0, 3, 1] == pytest.approx(-0.1), "a tenth of the side is a tenth of the box"
    assert torch.equal(allowed.step(moved, torch.zeros_like(moved), torch.tensor([0.2])), moved)


def test_contents_and_places_are_inverse() -> None:
    allowed = Patch(3).around(images())
    theta = allowed.random_start(KeyedGenerator(2, torch.arange(3)))
    assert torch.allclose(allowed.placed(allowed.contents(theta), allowed.corners(theta)), theta, atol=1e-6)
    there = allowed.placed(allowed.contents(theta), torch.tensor([[4, 3]] * 3))
    assert torch.allclose(allowed.apply(there)[:, :, 4:, 3:], allowed.contents(theta), atol=1e-6)


def test_starts_reach_every_place() -> None:
    allowed = Patch(3).around(torch.zeros(400, 1, 5, 4))
    corners = allowed.corners(allowed.random_start(KeyedGenerator(0, torch.arange(400))))
    assert len({tuple(corner) for corner in corners.tolist()}) == 3 * 2


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 4), st.permutations(range(4)))
def test_patches_stay_inside_and_do_not_depend_on_the_batch(seed: int, channels: int, side: int, order) -> None:
    x, rows, threat = images(4, channels, 4, 6), torch.tensor(order), Patch(side)

    def moved(x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        allowed, draws = threat.around(x), KeyedGenerator(seed, ids)
        theta = allowed.random_start(draws)
        theta = allowed.step(theta, draws.fold("gradient").normal(channels, 4, 6), allowed.default_step_size(3))
        assert allowed.contains(theta).all()
        return allowed.apply(theta)

    found = moved(x, torch.arange(4))
    changed = (found != x).any(1)
    assert int(changed.any(1).sum(1).max()) <= side
    assert int(changed.any(2).sum(1).max()) <= side
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    assert torch.equal(moved(x[rows], rows), found[rows])
    assert torch.equal(moved(x[1:2], torch.tensor([1])), found[1:2])


def test_bad_inputs_are_refused() -> None:
    with pytest.raises(ThreatError, match=r"patch:7 is larger than images of 7 x 6 pixels"):
        parse_threat("patch:7").around(images())
    with pytest.raises(ThreatError, match="whole number of pixels of at least 0, got -1"):
        Patch(-1)
    with pytest.raises(ThreatError, match=r"\(N, C, H, W\), got \(3, 7\)"):
        Patch(2).around(torch.rand(3, 7))


class Spot(torch.nn.Module):
    """The second class where one square of 2 x 2 pixels is bright and the rest of the image does not count."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        lead = x[:, 0, 5:7, 2:4].mean((1, 2)) - 0.95
        return torch.stack([torch.zeros_like(lead), lead], 1)


def test_the_search_finds_the_one_square_that_matters() -> None:
    x, y, draws = (
        torch.full((4, 1, 9, 9), 0.5),
        torch.zeros(4, dtype=torch.int64),
        KeyedGenerator(0, torch.arange(4)),
    )
    found = PatchSearch(10, locations=2, moves=2)(Spot(), x, y, threat=Patch(2), generator=draws)
    assert found.broken.all()
    assert Patch(2).around(x).contains(found.theta).all()
    blind = PGD(0, restarts=30)(Spot(), x, y, threat=Patch(2), generator=draws)
    assert not blind.broken.all()
    with pytest.raises(AttackError, match="defined for patches, the threat is linf"):
        PatchSearch()(Spot(), x, y, threat=ThreatModel("linf", 0.1), generator=draws)
    assert PGD(10)(Spot(), x, y, threat=Patch(2), generator=draws).theta is not None


@pytest.mark.slow
def test_the_search_keeps_the_contract_of_attacks() -> None:
    check_attack(PatchSearch(3, locations=3, moves=3, restarts=2), (Patch(3),))


@pytest.mark.parametrize(
    "setting", [{"steps": -1}, {"restarts": 0}, {"locations": -1}, {"relative_step_size": 0.0}]
)
def test_settings_out_of_range_are_refused(setting) -> None:
    with pytest.raises(AttackError, match="must be"):
        PatchSearch(**setting)
