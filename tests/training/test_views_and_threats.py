"""Several augmented views of a batch, and several threat models, through parts that use them."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from training_tools import final, make_job, make_step, run, same, small_net

from robustly.attacks import AttackResult
from robustly.data import Augmentation, Extra, Splits, batches, mixed_batches
from robustly.threats.lp import ThreatModel
from robustly.training import AdversarialLoss, CleanLoss, Method, Part, Step, Terms
from robustly.training.cost import step_cost
from robustly.training.inner.pgd import attack_step, training_pgd

TWICE = Augmentation(pad_crop=2, flip=True)


@dataclass(frozen=True)
class Agreement(Part):
    """Cross-entropy, and a squared distance between the logits of two views."""

    views = 2
    reads = ("clean",)

    weight: float = 1.0

    def __call__(self, step: Step) -> Terms:
        terms = CleanLoss()(step)
        if self.weight > 0:
            other = step.logits_at("model", step.views[1])
            terms["agreement"] = self.weight * (step.clean_logits - other).square().sum(1)
        return terms


def test_the_first_view_is_the_batch_without_others(little: Splits) -> None:
    settings = {"seed": 3, "epoch": 1, "augmentation": TWICE}
    for one, three in zip(
        batches(little.train, 32, **settings), batches(little.train, 32, views=3, **settings), strict=True
    ):
        assert torch.equal(one.x, three.x)
        assert one.other_views == ()
        first, second = three.other_views
        assert not torch.equal(first, three.x)
        assert not torch.equal(first, second)
        assert first.shape == three.x.shape
    extra = Extra(little.train, 0.5)
    for one, two in zip(
        mixed_batches(little.train, extra, 32, **settings),
        mixed_batches(little.train, extra, 32, views=2, **settings),
        strict=True,
    ):
        assert torch.equal(one.x, two.x)
        assert len(two.other_views) == 1


def test_views_do_not_depend_on_the_batch_size(little: Splits) -> None:
    settings = {"seed": 3, "epoch": 1, "augmentation": TWICE, "views": 2}
    found = []
    for size in (32, 50):
        rows = [batch.other_views[0] for batch in batches(little.train, size, **settings)]
        found.append(torch.cat(rows))
    assert torch.equal(*found)


def test_a_method_trains_on_two_views(little: Splits, tmp_path: Path) -> None:
    seen: list[int] = []

    class Noting(Agreement):
        def __call__(self, step: Step) -> Terms:
            assert step.views[0] is step.x
            assert step.views[1].is_contiguous(memory_format=torch.channels_last)
            seen.append(len(step.views))
            return super().__call__(step)

    job = make_job(little, Method(loss=Noting()), augmentation=TWICE)
    outcome = run(job, tmp_path / "views")
    assert set(seen) == {2}
    assert float(outcome.rows[0]["loss_agreement"] or 0) > 0
    run(make_job(little, Method(loss=Agreement(0.0)), augmentation=TWICE), tmp_path / "unused")
    run(make_job(little, Method(), augmentation=TWICE), tmp_path / "plain")
    assert same(final(tmp_path / "unused"), final(tmp_path / "plain")), "the second view changes nothing by itself"
    assert not same(final(tmp_path / "views"), final(tmp_path / "plain"))
    assert step_cost(Method(loss=Agreement()), 1).forwards == {"model": 2}


@dataclass(frozen=True)
class Each(Part):
    """Attack each image within one of the threat models, in turn."""

    steps: int = 2

    def __call__(self, step: Step) -> AttackResult:
        found = [attack_step(step, training_pgd(self.steps), threat=threat) for threat in step.threats]
        turn = step.ids % len(found)
        x_adv = found[0].x_adv
        for number, result in enumerate(found):
            x_adv = torch.where((turn == number)[:, None, None, None], result.x_adv, x_adv)
        return replace(found[0], x_adv=x_adv)


def test_a_method_trains_against_several_threats(little: Splits, tmp_path: Path) -> None:
    threats = (ThreatModel("linf", 0.1), ThreatModel("l2", 0.5))
    radii: list[tuple[float, float]] = []

    class Noting(AdversarialLoss):
        def __call__(self, step: Step) -> Terms:
            assert step.threat is step.threats[0]
            for number, threat in enumerate(step.threats):
                rows = step.ids % 2 == number
                assert bool(threat.contains(step.adversarial.x_adv[rows], step.x[rows]).all())
            radii.append((float(step.threats[0].epsilon), float(step.threats[1].epsilon)))
            return super().__call__(step)

    method = Method(inner=Each(), loss=Noting())
    job = make_job(little, method, threats=threats, training={"epsilon_ramp": 1.0})
    assert job.threat == threats[0]
    run(job, tmp_path)
    assert radii[0] == pytest.approx((0.01, 0.05)), "the ramp holds for both"
    assert radii[-1] == (0.1, 0.5)
    assert step_cost(method, 1, threats=2).forwards == {"model": 2 * 2 + 1}
    with pytest.raises(ValueError, match="at least one threat model"):
        make_job(little, Method(), small_net(), threats=())


def test_a_step_made_by_hand_has_one_view_and_one_threat() -> None:
    x = torch.rand(4, 1, 16, 16)
    step = make_step(x, torch.arange(4), small_net(), other_views=(x.flip(3),))
    assert torch.equal(step.views[1], x.flip(3))
    assert len(step.threats) == 1
