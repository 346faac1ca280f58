"""The ascent whose examples settle one by one: plain PGD where none does, else the specification's toy."""

import pytest
import torch
from torch import Tensor, nn
from training_tools import make_step, mlp

from robustly.objectives import ClassificationGoal
from robustly.threats.lp import ThreatModel
from robustly.training import PGDInner
from robustly.training.inner.pgd import ascend, training_pgd

START = torch.tensor([[0.55, 0.50]], dtype=torch.float64)
PATH = [(0.55, 0.50), (0.51, 0.54), (0.47, 0.58), (0.45, 0.60)]
THREAT = ThreatModel("linf", 0.1)


def settle_after(times: int):  # type: ignore[no-untyped-def]
    """Stay where the goal was seen reached `times` times before."""
    seen = torch.zeros(100, dtype=torch.int64)

    def settled(rows: Tensor, points: Tensor, logits: Tensor, goal: ClassificationGoal) -> Tensor:
        reached = goal.reached(logits)
        stays = reached & (seen[rows] >= times)
        seen[rows] += reached.long()
        return stays

    return settled


@pytest.mark.parametrize(("tolerance", "reached", "steps"), [(0, 1, 1), (1, 2, 2), (2, 3, 3)])
def test_examples_settle_where_they_are(tolerance: int, reached: int, steps: int) -> None:
    y = torch.tensor([0])
    step = make_step(START, y, nn.Identity(), threat=THREAT)
    pgd = training_pgd(3, step_size=0.04, start="none")
    found = ascend(step, pgd, ClassificationGoal(y), settled=settle_after(tolerance))
    assert torch.allclose(found.x_adv, torch.tensor([PATH[reached]], dtype=torch.float64), atol=1e-12)
    assert found.forwards.tolist() == [min(steps + 1, 3)]
    assert found.correct_iterates.tolist() == [1], "only the start is classified correctly"


@pytest.mark.parametrize("start", ["random", "gaussian", "none"])
@pytest.mark.parametrize("mode", ["eval", "train", "train_nostat"])
def test_where_nothing_settles_it_is_pgd_bit_by_bit(start: str, mode: str) -> None:
    torch.manual_seed(0)
    x, y = torch.rand(20, 6, dtype=torch.float64), torch.randint(4, (20,))
    steps = [make_step(x, y, mlp(), threat=THREAT) for _ in range(2)]
    inner = PGDInner(steps=4, step_size=0.03, start=start, mode=mode)  # type: ignore[arg-type]
    expected = inner(steps[0])
    pgd = training_pgd(4, step_size=0.03, start=start, mode=mode)  # type: ignore[arg-type]
    found = ascend(
        steps[1],
        pgd,
        ClassificationGoal(y),
        settled=lambda rows, points, logits, goal: torch.zeros_like(rows).bool(),
    )
    for name in ("x_adv", "broken", "distance", "forwards", "backwards", "correct_iterates"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    one, other = (step.model.state_dict() for step in steps)
    assert all(torch.equal(one[name], other[name]) for name in one), "batch norm heard the same"


def test_a_value_of_the_points_replaces_the_objective() -> None:
    y = torch.tensor([0])
    step = make_step(START, y, nn.Identity(), threat=THREAT)
    pgd = training_pgd(3, step_size=0.04, start="none")
    found = ascend(
        step, pgd, ClassificationGoal(y), value_at=lambda points, logits, goal: points[:, 0] + 0 * logits[:, 0]
    )
    assert torch.allclose(found.x_adv, torch.tensor([[0.65, 0.50]], dtype=torch.float64))


def test_noise_is_keyed_by_example_and_stays_in_the_ball() -> None:
    torch.manual_seed(0)
    x, y = torch.rand(20, 6, dtype=torch.float64), torch.randint(4, (20,))
    net, pgd = mlp(norm=False), training_pgd(4, step_size=0.03)
    whole = ascend(make_step(x, y, net, threat=THREAT), pgd, ClassificationGoal(y), noise=0.01).x_adv
    again = ascend(make_step(x, y, net, threat=THREAT), pgd, ClassificationGoal(y), noise=0.01).x_adv
    quiet = ascend(make_step(x, y, net, threat=THREAT), pgd, ClassificationGoal(y)).x_adv
    part = ascend(make_step(x[:7], y[:7], net, threat=THREAT), pgd, ClassificationGoal(y[:7]), noise=0.01).x_adv
    assert torch.equal(whole, again)
    assert not torch.equal(whole, quiet)
    assert torch.allclose(whole[:7], part, atol=1e-12)
    assert float((whole - x).abs().max()) <= 0.1 + 1e-12
    assert float(whole.min()) >= 0
    assert float(whole.max()) <= 1


def test_the_model_is_left_as_it_was() -> None:
    x, y = torch.rand(5, 6, dtype=torch.float64), torch.randint(4, (5,))
    net = mlp().train()
    ascend(make_step(x, y, net, threat=THREAT), training_pgd(2), ClassificationGoal(y))
    assert all(part.training for part in net.modules())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
