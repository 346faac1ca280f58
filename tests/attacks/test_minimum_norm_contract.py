"""FAB, DeepFool, DDN and FMN: the contract, refusals, what they cost, and what their options mean."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from robustly.attacks import Attack, AttackError, AttackResult
from robustly.attacks.ddn import DDN
from robustly.attacks.deepfool import DeepFool
from robustly.attacks.fab import FAB
from robustly.attacks.fmn import FMN
from robustly.objectives import ClassificationGoal, margin
from robustly.randomness import KeyedGenerator
from robustly.testing import check_attack, small_network
from robustly.threats.lp import ThreatModel

EPSILON = {"linf": 0.15, "l2": 0.5, "l1": 1.2, "l0": 3}


def run(
    attack: Attack, net: nn.Module, x: Tensor, y: Tensor | ClassificationGoal, norm: str, epsilon: float
) -> AttackResult:
    return attack(net, x, y, threat=ThreatModel(norm, epsilon), generator=KeyedGenerator(0, torch.arange(len(x))))


def ten_classes() -> tuple[nn.Module, Tensor, Tensor]:
    """A smooth network of ten classes and images that it has right."""
    net = small_network((6,), classes=10, seed=2).eval()
    x = KeyedGenerator(4, torch.arange(12)).uniform(6) * 0.8 + 0.1
    with torch.no_grad():
        return net, x, net(x).argmax(1)


@pytest.mark.slow
@pytest.mark.parametrize("norm", list(EPSILON))
@pytest.mark.parametrize(
    ("attack", "targeted"),
    [
        (FAB(2), True),
        (FAB(1, restarts=2, targets=2, stop_inside=True), True),
        (DeepFool(3), False),
        (DDN(4), True),
        (FMN(3, targets=0), True),
        (FMN(2, restarts=2, targets=1), True),
    ],
    ids=["fab", "fab_t", "deepfool", "ddn", "fmn", "fmn_malt"],
)
def test_the_contract_is_kept(attack: Attack, targeted: bool, norm: str) -> None:
    threat = ThreatModel(norm, EPSILON[norm])
    if norm in attack.needs.norms:
        check_attack(attack, (threat,), targeted=targeted)
        return
    with pytest.raises(AttackError, match="defined for"):
        run(attack, *ten_classes(), norm, EPSILON[norm])


@pytest.mark.parametrize(
    ("family", "setting", "words"),
    [
        (FAB, {"steps": 0}, "steps"),
        (FAB, {"restarts": 0}, "restarts"),
        (FAB, {"targets": -1}, "targets"),
        (FAB, {"alpha_max": 1.1}, "alpha_max"),
        (FAB, {"eta": 0.9}, "eta"),
        (FAB, {"beta": 1.0}, "beta"),
        (DeepFool, {"steps": 0}, "steps"),
        (DeepFool, {"candidates": 0}, "candidates"),
        (DeepFool, {"overshoot": -0.1}, "overshoot"),
        (DDN, {"steps": 0}, "steps"),
        (DDN, {"initial_norm": 0.0}, "initial_norm"),
        (DDN, {"gamma": 1.0}, "gamma"),
        (FMN, {"steps": 0}, "steps"),
        (FMN, {"targets": -1}, "targets"),
        (FMN, {"step_size": 0.0}, "step_size"),
        (FMN, {"final_gamma": 0.1}, "final_gamma"),
    ],
)
def test_settings_out_of_range_are_refused(family: type, setting: dict[str, float], words: str) -> None:
    with pytest.raises(AttackError, match=words):
        family(**setting)


def test_deepfool_refuses_target_classes() -> None:
    net, x, y = ten_classes()
    with pytest.raises(AttackError, match="no targeted form"):
        run(DeepFool(), net, x, ClassificationGoal(y, target=(y + 1) % 10), "l2", 0.5)


@pytest.mark.slow
def test_passes_of_fab_are_those_of_the_tables() -> None:
    """FAB-T with nine targets: 900 backward passes; the untargeted one: K - 1 a step."""
    net, x, y = ten_classes()
    found = run(FAB(100, targets=9), net, x[:1], y[:1], "linf", 0.01)
    assert (found.backwards == 900).all()
    assert (found.forwards == 1 + 9 * 200).all()
    found = run(FAB(10), net, x, y, "l2", 0.01)
    assert (found.backwards == 10 * 9).all()
    assert (found.forwards == 1 + 10 * 2).all()
    found = run(FAB(10, restarts=2), net, x, ClassificationGoal(y, target=(y + 3) % 10), "l1", 0.01)
    assert (found.backwards == 2 * 10).all()


def test_passes_of_the_others() -> None:
    net, x, y = ten_classes()
    found = run(DeepFool(1), net, x, y, "l2", 0.01)
    assert (found.backwards == 9).all()
    assert (found.forwards == 3).all()
    assert (run(DeepFool(1, candidates=4), net, x, y, "linf", 0.01).backwards == 4).all()
    longer = run(DeepFool(50), net, x, y, "l2", 0.01)
    assert ((longer.backwards % 9) == 0).all()
    assert longer.distance.isfinite().all()
    found = run(DDN(20), net, x, y, "l2", 0.01)
    assert (found.backwards == 20).all()
    assert (found.forwards == 1 + 21).all()
    found = run(FMN(60, targets=0), net, x, y, "l2", 0.01)
    assert found.distance.isfinite().all()
    assert (found.backwards == 60).all()
    assert (found.forwards == 1 + 61).all()
    ranked = run(FMN(60, targets=3), net, x, y, "l2", 0.01)
    assert (ranked.backwards == 3 * 60 + 10).all()  # and the slopes of ten logits to rank targets by


@pytest.mark.parametrize("attack", [FAB(4, restarts=2), DeepFool(4), DDN(10), FMN(10, restarts=2)])
def test_counters_agree_with_hooks(attack: Attack) -> None:
    net, x, y = ten_classes()
    seen = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal seen
        seen += len(output)

    net.register_forward_hook(count)
    assert seen == 0
    assert int(run(attack, net, x, y, "l2", 0.1).forwards.sum()) == seen > 0


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_stopping_inside_epsilon_saves_passes_and_changes_no_verdict(norm: str) -> None:
    net, x, y = ten_classes()
    nearest = run(FAB(20, targets=3), net, x, y, norm, 0.05)
    assert nearest.distance.isfinite().all()
    epsilon = float(nearest.distance.median()) * 1.0001
    whole = run(FAB(20, targets=3), net, x, y, norm, epsilon)
    assert 0 < int(whole.broken.sum()) < len(x)
    stopping = FAB(20, targets=3, stop_inside=True)
    found = run(stopping, net, x, y, norm, epsilon)
    assert torch.equal(found.broken, whole.broken)
    assert (found.forwards[found.broken] < whole.forwards[found.broken]).all()
    # what is still standing is searched to the end, and nothing claims to be nearer than it is
    assert torch.equal(found.forwards[~found.broken], whole.forwards[~found.broken])
    assert (found.distance >= whole.distance - 1e-6).all()
    assert not stopping.minimum_norm
    assert all(attack.minimum_norm for attack in (FAB(), DeepFool(), DDN(), FMN()))


@pytest.mark.parametrize(
    "attack", [FAB(5, restarts=2), FAB(5, targets=2), DeepFool(5), DDN(20), DDN(20, objective=margin), FMN(20)]
)
def test_the_box_is_a_matter_of_units(attack: Attack) -> None:
    """Images on a scale from -255 to 255: the same search, 510 times as long."""
    net, x, y = ten_classes()
    net, x = net.double(), x.double()

    class Rescaled(nn.Module):
        def forward(self, wide: Tensor) -> Tensor:
            logits: Tensor = net((wide + 255) / 510)
            return logits

    for norm in attack.needs.norms:
        draws = KeyedGenerator(0, torch.arange(len(x)))
        found = run(attack, net, x, y, norm, EPSILON[norm])
        scale = 1 if norm == "l0" else 510
        threat = ThreatModel(norm, EPSILON[norm] * scale, (-255, 255))
        wide = attack(Rescaled(), x * 510 - 255, y, threat=threat, generator=draws)
        assert found.distance.isfinite().any()
        assert torch.allclose(wide.distance, found.distance * scale, rtol=1e-4)


def test_fmn_counts_a_pixel_once_whatever_its_channels() -> None:
    class OnePixel(nn.Module):
        """Only the three channels of pixel (1, 1) together are enough."""

        def forward(self, x: Tensor) -> Tensor:
            pixel = x[:, :, 1, 1].sum(1) + 0.01 * x.flatten(1).sum(1)
            return torch.stack([2.9 - pixel, torch.zeros_like(pixel)], dim=1)

    x = torch.full((2, 3, 4, 4), 0.5)
    found = run(FMN(60), OnePixel(), x, torch.zeros(2, dtype=torch.int64), "l0", 1)
    assert found.broken.all()
    assert (found.distance == 1).all()
    assert ((found.x_adv != x).flatten(1).sum(1) == 3).all()


def test_a_random_start_is_spent_on_failures_alone() -> None:
    """Zero gradient at every image with x_1 = 0.9: these need the extra start, the others never see it."""

    class HalfDead(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            ahead = 1 - 2 * (0.7 - x[:, 0]).relu() - 0.6 * x[:, 1] * (x[:, 0] < 0.7)
            return torch.stack([ahead, torch.zeros_like(ahead)], dim=1)

    x = torch.tensor([[0.5, 0.5], [0.9, 0.5], [0.4, 0.2], [0.9, 0.1]])
    found = run(FMN(50, targets=0), HalfDead(), x, torch.zeros(4, dtype=torch.int64), "l2", 0.1)
    assert found.distance.isfinite().all()
    alive = torch.tensor([True, False, True, False])
    assert (found.forwards[alive] == 52).all()
    assert (found.forwards[~alive] > 52).all()
    assert (found.zero_gradients[~alive] >= 1).all()


def test_more_restarts_never_find_less() -> None:
    net, x, y = ten_classes()
    for attack in (FAB(5), FMN(10)):
        once = run(attack, net, x, y, "l2", 0.5).distance
        thrice = run(replace(attack, restarts=3), net, x, y, "l2", 0.5).distance
        assert (thrice <= once + 1e-6).all()
