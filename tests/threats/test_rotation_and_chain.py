"""Rotations turn images as they should, and chains apply their parts in order."""

import pytest
import torch

from robustly.randomness import KeyedGenerator
from robustly.threats import Chain, Rotation, Threat, ThreatError, ThreatModel, parse_threat
from robustly.threats.rotation import rotated


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_are_exact(turns: int) -> None:
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = rotated(x, torch.full((2,), 90.0 * turns))
    assert torch.allclose(found, torch.rot90(x, turns, (2, 3)), atol=1e-5)


def test_a_point_of_a_rectangle_lands_where_geometry_puts_it() -> None:
    x = torch.zeros(1, 1, 9, 15)
    x[0, 0, 4, 12] = 1.0  # five to the right of the centre; at 3-4-5's angle four to the right and three up
    found = rotated(x, torch.tensor([36.86989764584402]))
    assert found[0, 0].argmax() == 1 * 15 + 11
    assert float(found[0, 0, 1, 11]) == pytest.approx(1.0, abs=1e-4)


def test_the_background_has_the_least_value_of_the_box() -> None:
    x = torch.full((1, 1, 8, 8), 2.0)
    theta = torch.tensor([[45.0]])
    corner = Rotation(90, box=(-1.0, 3.0)).around(x).apply(theta)[0, 0, 0, 0]
    assert float(corner) == pytest.approx(-1.0, abs=1e-5)


def test_angles_are_uniform_in_their_range_and_zero_is_exact() -> None:
    x = torch.rand(400, 1, 4, 4)
    allowed = Rotation(30).around(x)
    angles = allowed.random_start(KeyedGenerator(0, torch.arange(400)))[:, 0]
    assert float(angles.min()) < -28
    assert float(angles.max()) > 28
    assert abs(float(angles.mean())) < 2
    assert torch.equal(allowed.apply(torch.zeros(400, 1)), x)


def test_a_step_follows_the_sign_of_the_gradient_in_degrees() -> None:
    allowed = Rotation(30).around(torch.rand(3, 1, 4, 4))
    moved = allowed.step(torch.zeros(3, 1), torch.tensor([[5.0], [-0.1], [0.0]]), torch.tensor([4.0, 50.0, 1.0]))
    assert moved[:, 0].tolist() == [4.0, -30.0, 0.0]


def test_rotations_need_images() -> None:
    with pytest.raises(ThreatError, match=r"\(N, C, H, W\).*\(3, 7\)|\[N, C, H, W\].*\[3, 7\]"):
        Rotation(30).around(torch.rand(3, 7))


def test_a_chain_applies_its_parts_in_order() -> None:
    x = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
    delta = torch.full((2, 36), 0.1)
    angles = torch.tensor([[20.0], [-30.0]])
    first = parse_threat("rotation:30+linf:0.1").around(x)
    assert torch.allclose(first.apply(torch.cat([angles, delta], 1)), (rotated(x, angles[:, 0]) + 0.1).clamp(0, 1))
    then = parse_threat("linf:0.1+rotation:30").around(x)
    assert torch.allclose(then.apply(torch.cat([delta, angles], 1)), rotated(x + 0.1, angles[:, 0]), atol=1e-6)


def test_the_noise_of_a_chain_is_not_held_by_values_that_the_rotation_moved_away() -> None:
    """A white pixel cannot grow brighter, but the black one that the rotation puts there can."""
    x = torch.ones(1, 1, 8, 8)
    chain = parse_threat("rotation:45+linf:0.2").around(x)
    theta = torch.cat([torch.tensor([[45.0]]), torch.full((1, 64), 0.2)], 1)
    assert chain.contains(theta).all()
    assert float(chain.apply(theta)[0, 0, 0, 0]) == pytest.approx(0.2, abs=1e-5)


def test_the_size_of_a_chain_is_the_largest_share_of_a_limit() -> None:
    chain = parse_threat("rotation:30+linf:0.2").around(torch.full((1, 1, 4, 4), 0.5))
    theta = torch.cat([torch.tensor([[15.0]]), torch.full((1, 16), 0.05)], 1)
    assert float(chain.size(theta)) == pytest.approx(0.5)
    assert str(parse_threat("rotation:30+linf:0.2").scaled(0.5)) == "rotation:15+linf:0.1"
    assert [float(share) for share in parse_threat("rotation:100+linf:0.2").extents_at((0.5, 1, 2))] == [0.5, 1.0]


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.1), ("l2", 1.0), ("l1", 6.0), ("l0", 6)])
def test_a_ball_in_a_chain_is_searched_as_well_as_alone(norm: str, epsilon: float) -> None:
    weight = KeyedGenerator(0, torch.arange(1)).normal(1, 8, 8)
    x = KeyedGenerator(1, torch.arange(20)).uniform(1, 8, 8).round()  # black and white: every value is at the box

    def ascent(threat: Threat) -> torch.Tensor:
        allowed = threat.around(x)
        theta = allowed.random_start(KeyedGenerator(2, torch.arange(20)))
        for _ in range(20):
            point = theta.detach().requires_grad_()
            (gradient,) = torch.autograd.grad((allowed.apply(point) * weight).sum(), point)
            theta = allowed.step(theta, gradient, allowed.default_step_size(20))
        assert allowed.contains(theta).all()
        return ((allowed.apply(theta) - x) * weight).sum((1, 2, 3))

    alone, after = ThreatModel(norm, epsilon), Chain([Rotation(0), ThreatModel(norm, epsilon)])
    assert float((ascent(after) / ascent(alone)).mean()) > 0.8
