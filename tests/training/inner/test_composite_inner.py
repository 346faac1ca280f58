"""Composite adversarial training (GAT): its relation to PGD, orders, passes, refusals."""

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training_tools import make_job, make_step, run, small_net

from robustly.attacks import AttackError
from robustly.cli import main
from robustly.data import Splits
from robustly.randomness import KeyedGenerator
from robustly.testing.networks import small_network
from robustly.testing.training import check_part
from robustly.threats import Threat, parse_threat
from robustly.threats.any_order import AnyOrderSet
from robustly.training import (
    AdversarialLoss,
    CompositeInner,
    GairatWeights,
    Method,
    MethodError,
    Moment,
    PGDInner,
    Step,
    TradesLoss,
)
from robustly.training.cost import CHAINED, step_cost
from robustly.training.inner.composite import LARGEST_CHAIN

Name = Literal["random", "fixed", "scheduled"]
ORDERS: tuple[Name, ...] = ("random", "fixed", "scheduled")
CHAIN = parse_threat("rotation:20&brightness:0.1&linf:0.05")


def network(channels: int = 1) -> nn.Module:
    return small_network((channels, 6, 6), 4, 0).eval().double()


def data(count: int = 9, channels: int = 1) -> tuple[Tensor, Tensor]:
    x = KeyedGenerator(0, torch.arange(count)).uniform(channels, 6, 6).double()
    return x, torch.arange(count) % 4


def step_with(inner: Any, threat: Threat = CHAIN, channels: int = 1, **changes: Any) -> Step:
    return make_step(*data(channels=channels), network(channels), inner=inner, threats=(threat,), **changes)


def losses(x_adv: Tensor) -> Tensor:
    return F.cross_entropy(network()(x_adv), data()[1], reduction="none").detach()


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_the_contract_of_parts(order: Name) -> None:
    check_part(CompositeInner(steps=2, order=order, rounds=2, schedule_steps=1), threats=(CHAIN,))


@pytest.mark.slow
@pytest.mark.usefixtures("forks")
def test_two_processes_draw_the_same_order_as_one() -> None:
    check_part(CompositeInner(steps=1), threats=(CHAIN,), processes=True)


@pytest.mark.parametrize("order", ORDERS)
def test_with_all_other_parts_off_it_is_pgd(order: Name) -> None:
    ours = step_with(
        CompositeInner(steps=5, order=order, start="none"), parse_threat("rotation:0&shift:0&linf:0.05")
    )
    theirs = step_with(PGDInner(steps=5, start="none"), parse_threat("linf:0.05"))
    assert torch.allclose(ours.adversarial.x_adv, theirs.adversarial.x_adv, atol=1e-6)
    assert not torch.allclose(ours.adversarial.x_adv, ours.x, atol=1e-3)


@pytest.mark.parametrize("start", ["random", "none"])
def test_under_one_threat_it_is_pgd(start: Any) -> None:
    for text in ("linf:0.1", "l1:1", "rotation:20"):
        threat = parse_threat(text)
        ours, theirs = (step_with(part(steps=3, start=start), threat) for part in (CompositeInner, PGDInner))
        assert torch.equal(ours.adversarial.x_adv, theirs.adversarial.x_adv)
        assert torch.equal(ours.adversarial.backwards, theirs.adversarial.backwards)


def test_each_part_climbs_on_the_result_of_the_part_before() -> None:
    x, _ = data()
    weak = parse_threat("rotation:2&brightness:0.01&linf:0.002")
    net = network()
    labels = net(x).argmax(1)
    step = make_step(x, labels, net, inner=CompositeInner(steps=3, order="fixed", start="none"), threats=(weak,))
    theta = step.adversarial.theta
    assert theta is not None
    allowed = weak.around(x)
    assert isinstance(allowed, AnyOrderSet)
    assert bool(allowed.contains(theta).all())
    images = x
    for link, part in zip(allowed.chain.links, allowed.parted(theta)[0], strict=True):
        here = link.moved_to(images)
        expected = here.identity()
        for _ in range(3):
            leaf = expected.clone().requires_grad_()
            value = F.cross_entropy(net(here.apply(leaf)), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(value, leaf)
            expected = here.step(expected, gradient, 2.5 / 3 * here.radius)
        assert torch.allclose(part, expected, atol=1e-12)
        images = here.apply(expected)
    assert torch.allclose(step.adversarial.x_adv, images, atol=1e-12)


@pytest.mark.parametrize("order", ORDERS)
def test_it_stays_inside_and_raises_the_loss(order: Name) -> None:
    step = step_with(CompositeInner(steps=4, order=order, rounds=2, schedule_steps=1))
    allowed, theta = CHAIN.around(step.x), step.adversarial.theta
    assert theta is not None
    assert bool(allowed.contains(theta).all())
    assert torch.allclose(allowed.apply(theta), step.adversarial.x_adv)
    assert losses(step.adversarial.x_adv).mean() > losses(step.x).mean() + 0.02
    nothing = step_with(CompositeInner(steps=0, order=order))
    assert losses(step.adversarial.x_adv).mean() > losses(nothing.adversarial.x_adv).mean()
    assert not torch.equal(nothing.adversarial.x_adv, nothing.x), "without steps it is random augmentation"


def test_random_orders_are_drawn_for_each_batch_and_fixed_ones_are_those_of_the_text() -> None:
    def order(name: Name, count: int, seed: int = 0) -> list[list[int]]:
        step = step_with(CompositeInner(steps=1, order=name), moment=Moment(0, count, 100, 1), seed=seed)
        theta = step.adversarial.theta
        assert theta is not None
        found: list[list[int]] = theta[:, -3:].long().tolist()
        return found

    drawn = [order("random", count) for count in range(8)]
    assert all(len({tuple(row) for row in rows}) == 1 for rows in drawn), "one order for the batch"
    assert len({tuple(rows[0]) for rows in drawn}) > 1
    assert order("random", 3) == drawn[3], "keyed by the step"
    assert order("fixed", 3) == [[0, 1, 2]] * 9
    assert len({tuple(row) for row in order("scheduled", 0)}) > 1, "an order for each image"


def test_colour_images_and_all_six_parts() -> None:
    six = parse_threat("hue:3&saturation:0.3&rotation:10&brightness:0.2&contrast:0.3&linf:8/255")
    step = step_with(CompositeInner(steps=1), six, channels=3)
    theta = step.adversarial.theta
    assert theta is not None
    assert bool(six.around(step.x).contains(theta).all())
    assert step.adversarial.x_adv.dtype == torch.float64


@pytest.mark.parametrize(
    ("settings", "attack"),
    [({}, 3 * 4), ({"order": "fixed", "rounds": 5}, 3 * 4), ({"rounds": 2}, 2 * 3 * 4),
     ({"order": "scheduled", "rounds": 2, "schedule_steps": 1}, 2 * 3 * 4 + 3 * 3 + 1)],
)  # fmt: skip
def test_passes_of_a_step(settings: Any, attack: int) -> None:
    for loss, more in ((AdversarialLoss(), 1), (TradesLoss(beta=6.0), 2)):
        cost = step_cost(Method(inner=CompositeInner(steps=4, **settings), loss=loss), 1, threats=(CHAIN,))
        assert (cost.forwards["model"], cost.backwards["model"]) == (attack + more, attack + more)
    assert step_cost(Method(inner=CompositeInner(steps=4), loss=AdversarialLoss()), 1).total == 2 * 5


def test_the_largest_chain_can_be_counted() -> None:
    chain = parse_threat("&".join(CHAINED))
    assert len(CHAINED) == LARGEST_CHAIN
    method = Method(inner=CompositeInner(steps=1), loss=AdversarialLoss())
    assert step_cost(method, 1, threats=(chain,)).forwards["model"] == LARGEST_CHAIN + 1


def test_bad_input_is_refused() -> None:
    method = Method(inner=CompositeInner(), loss=AdversarialLoss())
    with pytest.raises(MethodError, match=r"inner: composite is for chains in any order, rotation:10\+linf:0.1"):
        method.check_threats((parse_threat("rotation:10+linf:0.1"),))
    longer = parse_threat("&".join((*CHAINED, "ace:2")))
    with pytest.raises(MethodError, match="chains of at most 12 parts, 13 are given"):
        method.check_threats((longer,))
    scheduled = Method(inner=CompositeInner(order="scheduled"), loss=AdversarialLoss())
    with pytest.raises(MethodError, match="'scheduled' is for chains of at most 7 parts, 8"):
        scheduled.check_threats((parse_threat("&".join(CHAINED[:8])),))
    method.check_threats((parse_threat("linf:0.1"),))
    with pytest.raises(MethodError, match="gairat counts the steps of one"):
        Method(inner=CompositeInner(), loss=AdversarialLoss(), weights=GairatWeights(burn_in=0))
    for settings, message in (
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"steps": -1}, "steps"),
    ):
        with pytest.raises((AttackError, ValueError), match=message):
            CompositeInner(**settings)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_run_from_the_command_line_and_its_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "mnist5k/gat", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "34 in all, 17 times standard training's" in said
    assert "gradient passes of the training attack per image: 15, under a chain of 5" in said
    assert main(["train", "mnist5k/gat", "--threat", "hue:0.5&linf:0.1", "--out", str(tmp_path / "grey")]) == 2
    assert "grey images have no colour" in capsys.readouterr().err


@pytest.mark.slow
def test_epsilon_grows(little: Splits, tmp_path: Path) -> None:
    method = Method(inner=CompositeInner(steps=1), loss=AdversarialLoss())
    job = make_job(little, method, small_net(), threats=(CHAIN,), training={"epsilon_ramp": 1.0, "epochs": 1})
    (row,) = run(job, tmp_path).rows
    assert float(row["train_loss"]) > 0
