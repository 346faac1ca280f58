"""Inner maximisations under several threats: MAX, AVG, stochastic, E-AT and MSD."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from training_tools import last, make_job, make_step, mlp, run, small_net

from robustly.data import Batch, Splits
from robustly.randomness import KeyedGenerator
from robustly.testing.training import check_part
from robustly.threats import Rotation, Threat, ThreatError, ThreatModel, parse_threats, short_names
from robustly.training import (
    AdversarialLoss,
    AvgInner,
    EatInner,
    MaxInner,
    Method,
    MethodError,
    Moment,
    MsdInner,
    Networks,
    PGDInner,
    Step,
    StochasticInner,
    TradesLoss,
    WeightPerturbation,
)
from robustly.training.cost import step_cost
from robustly.training.inner import SEVERAL
from robustly.training.inner.one_of_several import drawn
from robustly.training.method import outer_loss

THREATS = (ThreatModel("linf", 0.1), ThreatModel("l2", 0.3), ThreatModel("l1", 0.6))
SETTINGS: dict[str, Any] = {"steps": 3, "relative_step_size": 0.4, "start": "random"}
Make = Callable[..., Any]


def data(count: int = 9) -> tuple[Tensor, Tensor]:
    x = torch.rand(count, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return x, torch.arange(count) % 4


def step_with(inner: Any, threats: tuple[Threat, ...] = THREATS, **changes: Any) -> Step:
    return make_step(*data(), mlp(0), inner=inner, threats=threats, **changes)


def losses(x_adv: Tensor) -> Tensor:
    return F.cross_entropy(mlp(0).eval()(x_adv), data()[1], reduction="none").detach()


def whole_step(method: Method, count: int = 0, memory: Any = None, seed: int = 0) -> Step:
    x, y = data()
    ids = torch.arange(len(y))
    return method.step(
        Batch(x, y, ids, KeyedGenerator(5, ids)),
        Networks(mlp(0)),
        threats=THREATS,
        moment=Moment(0, count, 1000, 1),
        memory={} if memory is None else memory,
        seed=seed,
    )


@pytest.mark.parametrize("kind", SEVERAL)
@pytest.mark.parametrize("start", ["random", "gaussian", "none"])
def test_with_one_threat_it_is_pgd(kind: Make, start: str) -> None:
    settings = {**SETTINGS, "start": start}
    for threat in THREATS:
        one, plain = (step_with(part(**settings), (threat,)).adversarial for part in (kind, PGDInner))
        assert torch.equal(one.x_adv, plain.x_adv)
        assert torch.equal(one.forwards, plain.forwards)
        assert torch.equal(one.backwards, plain.backwards)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SEVERAL)
def test_the_contract_of_parts(kind: Make) -> None:
    check_part(kind(**SETTINGS), threats=THREATS)


@pytest.mark.slow
@pytest.mark.usefixtures("forks")
def test_two_processes_choose_the_same_threats_as_one() -> None:
    check_part(EatInner(**SETTINGS), threats=THREATS, processes=True)


def test_max_is_at_least_every_member_and_the_mean_for_each_example() -> None:
    members = torch.stack([losses(step_with(PGDInner(**SETTINGS), (one,)).adversarial.x_adv) for one in THREATS])
    step = step_with(MaxInner(**SETTINGS))
    found = losses(step.adversarial.x_adv)
    assert torch.equal(found, members.amax(0))
    assert bool((found >= members.mean(0)).all())
    assert len(set(members.argmax(0).tolist())) > 1, "several threats are the worst of some example"
    shares = torch.stack([step.columns[f"threat_share_{name}"].double() for name in ("linf", "l2", "l1")])
    assert torch.equal(shares.argmax(0), members.argmax(0))
    assert torch.equal(shares.sum(0), torch.ones(9, dtype=torch.float64))


@pytest.mark.parametrize("loss", [AdversarialLoss(), TradesLoss(beta=2.0)])
@pytest.mark.parametrize("parameters", [(), (WeightPerturbation(),)])
def test_avg_is_the_mean_of_the_losses_and_gradients_of_all(loss: Any, parameters: Any) -> None:
    def found(inner: Any, threats: tuple[Threat, ...]) -> list[Tensor]:
        method = Method(inner=inner, loss=loss, parameters=parameters if threats == THREATS else ())
        x, y = data()
        net, ids = mlp(0, norm=False), torch.arange(9)
        batch = Batch(x, y, ids, KeyedGenerator(5, ids))
        step = method.step(batch, Networks(net), threats=threats, moment=Moment(0, 0, 1, 1), memory={})
        value, _ = outer_loss(method, step)
        value.backward()  # type: ignore[no-untyped-call]
        method.after_backward(step)
        return [value.detach(), *(parameter.grad for parameter in net.parameters() if parameter.grad is not None)]

    alone = [found(PGDInner(**SETTINGS), (one,)) for one in THREATS]
    means = [torch.stack(values).mean(0) for values in zip(*alone, strict=True)]
    averaged = found(AvgInner(**SETTINGS), THREATS)
    if parameters:  # AWP climbs the mean loss, so that the loss at its weights is higher
        assert averaged[0] > means[0]
        return
    assert all(torch.allclose(*pair, rtol=1e-10, atol=1e-12) for pair in zip(averaged, means, strict=True))


def test_avg_notes_the_accuracy_under_each_threat() -> None:
    method = Method(inner=AvgInner(**SETTINGS), loss=AdversarialLoss())
    step = whole_step(method)
    outer_loss(method, step)
    method.after_backward(step)
    for number, name in enumerate(("linf", "l2", "l1")):
        at = (step, *step.others)[number]
        expected = at.adversarial_logits.argmax(1) == step.y
        assert torch.equal(step.columns[f"train_robust_accuracy_{name}"], expected)


def test_threats_are_drawn_in_proportion_to_their_weights() -> None:
    method = Method(inner=EatInner(**SETTINGS), loss=AdversarialLoss())
    uniform, weighted = torch.zeros(3), torch.zeros(2)
    for count in range(600):
        step = whole_step(method, count)
        uniform[StochasticInner(**SETTINGS).chosen(step)] += 1 / 600
        weighted[drawn(step, torch.tensor([0.1, 0.5], dtype=torch.float64))] += 1 / 600
    assert uniform.tolist() == pytest.approx([1 / 3] * 3, abs=0.08)  # four standard deviations
    assert weighted.tolist() == pytest.approx([1 / 6, 5 / 6], abs=0.06)
    one, same = (whole_step(method, 7, seed=3) for _ in range(2))
    assert StochasticInner().chosen(one) == StochasticInner().chosen(same)
    assert drawn(one, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)) == 1


def test_eat_weighs_threats_by_their_running_accuracy() -> None:
    part = EatInner(**SETTINGS)
    method = Method(inner=part, loss=AdversarialLoss())

    def weights(accuracies: list[float], batches: list[float]) -> list[float]:
        kept = {"accuracies": torch.tensor(accuracies).double(), "batches": torch.tensor(batches).double()}
        found: list[float] = part.weights(whole_step(method, memory={"inner": kept})).tolist()
        return found

    assert weights([9.0, 5.0, 3.0], [10.0, 10.0, 4.0]) == pytest.approx([0.1, 0.5, 0.25])
    assert weights([9.0, 0.0, 3.0], [10.0, 0.0, 4.0]) == [1, 1, 1], "not every threat had a batch"
    assert weights([2.0, 1.0, 3.0], [2.0, 1.0, 3.0]) == [1, 1, 1], "no threat breaks anything"


def test_eat_accumulates_the_accuracy_of_the_chosen_threat() -> None:
    part = EatInner(**SETTINGS)
    method, memory = Method(inner=part, loss=AdversarialLoss()), {}
    for count in range(6):
        step = whole_step(method, count, memory)
        number = part.chosen(step)
        outer_loss(method, step)
        before = {name: values.clone() for name, values in memory["inner"].items()}
        method.after_backward(step)
        share = float((step.adversarial_logits.argmax(1) == step.y).double().mean())
        added = {name: memory["inner"][name] - before[name] for name in before}
        expected = torch.zeros(3, dtype=torch.float64)
        expected[number] = 1
        assert torch.equal(added["batches"], expected)
        assert torch.allclose(added["accuracies"], share * expected)
        assert bool(THREATS[number].contains(step.adversarial.x_adv, step.x).all())


def test_msd_takes_the_best_step_and_returns_the_best_point() -> None:
    x, y = data()
    net, rows = mlp(0).eval(), torch.arange(9)
    sets = [threat.around(x) for threat in THREATS]
    here, best, highest = x, x, losses(x)
    chosen = []
    for _ in range(4):
        leaf = here.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(net(leaf), y, reduction="sum"), leaf)
        moved = torch.stack([one.step(here, gradient, 0.4 * one.radius) for one in sets])
        values = torch.stack([losses(one) for one in moved])
        chosen.append(values.argmax(0))
        here, value = moved[chosen[-1], rows], values.amax(0)
        best = torch.where((value > highest)[:, None], here, best)
        highest = torch.maximum(highest, value)
    step = step_with(MsdInner(steps=4, relative_step_size=0.4))
    assert torch.allclose(step.adversarial.x_adv, best, atol=1e-12)
    inside = torch.stack([threat.contains(step.adversarial.x_adv, x) for threat in THREATS])
    assert bool(inside.any(0).all())
    taken = torch.stack(chosen)
    for number, name in enumerate(("linf", "l2", "l1")):
        assert torch.allclose(step.columns[f"threat_share_{name}"], (taken == number).double().mean(0))


def test_the_loss_of_msd_never_falls_with_more_steps() -> None:
    found = [
        losses(step_with(MsdInner(steps=steps, relative_step_size=0.6)).adversarial.x_adv) for steps in range(6)
    ]
    assert torch.equal(found[0], losses(data()[0]))
    for fewer, more in pairwise(found):
        assert bool((more >= fewer).all())
    assert bool((found[-1] > found[0]).all())


def test_msd_leaves_protected_values_as_they_are() -> None:
    mask = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    masked = tuple(ThreatModel(one.norm, one.epsilon, mask=mask) for one in THREATS)
    x_adv = step_with(MsdInner(steps=3), masked).adversarial.x_adv
    assert torch.equal(x_adv[:, 3:], data()[0][:, 3:])
    first_masked = step_with(MsdInner(steps=3), (masked[0], *THREATS[1:])).adversarial.x_adv
    assert not torch.equal(first_masked[:, 3:], data()[0][:, 3:]), "a mask holds for its threat alone"


@pytest.mark.parametrize(
    ("kind", "forwards", "backwards"),
    [(MaxInner, 3 * 4 + 3 + 1, 3 * 4 + 1), (AvgInner, 3 * 4 + 3, 3 * 4 + 3), (StochasticInner, 4 + 1, 4 + 1),
     (EatInner, 4 + 1, 4 + 1), (MsdInner, 4 * (3 + 1) + 1, 4 + 1)],
)  # fmt: skip
def test_passes_of_a_step(kind: Make, forwards: int, backwards: int) -> None:
    cost = step_cost(Method(inner=kind(steps=4), loss=AdversarialLoss()), 1, threats=3)
    assert (cost.forwards["model"], cost.backwards["model"]) == (forwards, backwards)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_eat_takes_one_of_m_gradient_passes_of_max(count: int) -> None:
    eat, worst = (
        step_cost(Method(inner=kind(steps=4), loss=AdversarialLoss()), 1, threats=count)
        for kind in (EatInner, MaxInner)
    )
    assert (eat.attack_gradients, worst.attack_gradients) == (4, 4 * count)
    both = step_cost(Method(inner=AvgInner(steps=4), loss=AdversarialLoss()), 1, threats=count)
    assert both.attack_gradients == 4 * count


def test_other_threats_than_balls() -> None:
    turned = (THREATS[0], Rotation("10"))
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    for kind in (MaxInner, AvgInner, StochasticInner, EatInner):
        step = make_step(x, torch.arange(4), net, inner=kind(steps=1), threats=turned)
        assert step.adversarial.x_adv.shape == x.shape
    assert MsdInner().check_threats((Rotation("10"),)) is None
    assert "rotation:10" in str(MsdInner().check_threats(turned))
    with pytest.raises(MethodError, match="inner: msd is defined for Lp threats"):
        Method(inner=MsdInner(), loss=AdversarialLoss()).check_threats(turned)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SEVERAL)
def test_metrics_have_columns_for_each_threat(little: Splits, tmp_path: Path, kind: Make) -> None:
    threats = (ThreatModel("linf", 0.1), ThreatModel("l1", 2))
    method = Method(inner=kind(steps=1), loss=AdversarialLoss())
    job = make_job(little, method, small_net(), threats=threats, training={"epsilon_ramp": 1.0, "epochs": 1})
    (row,) = run(job, tmp_path).rows
    accuracies = [row.get(f"train_robust_accuracy_{name}") for name in ("linf", "l1")]
    shares = [row.get(f"threat_share_{name}") for name in ("linf", "l1")]
    assert (None in accuracies) == (kind is MsdInner)
    assert (None in shares) == (kind is AvgInner)
    if kind is not AvgInner:
        assert sum(float(one or 0) for one in shares) == pytest.approx(1)
    if kind is EatInner:
        memory = last(tmp_path)["memory"]["inner"]
        assert int(memory["batches"].sum()) == 5


def test_names_and_lists_of_threats() -> None:
    assert short_names(parse_threats(["linf:8/255", "l2:0.5", "linf:4/255"])) == ("linf_1", "l2", "linf_2")
    assert parse_threats(["l2:1"]) == (ThreatModel("l2", 1),)
    with pytest.raises(ThreatError, match=r"linf:0\.5 is named twice"):
        parse_threats(["linf:0.5", "l2:1", "linf:1/2"])
    with pytest.raises(ThreatError, match="1 to 16"):
        parse_threats([])
