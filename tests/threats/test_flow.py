"""Flow fields displace pixels as they should, and are measured in pixels."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustly.attacks import PGD, AttackError, SmoothPGD
from robustly.randomness import KeyedGenerator
from robustly.testing import check_attack
from robustly.threats import Flow, ThreatError, parse_threat
from robustly.threats.flow import displaced


def images(count: int = 3, channels: int = 2, height: int = 7, width: int = 5) -> torch.Tensor:
    return KeyedGenerator(0, torch.arange(count)).uniform(channels, height, width)


def test_a_flow_of_zero_is_exact_and_one_pixel_shifts_the_image() -> None:
    x = images()
    assert torch.equal(Flow(2).around(x).apply(torch.zeros(3, 2, 7, 5)), x)
    down, right = torch.zeros(3, 2, 7, 5), torch.zeros(3, 2, 7, 5)
    down[:, 0], right[:, 1] = 1.0, -1.0
    assert torch.allclose(displaced(x, down)[:, :, :-1], x[:, :, 1:], atol=1e-5)
    assert torch.allclose(displaced(x, down)[:, :, -1], x[:, :, -1], atol=1e-5), "edges are continued"
    assert torch.allclose(displaced(x, right)[..., 1:], x[..., :-1], atol=1e-5)
    assert torch.allclose(displaced(x, right)[..., 0], x[..., 0], atol=1e-5)


def test_half_a_pixel_is_the_mean_of_two_neighbours() -> None:
    x, flow = images(), torch.zeros(3, 2, 7, 5)
    flow[:, 0, 3, 2] = 0.5
    found = displaced(x, flow)
    assert torch.allclose(found[:, :, 3, 2], (x[:, :, 3, 2] + x[:, :, 4, 2]) / 2, atol=1e-5)
    found[:, :, 3, 2] = x[:, :, 3, 2]
    assert torch.allclose(found, x, atol=1e-5), "the other pixels stay"


def test_roughness_counts_the_differences_of_all_neighbours() -> None:
    field = Flow(2).around(images(2))
    theta = field.identity()
    assert field.roughness(theta).tolist() == [0.0, 0.0]
    theta[0] = 1.5
    theta[1, 0, 3, 2], theta[1, 1, 3, 2] = 0.6, 0.8  # one pixel a length of 1 from its four neighbours
    assert field.roughness(theta)[0] == pytest.approx(0.0, abs=1e-4), "a constant flow is smooth"
    assert field.roughness(theta)[1] == pytest.approx(8.0, rel=1e-3)
    flat = torch.zeros_like(theta, requires_grad=True)
    assert torch.autograd.grad(field.roughness(flat).sum(), flat)[0].isfinite().all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.floats(0.1, 3.5), st.permutations(range(4)))
def test_flows_stay_inside_and_do_not_depend_on_the_batch(seed: int, channels: int, size: float, order) -> None:
    x, rows = images(4, channels, 4, 6), torch.tensor(order)
    threat = Flow(size)

    def moved(x: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        field, draws = threat.around(x), KeyedGenerator(seed, ids)
        theta = field.random_start(draws)
        theta = field.step(theta, draws.fold("gradient").normal(2, 4, 6), field.default_step_size(3))
        assert field.contains(theta).all()
        return theta, field.apply(theta)

    theta, found = moved(x, torch.arange(4))
    assert float(theta.abs().max()) <= size * (1 + 1e-6)
    assert float(found.min()) >= float(x.min()) - 1e-6
    assert float(found.max()) <= float(x.max()) + 1e-6
    for other, one in zip(moved(x[rows], rows), (theta, found), strict=True):
        assert torch.allclose(other, one[rows], atol=1e-6)
    alone = moved(x[1:2], torch.tensor([1]))[1]
    assert torch.allclose(alone, found[1:2], atol=1e-6)


def test_bad_inputs_are_refused() -> None:
    with pytest.raises(ThreatError, match="at least 0 pixels, got -1"):
        parse_threat("flow:-1")
    with pytest.raises(ThreatError, match=r"flow:5 moves pixels across the whole image.*7 x 5 pixels"):
        Flow(5).around(images())
    with pytest.raises(ThreatError, match=r"\(N, C, H, W\), got \(3, 7\)"):
        Flow(1).around(torch.rand(3, 7))
    assert Flow("0.8").around(images(1)).describe(torch.ones(1, 2, 7, 5)) == [
        "pixels moved by up to 1.41 pixels, 1.41 on average"
    ]
    with pytest.raises(ThreatError, match="is empty"):
        Flow(1, box=(1, 0))


class Columns(torch.nn.Module):
    """The second class where the left half is brighter than the right by more than any flow achieves."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half = x.shape[-1] // 2
        lead = x[..., :half].mean((1, 2, 3)) - x[..., half:].mean((1, 2, 3)) - 2
        return torch.stack([torch.zeros_like(lead), lead], 1)


def test_stadv_raises_the_margin_and_smoothness_lowers_the_roughness() -> None:
    x, threat = images(4, 1, 8, 8), Flow("0.8")
    y, draws = Columns()(x).argmax(1), KeyedGenerator(0, torch.arange(4))
    plain, smooth, stiff = (
        SmoothPGD(12, smoothness=weight)(Columns(), x, y, threat=threat, generator=draws)
        for weight in (0.0, 0.0025, 1e3)
    )
    field = threat.around(x)
    before = SmoothPGD(0)(Columns(), x, y, threat=threat, generator=draws).margin
    assert (smooth.margin > before + 1e-3).all()
    assert (field.roughness(smooth.theta) < field.roughness(plain.theta)).all()
    assert (field.roughness(stiff.theta) < field.roughness(smooth.theta)).all()
    assert (stiff.margin < plain.margin).all()
    assert field.contains(smooth.theta).all()
    assert smooth.forwards.tolist() == [14] * 4
    assert smooth.backwards.tolist() == [12] * 4


@pytest.mark.slow
def test_stadv_keeps_the_contract_of_attacks() -> None:
    check_attack(SmoothPGD(4, restarts=2), (Flow("0.8"),))


def test_stadv_needs_a_roughness() -> None:
    x, y, draws = images(1), torch.zeros(1, dtype=torch.int64), KeyedGenerator(0, torch.arange(1))
    with pytest.raises(AttackError, match="any threat with a roughness, the threat is rotation:30"):
        SmoothPGD(1)(Columns(), x, y, threat=parse_threat("rotation:30"), generator=draws)
    assert PGD.needs.accept(Flow(1))


@pytest.mark.parametrize(
    "setting", [{"steps": -1}, {"restarts": 0}, {"relative_step_size": 0.0}, {"smoothness": -1}]
)
def test_settings_out_of_range_are_refused(setting) -> None:
    with pytest.raises(AttackError, match="must be"):
        SmoothPGD(**setting)
