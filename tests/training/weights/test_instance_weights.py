"""GAIRAT and MAIL: published values, whole losses by hand, what they refuse, runs before and after the burn-in."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training_tools import Given, last, make_job, make_step, mlp, run, same, small_digits, small_net

from robustly.data import Splits
from robustly.threats.lp import ThreatModel
from robustly.training import (
    AdversarialLoss,
    DynatLoss,
    FriendlyInner,
    GairatWeights,
    GuideLabels,
    InstanceWeights,
    InstanceWeightsError,
    MailWeights,
    MartLoss,
    Method,
    MethodError,
    NoisyFGSMInner,
    Observer,
    OptimizerConfig,
    PGDInner,
    TradesLoss,
)
from robustly.training.labels.data import SmoothedLabels
from robustly.training.method import outer_loss
from robustly.training.step import Moment

Z_ADV, LABEL = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64), torch.tensor([0])
KAPPA = torch.tensor([0.0, 5.0, 10.0], dtype=torch.float64)


def batch(count: int = 24, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 6, dtype=torch.float64, generator=generator)
    return x, torch.randint(4, (count,), generator=generator)


def approx(*values: float) -> Any:
    return pytest.approx(list(values), rel=1e-5, abs=1e-8)


def test_gairat_has_the_published_values() -> None:
    weight = GairatWeights(shift=-1.0).of(KAPPA, 10)
    assert weight.tolist() == approx(0.99966465, 0.11920292, 6.1442e-06)
    assert (weight / weight.mean()).tolist() == approx(2.68036858, 0.31961495, 1.6474e-05)
    assert GairatWeights(shift=0.0).of(KAPPA, 10).tolist() == approx(0.99995460, 0.5, 4.5398e-05)
    assert GairatWeights("sigmoid", 0.0).of(KAPPA, 10).tolist() == approx(0.99330715, 0.5, 0.00669285)
    assert GairatWeights("discrete").of(KAPPA, 10).tolist() == approx(1, 6 / 11, 1 / 11)
    assert GairatWeights(shift=float("inf")).of(KAPPA, 10).tolist() == [1, 1, 1], "adversarial training"
    assert GairatWeights(shift=0.0).of(torch.tensor([3.0]), 7).tolist() == approx(0.8066786), "odd K: no rounding"


def test_mail_has_the_published_values() -> None:
    assert MailWeights(slope=10, bias=-0.5).of(Z_ADV, LABEL).tolist() == approx(0.20452540)
    assert MailWeights(slope=2, bias=0).of(Z_ADV, LABEL).tolist() == approx(0.67444323)
    step = make_step(Z_ADV, LABEL, nn.Identity(), inner=Given(Z_ADV))
    weight = MailWeights(slope=2, bias=0, burn_in=0)(step)
    assert weight is not None
    assert weight.tolist() == approx(3 * 0.67444323)
    one = MailWeights(slope=2, bias=0, burn_in=0, scale="mean_one")(step)
    assert one is not None
    assert one.tolist() == [1.0]


def test_kappa_of_the_toy() -> None:
    """Only the start of the first example is classified correctly, and every iterate of the second."""
    x, y = torch.tensor([[0.55, 0.50], [0.9, 0.1]], dtype=torch.float64), torch.tensor([0, 0])
    inner = PGDInner(steps=3, step_size=0.04, start="none")
    step = make_step(x, y, nn.Identity(), threat=ThreatModel("linf", 0.1), inner=inner)
    assert step.adversarial.correct_iterates.tolist() == [1, 3]
    assert torch.allclose(step.adversarial.x_adv[0], torch.tensor([0.45, 0.60], dtype=torch.float64))
    assert step.attack_steps == 3
    weight = GairatWeights(burn_in=0)(step)
    assert weight is not None
    assert float(weight.mean()) == pytest.approx(1.0)
    assert weight[0] > 10 * weight[1]


def kappa_of(net: nn.Module, x: Tensor, y: Tensor, steps: int, size: float, start: Tensor) -> tuple[Tensor, Tensor]:
    """Iterates written out: how many of x_0 .. x_{K-1} are right, and x_K."""
    kappa, point = torch.zeros(len(x), dtype=torch.float64), start
    for _ in range(steps):
        point = point.detach().requires_grad_()
        z = net(point)
        kappa += z.argmax(1) == y
        (slope,) = torch.autograd.grad(F.cross_entropy(z, y, reduction="sum"), point)
        point = (point + size * slope.sign()).clamp(x - 0.1, x + 0.1).clamp(0, 1)
    return kappa, point.detach()


@pytest.mark.parametrize("shift", [-1.0, 0.0])
def test_a_whole_gairat_step_by_hand(shift: float) -> None:
    x, y = batch()
    net = mlp(seed=2, norm=False)
    method = Method(
        inner=PGDInner(steps=6, step_size=0.03), loss=AdversarialLoss(), weights=GairatWeights("tanh", shift, 0)
    )
    step = make_step(x, y, net, inner=method.inner)
    loss, _ = outer_loss(method, step)
    kappa, x_adv = kappa_of(net, x, y, 6, 0.03, PGDInner(steps=0)(make_step(x, y, net)).x_adv)
    assert len(kappa.unique()) > 2
    weight = (1 + torch.tanh(shift + 5 * (1 - 2 * kappa / 6))) / 2
    expected = (weight * len(x) / weight.sum() * F.cross_entropy(net(x_adv), y, reduction="none")).mean()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-9)
    for one, other in zip(
        torch.autograd.grad(loss, list(net.parameters())),
        torch.autograd.grad(expected, list(net.parameters())),
        strict=True,
    ):
        assert torch.allclose(one, other, atol=1e-12)


def margins(p: Tensor, y: Tensor) -> Tensor:
    return torch.stack([torch.cat([row[:k], row[k + 1 :]]).max() - row[k] for row, k in zip(p, y, strict=True)])


@pytest.mark.parametrize("kind", ["at", "trades", "mart"])
def test_whole_mail_losses_by_hand(kind: str) -> None:
    x, y = batch()
    net = mlp(seed=2).train()
    loss = {"at": AdversarialLoss(), "trades": TradesLoss(5.0), "mart": MartLoss(5.0, published_constants=True)}[
        kind
    ]
    term = "consistency" if kind == "trades" else "adversarial"
    slope, bias = (10.0, -0.5) if kind == "at" else (2.0, 0.0)
    method = Method(inner=PGDInner(steps=2), loss=loss, weights=MailWeights(slope, bias, burn_in=0, term=term))
    step = make_step(x, y, net, inner=method.inner)
    found, _ = outer_loss(method, step)
    z, z_adv = net(x), net(step.adversarial.x_adv)
    p, p_adv = z.softmax(1), z_adv.softmax(1)
    weight = 3 * torch.sigmoid((margins(p_adv, y) + bias) * slope).detach()
    cross_entropy = F.cross_entropy(z_adv, y, reduction="none")
    if kind == "at":
        expected = (weight * cross_entropy).mean()
    elif kind == "trades":
        divergence = (p * (p.log() - p_adv.log())).sum(1)
        expected = F.cross_entropy(z, y) + 5 * (weight * divergence).mean()
    else:
        others = p_adv.scatter(1, y[:, None], 0).argmax(1)
        missed = -(1.0001 - p_adv.gather(1, others[:, None])[:, 0] + 1e-12).log()
        divergence = (p * (p.log() - (p_adv + 1e-12).log())).sum(1)
        doubt = 1.0000001 - p.gather(1, y[:, None])[:, 0]
        expected = (weight * (cross_entropy + missed)).mean() + 5 * (divergence * doubt).mean()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-9)
    for one, other in zip(
        torch.autograd.grad(found, list(net.parameters())),
        torch.autograd.grad(expected, list(net.parameters())),
        strict=True,
    ):
        assert torch.allclose(one, other, atol=1e-10)


def guided(inner: PGDInner, weights: InstanceWeights) -> tuple[Method, Any]:
    x, y = batch()
    method = Method(labels=GuideLabels(), inner=inner, loss=DynatLoss(), weights=weights)
    step = make_step(
        x, y, mlp(seed=2, norm=False), guide=mlp(seed=5, norm=False), label_source=method.labels, inner=inner
    )
    return method, step


def test_dynamic_and_static_labels_of_the_weights() -> None:
    """kappa and the margin count by the label that the loss uses, or by the data's."""
    for label, against in (("dynamic", "labels"), ("static", "data")):
        pgd = PGDInner(objective="kl", start="gaussian", steps=4, against=against)  # type: ignore[arg-type]
        _, step = guided(pgd, GairatWeights(burn_in=0, label=label))  # type: ignore[arg-type]
        y = step.labels.hard if label == "dynamic" else step.y
        assert not torch.equal(step.labels.hard, step.y)
        start = PGDInner(steps=1, start="gaussian", step_size=1e-30)(
            make_step(step.x, step.y, step.model)
        ).x_adv  # the noisy image, up to the projection
        correct = step.model(start).argmax(1) == y
        counted = step.adversarial.correct_iterates
        assert bool((counted[~correct] <= 3).all())
        assert bool((counted[correct] >= 1).all()), "the start counts"
        assert bool(correct.any())
        assert not bool(correct.all())
        mail = MailWeights(burn_in=0, label=label)(step)  # type: ignore[arg-type]
        assert mail is not None
        p = step.model(step.adversarial.x_adv).softmax(1).detach()
        assert torch.allclose(mail, 3 * torch.sigmoid(10 * (margins(p, y) - 0.5)), atol=1e-9)


def test_gairat_refuses_attacks_that_cannot_count() -> None:
    def method(inner: Any, weights: GairatWeights, labels: Any = None) -> Method:
        return Method(labels=labels or GuideLabels(), inner=inner, loss=DynatLoss(), weights=weights)

    with pytest.raises(MethodError, match=r"weights: gairat .*steps"):
        method(NoisyFGSMInner(), GairatWeights())
    with pytest.raises(MethodError, match=r"'static' .*against 'data'"):
        method(PGDInner(), GairatWeights(label="static"))
    with pytest.raises(MethodError, match=r"'dynamic' .*against 'labels'"):
        method(PGDInner(against="data"), GairatWeights())
    method(PGDInner(against="data"), GairatWeights(label="static"))
    method(PGDInner(against="data"), GairatWeights(), SmoothedLabels())
    method(FriendlyInner(), GairatWeights())


def test_gairat_with_early_stopped_examples_counts_all_steps_of_the_attack() -> None:
    x, y = batch()
    inner = FriendlyInner(taus=(0,), boundaries=(), noise=0, steps=8, step_size=0.02)
    step = make_step(x, y, mlp(seed=2), inner=inner)
    weight = GairatWeights(burn_in=0)(step)
    assert weight is not None
    kappa = step.adversarial.correct_iterates.double()
    raw = (1 + torch.tanh(-1 + 5 * (1 - 2 * kappa / 8))) / 2
    assert torch.allclose(weight, raw / raw.mean(), atol=1e-12)
    assert bool((step.adversarial.backwards < 8).any()), "some stopped early"


def test_equal_kappas_weigh_one_and_all_zeros_are_refused() -> None:
    x = torch.zeros(4, 3)
    x[:, 0] = 1.0
    y, sure = torch.zeros(4, dtype=torch.int64), nn.Identity()
    step = make_step(x, y, sure, inner=PGDInner(steps=5))
    assert step.adversarial.correct_iterates.tolist() == [5] * 4
    assert GairatWeights(burn_in=0)(step).tolist() == [1.0] * 4  # type: ignore[union-attr]
    assert GairatWeights(burn_in=0, shift=-20.0)(step).tolist() == [1.0] * 4  # type: ignore[union-attr]
    with pytest.raises(InstanceWeightsError, match=r"gairat .* shift -60"):
        GairatWeights(burn_in=0, shift=-60.0)(step)
    with pytest.raises(InstanceWeightsError, match=r"mail .* slope 1000"):
        MailWeights(burn_in=0, slope=1000.0, bias=-0.5, scale="mean_one")(step)


def noted(value: Tensor, seen: list[float]) -> Tensor:
    seen.append(float(value))
    return value


def test_the_mean_is_that_of_all_processes() -> None:
    """Two shares of a batch, of different sizes, are weighted as the whole."""
    x, y = batch()
    net, inner = mlp(seed=2).eval(), PGDInner(steps=4, start="none")
    whole = make_step(x, y, net, inner=inner)
    cut = len(y) // 3
    for weights in (GairatWeights(burn_in=0), MailWeights(burn_in=0, scale="mean_one")):
        expected = weights(whole)
        assert expected is not None
        assert float(expected.max() - expected.min()) > 0.1
        sums: list[list[float]] = [[], []]  # of each process: the sum of its weights, and their number
        for rows, seen in zip((slice(0, cut), slice(cut, None)), sums, strict=True):
            weights(make_step(x[rows], y[rows], net, inner=inner, global_mean=partial(noted, seen=seen)))
        halves = [sum(column) / 2 for column in zip(*sums, strict=True)]
        for rows in (slice(0, cut), slice(cut, None)):
            answers = iter(halves)
            step = make_step(
                x[rows], y[rows], net, inner=inner, global_mean=lambda value, a=answers: value.new_tensor(next(a))
            )
            assert torch.allclose(weights(step), expected[rows], rtol=1e-9)  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", [GairatWeights(burn_in=2), MailWeights(burn_in=2)])
def test_weights_are_none_before_their_burn_in(weights: InstanceWeights) -> None:
    x, y = batch()
    for epoch, absent in ((0, True), (1, True), (2, False)):
        step = make_step(x, y, mlp(seed=2), inner=PGDInner(steps=2), moment=Moment(epoch, 0, 1, 3))
        assert (weights(step) is None) == absent


def trained(little: Splits, weights: InstanceWeights | None, folder: Path, epochs: int = 1) -> dict[str, Tensor]:
    method = Method(inner=PGDInner(steps=3), loss=AdversarialLoss(), weights=weights)
    run(make_job(little, method, training={"epochs": epochs}), folder)
    found: dict[str, Tensor] = last(folder)["networks"]["model"]
    return found


@pytest.mark.slow
def test_equal_weights_train_as_pgd_at(little: Splits, tmp_path: Path) -> None:
    expected = trained(little, None, tmp_path / "plain")
    flat = MailWeights(slope=0.0, scale="mean_one", burn_in=0)
    assert same(trained(little, flat, tmp_path / "mail"), expected)
    far = GairatWeights(shift=float("inf"), burn_in=0)
    assert same(trained(little, far, tmp_path / "gairat"), expected)

    class StopError(Exception):
        pass

    class Stopping(Observer):
        def epoch_finished(self, row: object, is_best: bool) -> None:
            raise StopError

    for name, weights in (("g", GairatWeights(burn_in=1)), ("m", MailWeights(burn_in=1))):
        method = Method(inner=PGDInner(steps=3), loss=AdversarialLoss(), weights=weights)
        with pytest.raises(StopError):
            run(make_job(little, method), tmp_path / name, Stopping())
        assert same(last(tmp_path / name)["networks"]["model"], expected), "before the burn-in it is PGD-AT"
    assert not same(trained(little, GairatWeights("discrete", burn_in=0), tmp_path / "w"), expected)


@pytest.mark.slow
def test_gairat_learns_real_digits(tmp_path: Path) -> None:
    method = Method(
        inner=PGDInner(steps=4, relative_step_size=0.35), loss=AdversarialLoss(), weights=GairatWeights(burn_in=1)
    )
    optimizer = OptimizerConfig(name="adamw", learning_rate=0.005)
    training = {"epochs": 6, "epsilon_ramp": 2.0, "validation_steps": 10}
    job = make_job(small_digits(1000), method, small_net(0.2, seed=1), optimizer=optimizer, training=training)
    outcome = run(job, tmp_path)
    best = outcome.rows[outcome.best_epoch - 1]
    assert float(best["validation_clean_accuracy"] or 0) > 0.55
    assert float(best["validation_robust_accuracy"] or 0) > 0.3


def test_a_burn_in_beyond_the_run_is_refused(little: Splits) -> None:
    for weights in (GairatWeights(burn_in=2), MailWeights(burn_in=2)):
        method = Method(inner=PGDInner(), loss=AdversarialLoss(), weights=weights)
        with pytest.raises(MethodError, match=r"weights: burn_in is 2\b.* run has 2\b"):
            make_job(little, method)
        make_job(little, method, training={"epochs": 3})


def test_settings_out_of_range_are_refused() -> None:
    for part in (GairatWeights, MailWeights):
        with pytest.raises(ValueError, match=r"burn_in .*at least 0.* -1"):
            part(burn_in=-1)
    with pytest.raises(ValueError, match="constant must be positive"):
        MailWeights(constant=0.0)
