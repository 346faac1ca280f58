"""Wrappers for adaptive attacks: exact forwards, a function of each image alone, honest about detection."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustly.attacks import APGD, PGD, AttackError
from robustly.attacks.adaptive import (
    BPDA,
    Detected,
    ExpectationOverTransformation,
    UndetectedGoal,
    accuracy_over_draws,
    undetected_margin,
)
from robustly.objectives import ClassificationGoal, margin
from robustly.randomness import KeyedGenerator
from robustly.testing import small_network
from robustly.threats.lp import ThreatModel

WEIGHT = torch.tensor([[0.0, 0, 0, 0], [2, 2, 2, 2], [6, 0, 0, 0], [3, 3, 0, 0]])
BIAS = torch.tensor([0, -4.8, -3.9, -3.606])
SHAPE = (1, 4, 4)


def noise(count: int, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return KeyedGenerator(seed, torch.arange(count)).uniform(*shape)


class Toy(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@settings(max_examples=20, deadline=None)
@given(levels=st.integers(1, 300), seed=st.integers(0, 1000))
def test_bpda_gives_the_stage_to_the_last_bit_and_the_substitutes_gradient(levels: int, seed: int) -> None:
    def rounded(x: Tensor) -> Tensor:
        return (x * levels).round() / levels

    x = noise(3, seed).requires_grad_()
    for backward, gradient in (("identity", torch.ones_like(x)), (torch.square, 2 * x.detach())):
        out = BPDA(rounded, backward)(x)
        assert torch.equal(out, rounded(x))
        (found,) = torch.autograd.grad(out.sum(), x)
        assert torch.allclose(found, gradient)


def test_bpda_refuses_what_does_not_fit() -> None:
    with pytest.raises(AttackError, match=r"'identity'.* 'sign'"):
        BPDA(torch.round, "sign")
    with pytest.raises(AttackError, match="must be equal"):
        BPDA(lambda x: x.flatten(1))(noise(2))


class Noisy(nn.Module):
    """A network on noisy images, with noise on its logits and dropout that stays on."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_network(SHAPE).eval()

    def forward(self, x: Tensor) -> Tensor:
        seen = nn.functional.dropout(x + 0.1 * torch.randn_like(x), 0.2, training=True)
        logits: Tensor = self.net(seen)
        return logits + 0.05 * torch.randn(len(x), 4)


def test_the_mean_over_draws_is_a_function_of_each_image_alone() -> None:
    net = ExpectationOverTransformation(Noisy(), draws=5)
    x = noise(9)
    whole = net(x)
    assert torch.equal(net(x), whole)
    assert torch.allclose(net(x.flip(0)).flip(0), whole, atol=1e-6)
    assert torch.allclose(torch.cat([net(part) for part in x.split(2)]), whole, atol=1e-6)
    assert torch.allclose(net(x[:1].expand(3, *SHAPE)), whole[:1].expand(3, 4), atol=1e-6)
    one_by_one = ExpectationOverTransformation(net.model, draws=5, vectorised=False)
    assert torch.allclose(one_by_one(x), whole, atol=1e-6)
    assert not torch.allclose(ExpectationOverTransformation(net.model, draws=5, seed=1)(x), whole, atol=1e-3)
    assert net(x[:0]).shape == (0, 4)


def test_the_mean_over_draws_is_the_mean() -> None:
    """Of N(0, 1) noise on the logits 1 / sqrt(draws) is left; the gradient is that of the rest."""
    net = ExpectationOverTransformation(Toy(lambda x: x.flatten(1) + torch.randn(len(x), 16)), draws=400)
    x = noise(4).requires_grad_()
    out = net(x)
    assert (out - x.flatten(1)).abs().max() < 5 / 20
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert torch.allclose(gradient, torch.ones_like(x), atol=1e-5)


@pytest.mark.parametrize("vectorised", [True, False])
def test_nobody_elses_random_numbers_are_touched(vectorised: bool) -> None:
    net = ExpectationOverTransformation(Noisy(), draws=2, vectorised=vectorised)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    net(noise(2))
    accuracy_over_draws(net.model, noise(2), torch.zeros(2, dtype=torch.int64))
    assert torch.equal(torch.get_rng_state(), before)


def test_no_draws_are_refused() -> None:
    with pytest.raises(AttackError, match="at least 1, got 0"):
        ExpectationOverTransformation(nn.Identity(), draws=0)


def test_a_fair_coin_is_right_half_of_the_time() -> None:
    coin = Toy(lambda x: torch.randn(len(x), 2))
    correct = accuracy_over_draws(coin, noise(20), torch.zeros(20, dtype=torch.int64), draws=100)
    assert correct.shape == (20,)
    assert float(correct.mean()) == pytest.approx(0.5, abs=4 * 0.5 / 2000**0.5)


def test_the_mean_over_draws_falls_where_the_model_without_noise_does() -> None:
    """R1 has the radius 0.1: with a little noise on the logits, 0.12 is enough and 0.09 is not."""
    net = ExpectationOverTransformation(
        Toy(lambda x: x.flatten(1) @ WEIGHT.T + BIAS + 0.02 * torch.randn(len(x), 4)), draws=20
    )
    x, y = torch.full((12, 1, 2, 2), 0.5), torch.zeros(12, dtype=torch.int64)
    for epsilon, broken in ((0.12, True), (0.09, False)):
        found = APGD(40)(
            net, x, y, threat=ThreatModel("linf", epsilon), generator=KeyedGenerator(0, y + torch.arange(12))
        )
        assert bool((found.broken == broken).all())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), offset=st.floats(-20, 20), threshold=st.floats(-1, 1))
def test_the_last_class_is_predicted_exactly_where_the_detector_says_so(
    seed: int, offset: float, threshold: float
) -> None:
    classifier, detector = small_network(SHAPE, seed=1).eval(), small_network(SHAPE, seed=2).eval()
    x = noise(6, seed)
    both = Detected(Toy(lambda x: classifier(x) + offset), Toy(lambda x: detector(x)[:, :1]), threshold)
    with torch.no_grad():
        logits, score = both(x), detector(x)[:, 0]
        alone = classifier(x).argmax(1)
    clear = (score - threshold).abs() > 1e-4
    expected = torch.where(score > threshold, 4, alone)
    assert torch.equal(logits.argmax(1)[clear], expected[clear])
    assert torch.allclose(logits[:, :4], classifier(x) + offset, atol=1e-5)


def test_success_is_wrong_and_undetected() -> None:
    y = torch.zeros(4, dtype=torch.int64)
    logits = torch.tensor([[3.0, 1, 2, 0], [1, 3, 2, 0], [1, 2, 0, 3], [2, 3, 0, 2.5]])
    assert UndetectedGoal(y).reached(logits).tolist() == [False, True, False, True]
    assert ClassificationGoal(y).reached(logits).tolist() == [False, True, True, True]
    assert undetected_margin(logits, ClassificationGoal(y)).tolist() == [-1.0, 2.0, -1.0, 0.5]
    aimed = UndetectedGoal(y, target=torch.full_like(y, 1))
    assert aimed.reached(logits).tolist() == [False, True, False, True]
    assert undetected_margin(logits, aimed).tolist() == [-2.0, 2.0, -1.0, 0.5]
    assert isinstance(aimed.select(torch.tensor([1])), UndetectedGoal)
    assert aimed.select(torch.tensor([1])).target is not None
    with pytest.raises(AttackError, match="two classes"):
        undetected_margin(logits[:, :2], ClassificationGoal(y))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_margin_is_positive_exactly_where_the_goal_is_reached(seed: int) -> None:
    logits = KeyedGenerator(seed, torch.arange(20)).normal(5)
    y = KeyedGenerator(seed, torch.arange(20)).integers(4, 1)[:, 0]
    assert torch.equal(undetected_margin(logits, ClassificationGoal(y)) > 0, UndetectedGoal(y).reached(logits))


def guarded() -> Detected:
    """f = (0, 4 x_1 + 4 x_2 - 4.4) at x = (0.5, 0.5): wrong from x_1 + x_2 = 1.1; detected where x_1 > 0.53."""
    classifier = Toy(lambda x: torch.stack([0 * x[:, 0], 4 * x[:, 0] + 4 * x[:, 1] - 4.4, x[:, 0] - 9], 1))
    return Detected(classifier, Toy(lambda x: x[:, 0]), 0.53)


@pytest.mark.parametrize(("epsilon", "broken"), [(0.068, False), (0.075, True)])
def test_a_detector_has_to_be_evaded_too(epsilon: float, broken: bool) -> None:
    """Without it 0.05 is enough; with it x_1 stops at 0.53 and x_2 has to go to 0.57: 0.07."""
    x, y = torch.full((10, 2), 0.5), torch.zeros(10, dtype=torch.int64)
    attack = PGD(200, undetected_margin, start="none", relative_step_size=0.02)
    threat, generator = ThreatModel("linf", epsilon), KeyedGenerator(0, torch.arange(10))
    found = attack(guarded(), x, UndetectedGoal(y), threat=threat, generator=generator)
    assert bool((found.broken == broken).all())
    naive = PGD(200, margin)(guarded().model, x, y, threat=threat, generator=generator)
    assert naive.broken.all()
    with torch.no_grad():
        if broken:
            assert (guarded()(found.x_adv).argmax(1) == 1).all()
