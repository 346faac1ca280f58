"""N-FGSM, Fast-AT and Free-AT: closed forms, toys, whole steps written out again, resumed runs."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training_tools import final, last, make_job, make_step, mlp, run, same

from robustly.data import Splits
from robustly.threats.lp import ThreatModel
from robustly.training import (
    AdversarialLoss,
    FreeInner,
    Method,
    MethodError,
    NoisyFGSMInner,
    Observer,
    PGDInner,
    WeightPerturbation,
)
from robustly.training.method import outer_loss

FGSM = PGDInner(steps=1, start="none", relative_step_size=1.0)
POINT, TOY = torch.tensor([[0.55, 0.50]], dtype=torch.float64), ThreatModel("linf", 0.1)


def batch(count: int = 20, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 6, dtype=torch.float64, generator=generator)
    return x, torch.randint(4, (count,), generator=generator)


class Logistic(nn.Module):
    """Two classes, a linear score: the sign of the gradient is the same everywhere."""

    def __init__(self, features: int = 6) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.score = nn.Linear(features, 1).double()

    def forward(self, x: Tensor) -> Tensor:
        score = self.score(x)
        return torch.cat([-score, score], 1)


@pytest.mark.parametrize("inner", [FGSM, NoisyFGSMInner(noise=0, mode="eval")])
def test_fgsm_reaches_the_toys_point(inner: PGDInner | NoisyFGSMInner) -> None:
    y = torch.tensor([0])
    found = inner(make_step(POINT, y, nn.Identity(), threat=TOY))
    assert torch.allclose(found.x_adv, torch.tensor([[0.45, 0.60]], dtype=torch.float64), atol=1e-12)
    assert (found.forwards.tolist(), found.backwards.tolist(), found.correct_iterates.tolist()) == ([1], [1], [1])


@pytest.mark.parametrize("mode", ["eval", "train", "train_nostat"])
def test_without_noise_n_fgsm_is_fgsm_bit_by_bit(mode: str) -> None:
    x, y = batch()
    steps = [make_step(x, y, mlp()) for _ in range(2)]
    one = PGDInner(steps=1, start="none", relative_step_size=1.0, mode=mode)(steps[0])  # type: ignore[arg-type]
    other = NoisyFGSMInner(noise=0, mode=mode)(steps[1])  # type: ignore[arg-type]
    assert torch.equal(one.x_adv, other.x_adv)
    assert same(steps[0].model.state_dict(), steps[1].model.state_dict()), "batch norm heard the same"


def test_n_fgsm_adds_noise_and_projects_on_the_box_alone() -> None:
    x, y = batch(200)
    net = Logistic()
    y = y % 2
    epsilon = 0.1
    x_adv = NoisyFGSMInner(noise=2, mode="eval")(make_step(x, y, net)).x_adv
    change = (x_adv - x).abs()
    assert epsilon < float(change.max()) <= 3 * epsilon + 1e-12
    assert float(x_adv.min()) >= 0
    assert float(x_adv.max()) <= 1
    sign = torch.where(y[:, None] == 0, 1.0, -1.0) * net.score.weight.detach().sign()
    noise = x_adv - epsilon * sign - x  # where the box did not cut
    free = (x > 0.3) & (x < 0.7)
    assert float(noise[free].abs().max()) <= 0.2 + 1e-12
    assert float(noise[free].mean().abs()) < 0.03
    assert float(noise[free].std()) == pytest.approx(0.2 / 3**0.5, rel=0.1)


def test_n_fgsm_step_by_hand() -> None:
    """x' = box(x + eta + epsilon sign grad at x + eta), with eta read off a model without gradient."""
    x, y = batch()
    flat = nn.Sequential(nn.Linear(6, 4)).double()
    nn.init.zeros_(flat[0].weight)
    noisy = NoisyFGSMInner(mode="eval")(make_step(x, y, flat)).x_adv
    net = mlp().eval()
    point = noisy.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(net(point), y, reduction="sum"), point)
    expected = (noisy + 0.1 * gradient.sign()).clamp(0, 1)
    assert torch.allclose(NoisyFGSMInner(mode="eval")(make_step(x, y, net)).x_adv, expected, atol=1e-12)


def test_fast_at_on_a_linear_model_has_its_closed_form() -> None:
    x, y = batch(100)
    x, y = 0.3 + 0.4 * x, y % 2  # away from the box
    net, fast = Logistic(), PGDInner(steps=1, start="random", relative_step_size=1.25, mode="train")
    start = PGDInner(steps=0, start="random")(make_step(x, y, net)).x_adv - x
    sign = torch.where(y[:, None] == 0, 1.0, -1.0) * net.score.weight.detach().sign()
    expected = sign * torch.minimum(torch.tensor(0.1, dtype=torch.float64), sign * start + 0.125)
    found = fast(make_step(x, y, net)).x_adv - x
    assert torch.allclose(found, expected, atol=1e-12)
    assert float(found.abs().max()) <= 0.1 + 1e-12


@pytest.mark.parametrize("inner", [NoisyFGSMInner(noise=0.0, mode="eval"), FreeInner(replays=2)])
def test_under_l0_a_step_is_as_long_as_pgds(inner: NoisyFGSMInner | FreeInner) -> None:
    """A share of epsilon would be a share of a number of pixels."""
    x, y = torch.full((4, 3, 8, 8), 0.5), torch.arange(4)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    step = make_step(x, y, net, threat=ThreatModel("l0", 10), inner=inner)
    found = step.adversarial.x_adv
    if isinstance(inner, FreeInner):
        F.cross_entropy(net(found), y).backward()
        inner.after_backward(step)
        found = x + step.remember(inner)["delta"]
    assert float((found - x).abs().max()) > 0.2


def free_by_hand(
    net: nn.Module, batches: list[tuple[Tensor, Tensor]], replays: int, epsilon: float, rate: float
) -> Tensor:
    """Algorithm 1 of Shafahi et al., straight: returns delta; `net` is trained with plain SGD."""
    delta = torch.zeros_like(batches[0][0])
    for x, y in batches:
        for _ in range(replays):
            point = (x + delta[: len(x)]).clamp(0, 1).clamp(x - epsilon, x + epsilon).requires_grad_()
            net.zero_grad()
            F.cross_entropy(net(point), y).backward()
            assert point.grad is not None
            with torch.no_grad():
                moved = (point + epsilon * point.grad.sign()).clamp(x - epsilon, x + epsilon).clamp(0, 1)
                delta[: len(x)] = moved - x
                for parameter in net.parameters():
                    parameter.sub_(rate * parameter.grad)
    return delta


def test_free_at_is_its_algorithm_with_a_ragged_last_batch() -> None:
    batches = [batch(8, 1), batch(8, 2), batch(5, 3)]
    one, other = mlp(seed=3).train(), mlp(seed=3).train()
    method, memory = Method(inner=FreeInner(replays=3), loss=AdversarialLoss()), {}
    optimizer = torch.optim.SGD(one.parameters(), lr=0.2)
    steps = 0
    for x, y in batches:
        for replay in range(method.replays):
            step = make_step(x, y, one, inner=method.inner, memory=memory, slot_of=method.slot_of, replay=replay)
            loss, _ = outer_loss(method, step)
            optimizer.zero_grad()
            loss.backward()
            method.after_backward(step)
            optimizer.step()
            steps += 1
    delta = free_by_hand(other, batches, 3, 0.1, 0.2)
    assert steps == 9
    assert torch.allclose(memory["inner"]["delta"], delta, atol=1e-12)
    expected = other.state_dict()
    for name, value in one.state_dict().items():
        assert torch.allclose(value, expected[name], atol=1e-12), name
    assert float(delta.abs().max()) <= 0.1 + 1e-12


def test_the_first_replay_of_free_at_is_standard_training() -> None:
    x, y = batch()
    step = make_step(x, y, mlp(), inner=FreeInner(replays=1))
    assert torch.equal(step.adversarial.x_adv, x)
    one = outer_loss(Method(inner=FreeInner(replays=1), loss=AdversarialLoss()), step)[0]
    assert torch.allclose(one, F.cross_entropy(mlp().train()(x), y), atol=1e-12)


@pytest.mark.slow
def test_free_at_goes_on_where_it_stopped(little: Splits, tmp_path: Path) -> None:
    """150 images in batches of 32: the last one is ragged, and the perturbation outlives it."""
    method = Method(inner=FreeInner(replays=2), loss=AdversarialLoss())
    run(make_job(little, method, training={"epochs": 3}), tmp_path / "whole")

    class StopError(Exception):
        pass

    class Stopping(Observer):
        def epoch_finished(self, row: object, is_best: bool) -> None:
            if row["epoch"] == 2:  # type: ignore[index]
                raise StopError

    with pytest.raises(StopError):
        run(make_job(little, method, training={"epochs": 3}), tmp_path / "cut", Stopping())
    assert last(tmp_path / "cut")["memory"]["inner"]["delta"].shape == (32, 1, 16, 16)
    run(make_job(little, method, training={"epochs": 3}), tmp_path / "cut")
    assert same(final(tmp_path / "whole"), final(tmp_path / "cut"))
    one, other = last(tmp_path / "whole"), last(tmp_path / "cut")
    assert same(one["networks"]["model"], other["networks"]["model"])
    assert torch.equal(one["memory"]["inner"]["delta"], other["memory"]["inner"]["delta"])


def test_n_fgsm_without_noise_trains_as_fgsm_step_for_step(little: Splits, tmp_path: Path) -> None:
    for name, inner in (("n", NoisyFGSMInner(noise=0, mode="eval")), ("fgsm", FGSM)):
        run(make_job(little, Method(inner=inner, loss=AdversarialLoss()), training={"epochs": 1}), tmp_path / name)
    one, other = (last(tmp_path / name)["networks"]["model"] for name in ("n", "fgsm"))
    assert same(one, other)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"noise .*at least 0.* -1"):
        NoisyFGSMInner(noise=-1)
    for part in (NoisyFGSMInner, FreeInner):
        with pytest.raises(ValueError, match=r"relative_step_size .*positive.* 0"):
            part(relative_step_size=0)
    with pytest.raises(ValueError, match=r"replays .*at least 1.* 0"):
        FreeInner(replays=0)
    with pytest.raises(MethodError, match="no part may perturb the weights"):
        Method(inner=FreeInner(), loss=AdversarialLoss(), parameters=(WeightPerturbation(),))
