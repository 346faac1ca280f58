"""FAT and the curricula of SAT: the specification's toys, loops written out again, PGD as a special case."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training_tools import last, make_job, make_step, mlp, run, same

from robustly.attacks import AttackResult
from robustly.data import Splits
from robustly.objectives import ClassificationGoal
from robustly.threats.lp import ThreatModel
from robustly.training import AdversarialLoss, CurriculumInner, FriendlyInner, GairatWeights, Method, PGDInner
from robustly.training.inner.early_stopped import curvature_at
from robustly.training.parts import InnerMaximiser
from robustly.training.step import Moment

POINT, TOY = torch.tensor([[0.55, 0.50]], dtype=torch.float64), ThreatModel("linf", 0.1)
PATH = [(0.55, 0.50), (0.51, 0.54), (0.47, 0.58), (0.45, 0.60)]


def batch(count: int = 20, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 6, dtype=torch.float64, generator=generator)
    return x, torch.randint(4, (count,), generator=generator)


def friendly(tau: int, **settings: object) -> FriendlyInner:
    return FriendlyInner(taus=(tau,), boundaries=(), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(("tau", "reached", "steps"), [(0, 1, 1), (1, 2, 2), (2, 3, 3), (3, 3, 3)])
def test_fat_returns_the_toys_points(tau: int, reached: int, steps: int) -> None:
    y = torch.tensor([0])
    inner = friendly(tau, noise=0, steps=3, step_size=0.04, start="none")
    found = inner(make_step(POINT, y, nn.Identity(), threat=TOY))
    assert torch.allclose(found.x_adv, torch.tensor([PATH[reached]], dtype=torch.float64), atol=1e-12)
    assert found.backwards.tolist() == [steps]
    assert found.correct_iterates.tolist() == [1]


def test_a_misclassified_example_without_patience_stays_at_the_start() -> None:
    y = torch.tensor([1])
    found = friendly(0, noise=0.5, steps=3, start="none")(make_step(POINT, y, nn.Identity(), threat=TOY))
    assert torch.equal(found.x_adv, POINT)
    assert (found.forwards.tolist(), found.backwards.tolist()) == ([1], [0])


@pytest.mark.parametrize("inner", [friendly(0, noise=0, objective="kl", start="gaussian"), None])
def test_an_example_that_settles_where_it_starts_is_an_image(inner: InnerMaximiser | None) -> None:
    x, y = torch.zeros(8, 6, dtype=torch.float64), torch.zeros(8, dtype=torch.int64)
    net = mlp(norm=False)
    with torch.no_grad():
        net[-1].bias[0] -= 100  # everything is misclassified  # type: ignore[index, union-attr, operator]
    found = (inner or CurriculumInner(start="gaussian", first=-1.0))(make_step(x, y, net))
    assert found.backwards.sum() == 0
    assert bool(TOY.around(x).contains(found.x_adv).all())


@pytest.mark.parametrize("objective", ["cross_entropy", "kl"])
@pytest.mark.parametrize("tau", [0, 1, 3])
def test_fat_is_its_algorithm(objective: str, tau: int) -> None:
    """One example at a time, as the paper has it."""
    x, y = batch(40)
    net, epsilon = mlp(seed=2, norm=False).eval(), 0.1
    inner = friendly(tau, objective=objective, noise=0, steps=5, step_size=0.03, start="gaussian")
    found = inner(make_step(x, y, net))
    start = PGDInner(steps=1, start="gaussian", step_size=1e-30)(make_step(x, y, net)).x_adv
    spent = 0
    for i in range(len(x)):
        point, patience = start[i : i + 1], tau
        for _ in range(5):
            point = point.detach().requires_grad_()
            z = net(point)
            spent += 1  # also where it turns out to be the end: the batch goes on
            if int(z.argmax()) != int(y[i]):
                if patience == 0:
                    break
                patience -= 1
            if objective == "kl":
                value = F.kl_div(z.log_softmax(1), net(x[i : i + 1]).softmax(1).detach(), reduction="sum")
            else:
                value = F.cross_entropy(z, y[i : i + 1])
            (gradient,) = torch.autograd.grad(value, point)
            point = point + 0.03 * gradient.sign()
            point = point.clamp(x[i] - epsilon, x[i] + epsilon).clamp(0, 1)
        assert torch.allclose(found.x_adv[i], point[0].detach(), atol=1e-9), i
    assert int(found.backwards.sum()) == spent < 40 * 5


def test_tau_follows_its_schedule() -> None:
    inner = FriendlyInner()
    assert [inner.tau_at(time) for time in (0, 49.9, 50, 89.9, 90, 500)] == [0, 0, 1, 1, 2, 2]
    x, y = batch()
    net = mlp(seed=2)
    inner = FriendlyInner(taus=(0, 5), boundaries=(1.5,), noise=0, steps=5)
    early = inner(make_step(x, y, net, moment=Moment(1, 1, 4, 3)))
    late = inner(make_step(x, y, net, moment=Moment(1, 2, 4, 3)))
    pgd = PGDInner(steps=5)(make_step(x, y, net))
    assert torch.equal(late.x_adv, pgd.x_adv)
    assert int(early.backwards.sum()) < int(late.backwards.sum()) == 100


def epoch_of(little: Splits, inner: InnerMaximiser, folder: Path) -> dict[str, Tensor]:
    run(make_job(little, Method(inner=inner, loss=AdversarialLoss()), training={"epochs": 1}), folder)
    weights: dict[str, Tensor] = last(folder)["networks"]["model"]
    return weights


@pytest.mark.slow
def test_fat_with_full_patience_and_sat_without_limit_train_as_pgd(little: Splits, tmp_path: Path) -> None:
    expected = epoch_of(little, PGDInner(steps=3), tmp_path / "pgd")
    assert same(epoch_of(little, friendly(3, noise=0, steps=3), tmp_path / "fat"), expected)
    assert same(epoch_of(little, CurriculumInner(first=1, steps=3), tmp_path / "sat"), expected)
    assert same(epoch_of(little, CurriculumInner(ramp=0, steps=3), tmp_path / "ramp"), expected)
    assert not same(epoch_of(little, CurriculumInner(first=-1, steps=3), tmp_path / "limited"), expected)


def curriculum(step_share: float, **settings: object) -> AttackResult:
    x, y = batch(40)
    step = make_step(x, y, mlp(seed=2), moment=Moment(int(100 * step_share), 0, 1, 100))
    return CurriculumInner(steps=5, step_size=0.03, **settings)(step)  # type: ignore[arg-type]


def test_the_curriculum_keeps_the_first_iterate_beyond_its_limit() -> None:
    x, y = batch(40)
    net = mlp(seed=2).eval()
    limit = 0.04  # -0.2 + 1.2 * 0.1 / 0.5
    found = curriculum(0.1, first=-0.2)
    point = PGDInner(steps=0)(make_step(x, y, net)).x_adv
    for i in range(len(x)):
        here = point[i : i + 1]
        for _ in range(5):
            here = here.detach().requires_grad_()
            z = net(here)
            p = z.detach().softmax(1)[0]
            if float(p[[k for k in range(4) if k != int(y[i])]].max() - p[y[i]]) > limit:
                break
            (gradient,) = torch.autograd.grad(F.cross_entropy(z, y[i : i + 1]), here)
            here = (here + 0.03 * gradient.sign()).clamp(x[i] - 0.1, x[i] + 0.1).clamp(0, 1)
        assert torch.allclose(found.x_adv[i], here[0].detach(), atol=1e-9), i
    assert 0 < int(found.backwards.sum()) < 200


def test_the_limit_grows_until_there_is_none() -> None:
    inner = CurriculumInner(first=-0.5, ramp=0.5)
    assert [inner.limit_at(share) for share in (0, 0.25, 0.5, 1)] == [-0.5, 0.25, 1.0, 1.0]
    start = curriculum(0, first=-1.0)
    x, y = batch(40)
    assert torch.equal(start.x_adv, PGDInner(steps=0)(make_step(x, y, mlp(seed=2))).x_adv)
    spent = [int(curriculum(share).backwards.sum()) for share in (0.0, 0.25, 0.45, 0.5)]
    assert spent == sorted(spent)
    assert spent[-1] == 200


def test_kappa_counts_iterates_that_were_not_visited() -> None:
    """A limit below the decision boundary stops examples where they are right: they stay right."""
    found = curriculum(0, first=-0.9)
    x, y = batch(40)
    correct = mlp(seed=2).eval()(found.x_adv).argmax(1) == y
    stopped = found.forwards < 5
    assert bool((correct & stopped).any())
    assert bool((found.correct_iterates[correct & stopped] == 5).all())
    weights = GairatWeights(burn_in=0)
    assert float(weights.of(found.correct_iterates.double(), 5)[correct & stopped].max()) < 1e-4
    friendly_found = friendly(0, noise=0, steps=5, step_size=0.03)(make_step(x, y, mlp(seed=2)))
    plain = PGDInner(steps=5, step_size=0.03)(make_step(x, y, mlp(seed=2)))
    assert bool((friendly_found.correct_iterates <= plain.correct_iterates).all()), "first mistakes come as early"


def test_the_curvature_is_the_hessians() -> None:
    x, y = batch(12)
    net = mlp(seed=2).eval()
    step = make_step(x, y, net)
    found = curvature_at(step, x, ClassificationGoal(y), step.generator.fold("power"), 300, distance=1e-4)
    for i in range(len(x)):
        hessian = torch.autograd.functional.hessian(
            lambda point, i=i: F.cross_entropy(net(point[None]), y[i : i + 1]),  # type: ignore[misc]
            x[i],
        )
        expected = float(torch.linalg.eigvalsh(hessian).abs().max())
        assert float(found[i]) == pytest.approx(expected, rel=0.02), i


def test_h_sat_stops_where_the_loss_is_curved_and_counts_its_passes() -> None:
    x, y = batch(40)
    loose = curriculum(0.2, criterion="hessian", curvature=1e6)
    plain = PGDInner(steps=5, step_size=0.03)(make_step(x, y, mlp(seed=2)))
    assert torch.equal(loose.x_adv, plain.x_adv)
    assert loose.backwards.tolist() == [5 + 5 * 6] * 40
    tight = curriculum(0.2, criterion="hessian", curvature=1e-6)
    assert torch.equal(tight.x_adv, PGDInner(steps=0)(make_step(x, y, mlp(seed=2))).x_adv)
    assert (tight.forwards.tolist(), tight.backwards.tolist()) == ([7] * 40, [6] * 40)
    step = make_step(x, y, mlp(seed=2).eval())
    e = curvature_at(step, plain.x_adv, ClassificationGoal(y), step.generator.fold("power"), 3)
    some = curriculum(0.2, criterion="hessian", curvature=float(e.median()))
    assert int(tight.forwards.sum()) < int(some.forwards.sum()) < int(loose.forwards.sum())


@pytest.mark.parametrize(
    ("part", "settings", "reason"),
    [
        (FriendlyInner, {"taus": (0, 1)}, "taus must be one more than boundaries, got 2 and 2"),
        (FriendlyInner, {"boundaries": (9.0, 9.0)}, "boundaries must ascend"),
        (FriendlyInner, {"steps": 1}, r"every tau must lie between 0 and steps \(1\), got \[0, 1, 2\]"),
        (FriendlyInner, {"noise": -1.0}, "noise must be at least 0"),
        (FriendlyInner, {"objective": "kl", "start": "none"}, "zero gradient at the clean image"),
        (CurriculumInner, {"first": 1.1}, r"first must lie in \[-1, 1\]"),
        (CurriculumInner, {"ramp": -0.1}, r"ramp in \[0, 1\]"),
        (CurriculumInner, {"power_steps": 0}, "power_steps at least 1"),
        (
            CurriculumInner,
            {"criterion": "hessian", "mode": "train"},
            "its passes must not change running statistics",
        ),
        (CurriculumInner, {"step_size": 0.1, "relative_step_size": 0.1}, "not both"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    part: type[FriendlyInner | CurriculumInner], settings: dict[str, object], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        part(**settings)  # type: ignore[arg-type]
