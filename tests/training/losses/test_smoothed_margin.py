"""MACER and Margin-CS: values and gradients by hand, limits, noise of each example, refusals."""

import math
from pathlib import Path
from statistics import NormalDist

import pytest
import torch
from torch import Tensor, nn
from training_tools import Constant, double, make_step, mlp

from robustly.cost_matrix import CostError
from robustly.data import Batch
from robustly.randomness import KeyedGenerator
from robustly.testing import check_part
from robustly.training import Labels, MacerLoss, MarginCsLoss, Method, Moment, Networks, Step
from robustly.training.losses.smoothed_margin import smoothed_margin
from robustly.training.method import outer_loss
from robustly.training.noise import noisy_copies

PHI = NormalDist()


class Fixed(nn.Module):
    """Logits of the noisy copies of one image, in the order of the copies, whatever the noise."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.repeat(len(x) // len(self.logits), 1)


def step_at(model: nn.Module, y: list[int], loss: MacerLoss | MarginCsLoss, **rest: object) -> Step:
    x = torch.zeros(len(y), 6, dtype=torch.float64)
    return make_step(x, torch.tensor(y), model, own=loss.own_quantities, **rest)


def logs(*rows: tuple[float, ...]) -> Tensor:
    return double(*rows).log()


def gap(a: float, b: float) -> float:
    return PHI.inv_cdf(a) - PHI.inv_cdf(b)


def test_the_value_of_macer_by_hand() -> None:
    """Two copies with probabilities (.9, .1, 0) and (.5, .2, .3): mean (.7, .15, .15)."""
    loss = MacerLoss(sigma=0.5, copies=2, weight=3.0, margin=4.0, sharpness=1.0)
    model = Fixed(logs((0.9, 0.1, 1e-30), (0.5, 0.2, 0.3)))
    terms = loss(step_at(model, [0, 1, 2], loss))
    wanted = [-math.log(p) for p in (0.7, 0.15, 0.15)]
    assert terms["noisy"].tolist() == pytest.approx(wanted, abs=1e-12)
    assert terms["margin"].tolist() == pytest.approx([3 * 0.25 * (4 - gap(0.7, 0.15)), 0, 0], abs=1e-9)
    far = MacerLoss(sigma=0.5, copies=2, weight=3.0, margin=1.0, sharpness=1.0)
    assert not far(step_at(model, [0], far))["margin"].any(), "its margin is larger than the one wanted"


def test_sharpness_multiplies_the_logits_of_the_margin_alone() -> None:
    loss = MacerLoss(sigma=1.0, copies=1, weight=2.0, margin=8.0, sharpness=2.0)
    terms = loss(step_at(Fixed(logs((0.6, 0.4))), [0], loss))
    assert float(terms["noisy"]) == pytest.approx(-math.log(0.6))
    p = 0.36 / (0.36 + 0.16)
    assert float(terms["margin"]) == pytest.approx(8 - gap(p, 1 - p))


@pytest.mark.parametrize(("y", "value"), [(0, 16 - gap(0.2, 0.5)), (1, 4 - gap(0.5, 0.3)), (2, 0.0)])
def test_seed_wise_costs_enlarge_wrong_margins_too(y: int, value: float) -> None:
    """Class 0 is sensitive and wrong, class 1 is right, class 2 is wrong and costs nothing."""
    loss = MarginCsLoss("classes:0", sigma=0.5, copies=1, weight=3.0, sharpness=1.0)
    terms = loss(step_at(Fixed(logs((0.2, 0.5, 0.3))), [y], loss))
    assert float(terms["margin"]) == pytest.approx(0.75 * value, abs=1e-9)


def test_pair_wise_costs_compare_with_the_costly_classes_alone() -> None:
    model = Fixed(logs((0.2, 0.5, 0.3)))
    for costs, rival in (("0>2", 0.3), ("0>1", 0.5), ("0>1,0>2:7", 0.5)):
        loss = MarginCsLoss(costs, sigma=2.0, copies=1, weight=1.0, sharpness=1.0)
        value = float(loss(step_at(model, [0], loss))["margin"])
        assert value == pytest.approx(16 - gap(0.2, rival)), costs
    small = MarginCsLoss("0>1", sigma=2.0, copies=1, weight=1.0, sharpness=1.0, costly_margin=0.5)
    assert not small(step_at(model, [0], small))["margin"].any(), "|xi| is above the margin"


def test_the_size_of_a_cost_does_not_count() -> None:
    model = mlp(norm=False)
    values = [
        loss(step_at(model, [0, 1, 2, 3], loss))["margin"]
        for loss in (MarginCsLoss("0>1:1,2>3:1", copies=3), MarginCsLoss("0>1:9,2>3:0.1", copies=3))
    ]
    assert torch.equal(*values)


def test_without_a_costly_class_in_the_batch_it_is_macer() -> None:
    model = mlp(norm=False)
    predicted = int(model(torch.zeros(1, 6, dtype=torch.float64)).argmax())
    other, y = (predicted + 1) % 4, [predicted, (predicted + 2) % 4, predicted]
    costly = MarginCsLoss(f"classes:{other}", sigma=0.3, copies=4, weight=12.0, margin=8.0)
    plain = MacerLoss(sigma=0.3, copies=4, weight=12.0, margin=8.0)
    first, second = (loss(step_at(model, y, loss)) for loss in (costly, plain))
    assert first.keys() == second.keys() == {"noisy", "margin"}
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["margin"].count_nonzero() == 2
    y = [other, other]
    assert costly(step_at(model, y, costly))["margin"].all()
    assert not plain(step_at(model, y, plain))["margin"].any()


@pytest.mark.parametrize(
    "loss",
    [
        MacerLoss(sigma=0.5, copies=3, weight=3.0, sharpness=2.0),
        MarginCsLoss("classes:1", sigma=0.5, copies=3, sharpness=2.0),
        MarginCsLoss("0>2,1>3,3>0", sigma=0.5, copies=3, sharpness=2.0),
    ],
)
def test_gradients_agree_with_finite_differences(loss: MacerLoss | MarginCsLoss) -> None:
    model, y = mlp(norm=False), [0, 1, 2, 3]
    assert loss(step_at(model, y, loss))["margin"].any()
    weight = next(p for p in model.parameters() if p.ndim == 2)

    def value() -> Tensor:
        return torch.stack([term.sum() for term in loss(step_at(model, y, loss)).values()]).sum()

    (found,) = torch.autograd.grad(value(), weight)
    direction = KeyedGenerator(1, torch.arange(weight.shape[0])).normal(weight.shape[1]).double()
    ends = []
    for side in (1e-6, -1e-6):
        with torch.no_grad():
            weight += side * direction
            ends.append(float(value()))
            weight -= side * direction
    assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float((found * direction).sum()), rel=1e-6)


def test_it_stays_finite_for_probabilities_of_zero_and_one() -> None:
    for y in (0, 1):
        for size in (1e3, 50.0, 0.0):
            model = Constant(size, -size, 0.0)
            loss = MarginCsLoss("all", copies=2)
            terms = loss(step_at(model, [y], loss))
            (gradient,) = torch.autograd.grad(sum(term.sum() for term in terms.values()), model.logits)  # type: ignore[arg-type, union-attr]
            assert all(term.isfinite().all() for term in terms.values())
            assert gradient.isfinite().all()


def test_margins_are_bounded_and_negative_where_a_rival_wins() -> None:
    logits = double((40.0, -40.0, 0.0))[:, None]
    rivals = torch.tensor([[False, True, True]])
    best = float(smoothed_margin(logits, Labels(torch.tensor([0])), rivals, 1.0))
    worst = float(smoothed_margin(-logits, Labels(torch.tensor([0])), rivals, 1.0))
    assert best == pytest.approx(-worst) == pytest.approx(-2 * PHI.inv_cdf(1e-6))


def test_noise_depends_on_the_example_and_the_moment_alone() -> None:
    x, ids = torch.rand(5, 1, 3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([7, 2, 9, 4, 1])

    def copies(rows: list[int], epoch: int = 0, number: int = 3) -> Tensor:
        batch = Batch(x[rows], torch.zeros(len(rows)).long(), ids[rows], KeyedGenerator(epoch, ids[rows]))
        step = Method().step(batch, Networks(nn.Identity()), threats=(), moment=Moment(epoch, 0, 1, 9), memory={})
        return noisy_copies(step, 0.5, number).unflatten(0, (len(rows), number))

    whole = copies([0, 1, 2, 3, 4])
    assert whole.shape == (5, 3, 1, 3, 4)
    assert torch.equal(torch.cat([copies([0, 1]), copies([2]), copies([4, 3]).flip(0)]), whole)
    assert torch.equal(copies([0, 1, 2, 3, 4], number=2), whole[:, :2])
    assert not torch.equal(copies([0, 1, 2, 3, 4], epoch=1), whole)
    assert not torch.equal(whole[:, 0], whole[:, 1])
    assert copies([]).shape == (0, 3, 1, 3, 4)


def test_noise_has_the_stated_deviation_and_leaves_the_box() -> None:
    x = torch.zeros(4, 3, 16, 16)
    noise = noisy_copies(make_step(x, torch.zeros(4).long(), nn.Identity()), 0.25, 8)
    assert float(noise.std()) == pytest.approx(0.25, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)
    assert float(noise.min()) < 0


def test_margins_begin_after_the_given_epochs() -> None:
    loss = MacerLoss(copies=2, begin=2)
    model = mlp(norm=False)
    early, late = (loss(step_at(model, [0, 1], loss, moment=Moment(epoch, 0, 1, 4))) for epoch in (1, 2))
    assert set(early) == {"noisy"}
    assert set(late) == {"noisy", "margin"}
    assert "no radius" in str(loss.check_epochs(2))
    assert loss.check_epochs(3) is None


def test_labels_with_smoothing_keep_it() -> None:
    loss = MacerLoss(copies=2, weight=0)
    model = Fixed(logs((0.9, 0.1), (0.5, 0.5)))
    step = step_at(model, [0], loss, label_source=lambda step: Labels(step.y, smoothing=0.2))
    assert float(loss(step)["noisy"]) == pytest.approx(-0.9 * math.log(0.7) - 0.1 * math.log(0.3))


@pytest.mark.slow
def test_they_keep_the_contract_of_a_part() -> None:
    check_part(MacerLoss(copies=3))
    check_part(MarginCsLoss("0>1,2>3", copies=2, begin=1))
    check_part(MacerLoss(weight=0.0))


def test_a_file_is_read_once_and_kept_with_the_run(tmp_path: Path) -> None:
    file = tmp_path / "c.csv"
    file.write_text("0,0,5,0\n1,0,0,0\n0,0,0,0\n0,0,0,0\n")
    loss = MarginCsLoss(str(file), copies=2)
    step = step_at(mlp(norm=False), [0, 1], loss)
    first = loss(step)["margin"]
    file.unlink()
    assert torch.equal(loss(step)["margin"], first)
    assert step.remember(loss)["costs"].sum() == 6


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sigma": 0.0}, "sigma must be positive"),
        ({"sigma": math.nan}, "sigma must be positive"),
        ({"copies": 0}, "copies is 0"),
        ({"weight": -1.0}, "weight must be at least 0"),
        ({"margin": 0.0}, "margin must be positive"),
        ({"sharpness": -16.0}, "sharpness must be positive"),
        ({"begin": -1.0}, "begin must be at least 0"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, float], words: str) -> None:
    for kind in (MacerLoss, MarginCsLoss):
        with pytest.raises(ValueError, match=words):
            kind(**settings)  # type: ignore[arg-type]


def test_wrong_costs_are_refused() -> None:
    with pytest.raises(CostError, match="number of a class"):
        MarginCsLoss("classes:x")
    with pytest.raises(ValueError, match="costly_margin must be positive"):
        MarginCsLoss(costly_margin=0)
    loss = MarginCsLoss("classes:5", copies=1)
    with pytest.raises(CostError, match=r"there is no class 5, the model has classes 0\.\.3"):
        loss(step_at(mlp(norm=False), [0], loss))


def test_all_copies_are_one_forward_pass() -> None:
    loss, calls = MarginCsLoss(copies=5), []
    model = mlp(norm=False)
    model.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    outer_loss(Method(loss=loss), step_at(model, [0, 1, 2], loss))
    assert calls == [15]
