"""APGD, APGD-T and PMA under the contract; what they cost, and the precision that they search in."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustly.attacks import APGD, PGD, PMA, Attack, AttackError, TargetedAPGD
from robustly.attacks.apgd_l1 import sparse_direction
from robustly.data import Splits
from robustly.objectives import OBJECTIVES, ClassificationGoal, margin
from robustly.randomness import KeyedGenerator
from robustly.testing import check_attack, small_network
from robustly.threats.lp import ThreatModel

THREATS = (ThreatModel("linf", 0.15), ThreatModel("l2", 0.5), ThreatModel("l1", 1.2))


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack",
    [
        APGD(4, restarts=2),
        APGD(5, objective=OBJECTIVES["dlr"], start="odi", odi_steps=2),
        APGD(4, early_stop=False),
        APGD(5, objective=OBJECTIVES["alternating"], large_epsilon=True),
        APGD(0),
        TargetedAPGD(3, targets=2),
        TargetedAPGD(3, targets=2, first=1, ranking="malt", restarts=2),
    ],
    ids=["ce", "odi", "no-active-set", "alternating", "no-steps", "t", "malt"],
)
def test_they_keep_the_contract(attack: Attack) -> None:
    check_attack(attack, THREATS, targeted=True)


@pytest.mark.slow
def test_pma_keeps_the_contract() -> None:
    check_attack(PMA(4), THREATS)


def robust_net() -> nn.Module:
    """A constant: nothing breaks it, so every pass is spent."""

    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0]) + 1e-9 * x.flatten(1).sum(1, keepdim=True)

    return Constant()


def cost(attack: Attack, threat: ThreatModel) -> tuple[int, int]:
    x, y = torch.rand(1, 1, 4, 4), torch.zeros(1, dtype=torch.int64)
    found = attack(robust_net(), x, y, threat=threat, generator=KeyedGenerator(0, torch.arange(1)))
    assert not found.broken.any()
    return int(found.forwards), int(found.backwards)


@pytest.mark.slow
@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_passes_of_a_robust_image_are_those_of_the_published_protocol(threat: ThreatModel) -> None:
    assert cost(APGD(100), threat) == (102, 101)
    assert cost(TargetedAPGD(100, targets=4), threat) == (1 + 4 * 101, 4 * 101)
    assert cost(TargetedAPGD(10, targets=2, ranking="malt"), threat) == (1 + 1 + 2 * 11, 5 + 2 * 11)
    assert cost(PMA(10), threat) == (1 + 2 * 11, 2 * 10)
    assert cost(APGD(10, start="odi", odi_steps=7), threat) == (1 + 7 + 11, 7 + 11)


def test_there_are_no_more_targets_than_wrong_classes() -> None:
    assert cost(TargetedAPGD(5, targets=9), THREATS[0]) == (1 + 4 * 6, 4 * 6)
    assert cost(TargetedAPGD(5, targets=9, first=3), THREATS[0]) == (1 + 6, 6)
    assert cost(TargetedAPGD(5, targets=2, first=7), THREATS[0]) == (1, 0)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), norm=st.sampled_from(["linf", "l2", "l1"]))
def test_more_steps_never_lower_the_best_objective(seed: int, norm: str) -> None:
    net = small_network((1, 4, 4), seed=seed % 7).eval()
    x = KeyedGenerator(seed, torch.arange(4)).uniform(1, 4, 4)
    y = net(x).argmax(1)
    threat = ThreatModel(norm, {"linf": 0.02, "l2": 0.05, "l1": 0.1}[norm])
    best = []
    for steps in (0, 12, 25):  # the schedule differs with the budget, so only the start is common
        attack = APGD(steps, objective=margin, early_stop=False)
        found = attack(net, x, y, threat=threat, generator=KeyedGenerator(seed, torch.arange(4)))
        assert threat.contains(found.x_adv, x).all()
        best.append(found.margin)
    assert (best[1] >= best[0] - 1e-6).all()
    assert (best[2] >= best[0] - 1e-6).all()


@pytest.mark.slow
@pytest.mark.parametrize("attack", [PGD(10, margin), APGD(10), TargetedAPGD(6, targets=2), PMA(6)])
def test_what_bfloat16_finds_is_believed_only_when_full_precision_agrees(
    attack: Attack, digits: Splits, digit_net: nn.Module
) -> None:
    x, y = digits.test.floats()[:60], digits.test.labels[:60]
    half = type(attack)(**{**attack.__dict__, "precision": "bfloat16"})
    threat = ThreatModel("linf", 0.06)
    runs = [
        a(digit_net, x, y, threat=threat, generator=KeyedGenerator(0, torch.arange(60))) for a in (attack, half)
    ]
    for found in runs:
        with torch.no_grad():
            assert torch.equal(digit_net(found.x_adv).argmax(1) != y, found.broken)
        assert threat.contains(found.x_adv, x).all()
    assert 5 < int(runs[0].broken.sum()) < 55
    assert abs(int(runs[0].broken.sum()) - int(runs[1].broken.sum())) <= 3


def test_a_model_without_a_twin_is_searched_in_full_precision() -> None:
    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

        def forward(self, x: Tensor) -> Tensor:
            if x.dtype != torch.float32:
                raise TypeError("float32 only")
            logits: Tensor = self.net(x)
            return logits

    net = Stubborn()
    x = torch.rand(3, 1, 4, 4)
    y = net(x).argmax(1)
    with pytest.warns(UserWarning, match="bfloat16"):
        found = PGD(5, precision="bfloat16")(
            net, x, y, threat=ThreatModel("linf", 0.5), generator=KeyedGenerator(0, torch.arange(3))
        )
    assert found.broken.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_models_in_half_precision_are_attacked_in_their_own_numbers(dtype: torch.dtype) -> None:
    net = small_network((1, 4, 4)).eval().to(dtype)
    x = KeyedGenerator(0, torch.arange(8)).uniform(1, 4, 4)
    y = net(x.to(dtype)).argmax(1)
    threat = ThreatModel("linf", 0.2)
    for attack in (PGD(10), APGD(10), TargetedAPGD(5, targets=3)):
        found = attack(net, x, y, threat=threat, generator=KeyedGenerator(0, torch.arange(8)))
        assert found.x_adv.dtype == torch.float32
        assert threat.contains(found.x_adv, x).all()
        assert found.broken.any()
        assert torch.equal(net(found.x_adv.to(dtype)).argmax(1) != y, found.broken)


def test_blocked_gradients_are_zero_and_counted() -> None:
    class Blocked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.net(x.detach())
            return logits

    net = Blocked()
    x = torch.rand(4, 1, 4, 4)
    y = net(x).argmax(1)
    found = PGD(5, start="none")(
        net, x, y, threat=ThreatModel("linf", 0.3), generator=KeyedGenerator(0, torch.arange(4))
    )
    assert not found.broken.any()
    assert found.zero_gradients is not None
    assert (found.zero_gradients == 5).all()


def test_bad_settings_and_norms_are_refused() -> None:
    for wrong in ({"steps": -1}, {"restarts": 0}, {"odi_steps": 0}):
        with pytest.raises(AttackError):
            APGD(**wrong)  # type: ignore[arg-type]
    with pytest.raises(AttackError, match="targets must be at least 1"):
        TargetedAPGD(targets=0)
    with pytest.raises(AttackError, match="steps must be at least 2"):
        PMA(1)
    x, y = torch.rand(1, 1, 4, 4), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(AttackError, match=r"any threat but l0.* l0:3"):
        APGD(2)(
            small_network((1, 4, 4)),
            x,
            y,
            threat=ThreatModel("l0", 3),
            generator=KeyedGenerator(0, torch.arange(1)),
        )
    with pytest.raises(AttackError, match="no targeted form"):
        PMA(2)(
            small_network((1, 4, 4)), x, ClassificationGoal(y, y + 1), threat=THREATS[0],
            generator=KeyedGenerator(0, torch.arange(1)),
        )  # fmt: skip


def test_a_sparse_step_moves_the_steepest_share() -> None:
    gradient = torch.tensor([[0.1, -0.5, 0.3, 0.0, 0.2], [0.0, 0.0, 0.0, 0.0, 0.0]])
    step = sparse_direction(gradient, torch.tensor([0.4, 0.4]))
    assert torch.allclose(step, torch.tensor([[0, -0.5, 0.5, 0, 0], [0.0, 0, 0, 0, 0]]))


@pytest.mark.slow
def test_no_warning_is_given_where_bfloat16_works(digit_net: nn.Module, digits: Splits) -> None:
    x, y = digits.test.floats()[:4], digits.test.labels[:4]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PGD(2, precision="bfloat16")(
            digit_net, x, y, threat=THREATS[0], generator=KeyedGenerator(0, torch.arange(4))
        )
