"""GradAlign: the regulariser by hand, its double back-propagation, what is left out, FGSM at weight 0."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training_tools import NormNet, last, make_job, make_step, mlp, run, same

from robustly.data import Splits
from robustly.training import AdversarialLoss, GradAlign, Method, PGDInner
from robustly.training.method import outer_loss

FGSM = PGDInner(steps=1, start="none", relative_step_size=1.0)


def batch(count: int = 20, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 6, dtype=torch.float64, generator=generator)
    return x, torch.randint(4, (count,), generator=generator)


def noisy(x: Tensor) -> Tensor:
    """The random points that the part draws for a batch."""
    step = make_step(x, torch.zeros(len(x), dtype=torch.int64), nn.Identity())
    return step.threat.around(x).random_start(step.generator.fold("gradalign"))


def gradient(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Gradient of the cross-entropy in the input, with its graph."""
    point = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(F.cross_entropy(net(point), y, reduction="sum"), point, create_graph=True)
    return found


@pytest.mark.parametrize("norm", [False, True])
def test_a_whole_step_by_hand(norm: bool) -> None:
    x, y = batch()
    one, other = mlp(seed=2, norm=norm).train(), mlp(seed=2, norm=norm).train()
    method = Method(inner=FGSM, loss=AdversarialLoss(), parameters=(GradAlign(0.7),))
    step = make_step(x, y, one, inner=FGSM)
    loss, means = outer_loss(method, step)
    g, g_noisy = gradient(other, x, y).detach(), gradient(other, noisy(x), y)
    cosine = (g * g_noisy).sum(1) / (g.square().sum(1).sqrt() * g_noisy.square().sum(1).sqrt())
    regulariser = 0.7 * (1 - cosine.mean())
    expected = F.cross_entropy(other(step.adversarial.x_adv), y) + regulariser
    assert float(means["alignment"]) == pytest.approx(float(regulariser.detach()), rel=1e-9)
    assert float(regulariser.detach()) > 1e-5
    for ours, theirs in zip(
        torch.autograd.grad(loss, list(one.parameters())),
        torch.autograd.grad(expected, list(other.parameters())),
        strict=True,
    ):
        assert torch.allclose(ours, theirs, atol=1e-10)


def test_only_the_second_gradient_moves_the_weights() -> None:
    """Finite differences in one weight, with the first gradient held."""
    x, y = batch()
    net = mlp(seed=2, norm=False)
    held = gradient(net, x, y).detach()

    def regulariser() -> Tensor:
        return 1 - F.cosine_similarity(held, gradient(net, noisy(x), y), dim=1).mean()

    term = GradAlign(1.0).extra_terms(make_step(x, y, net))["alignment"].mean()
    weight = net[0].weight  # type: ignore[union-attr]
    (found,) = torch.autograd.grad(term, weight)  # type: ignore[arg-type]
    h = 1e-6
    with torch.no_grad():
        weight[2, 3] += h  # type: ignore[operator, index]
    above = float(regulariser())
    with torch.no_grad():
        weight[2, 3] -= 2 * h  # type: ignore[operator, index]
    assert float(found[2, 3]) == pytest.approx((above - float(regulariser())) / (2 * h), rel=1e-4)


def test_a_linear_model_is_aligned() -> None:
    torch.manual_seed(0)
    score = nn.Linear(6, 1).double()
    net = nn.Module()
    net.score = score
    net.forward = lambda x: torch.cat([-score(x), score(x)], 1)  # type: ignore[method-assign]
    x, y = batch()
    term = GradAlign(3.0).extra_terms(make_step(x, y % 2, net))["alignment"]
    assert torch.allclose(term, torch.zeros_like(term), atol=1e-12)


@pytest.mark.parametrize("gap", [10, 45, 50, 60, 90])
def test_a_linear_model_is_aligned_however_sure_it_is(gap: float) -> None:
    """In float32, whose squares underflow long before the gradients do."""
    torch.manual_seed(0)
    net = nn.Linear(64, 2)
    with torch.no_grad():
        net.weight.normal_(0, 0.1)
        net.bias.copy_(torch.tensor([gap, 0.0]))
    step = make_step(torch.rand(16, 64), torch.zeros(16, dtype=torch.int64), net)
    term = GradAlign(1.0).extra_terms(step)["alignment"]
    assert float(term.detach().abs().max()) < 1e-4
    (gradient,) = torch.autograd.grad(term.mean(), net.weight)
    assert float(gradient.abs().max()) < 1e-2


class Dead(nn.Module):
    """Some examples have no gradient: those of a first value below a half."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(seed=2, norm=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x * (x[:, :1] > 0.5).to(x))


def test_examples_without_gradient_are_left_out_of_the_mean() -> None:
    x, y = batch(40)
    x[:, 0] = torch.where(torch.arange(40) < 15, 0.1, 0.9)  # further from a half than epsilon
    net = Dead()
    term = GradAlign(2.0).extra_terms(make_step(x, y, net))["alignment"]
    assert term[:15].tolist() == [0.0] * 15
    alone = GradAlign(2.0).extra_terms(make_step(x, y, net))["alignment"][15:]
    g, g_noisy = gradient(net, x, y)[15:], gradient(net, noisy(x), y)[15:]
    expected = 2 * (1 - F.cosine_similarity(g, g_noisy, dim=1))
    assert float(term.mean()) == pytest.approx(float(expected.mean()), rel=1e-9)
    assert torch.allclose(alone * 25 / 40, expected, atol=1e-9)
    gradients = torch.autograd.grad(term.mean(), list(net.parameters()), allow_unused=True)
    assert all(g is None or bool(g.isfinite().all()) for g in gradients)
    dark = torch.full((4, 6), 0.1, dtype=torch.float64)
    nothing = GradAlign(2.0).extra_terms(make_step(dark, y[:4], net))["alignment"]
    assert nothing.tolist() == [0.0] * 4


def test_running_statistics_do_not_change() -> None:
    x, y = batch()
    net = mlp(seed=2).train()
    GradAlign(0.2).extra_terms(make_step(x, y, net))
    assert same(net.state_dict(), mlp(seed=2).state_dict())
    assert all(p.grad is None for p in net.parameters())


def test_weight_zero_is_fgsm_and_more_is_not(little: Splits, tmp_path: Path) -> None:
    found = {}
    for name, parts in (("fgsm", ()), ("zero", (GradAlign(0.0),)), ("more", (GradAlign(0.5),))):
        method = Method(inner=FGSM, loss=AdversarialLoss(), parameters=parts)
        outcome = run(make_job(little, method, NormNet(), training={"epochs": 1}), tmp_path / name)
        found[name] = last(tmp_path / name)["networks"]["model"]
    assert same(found["fgsm"], found["zero"])
    assert not same(found["fgsm"], found["more"])
    assert outcome.rows[0]["loss_alignment"] > 0  # type: ignore[operator]


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(ValueError, match=r"weight .*at least 0.* -1"):
        GradAlign(-1.0)
