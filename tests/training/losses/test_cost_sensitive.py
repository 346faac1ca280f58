"""Cost-sensitive loss: its value by hand, its limits, its gradient, its refusals."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training_tools import Given, double, make_step

from robustly.cost_matrix import CostError
from robustly.testing import check_part
from robustly.training import Step
from robustly.training.losses.cost_sensitive import CostSensitiveLoss
from robustly.training.losses.smoothed_margin import MarginCsLoss
from robustly.training.parts import Part

Z_ADV = (0.0, 1.0, 3.0)


def step_at(z: torch.Tensor, y: int) -> Step:
    return make_step(torch.zeros_like(z), torch.tensor([y]), nn.Identity(), inner=Given(z))


@pytest.mark.slow
def test_it_keeps_the_contract_of_a_part() -> None:
    check_part(CostSensitiveLoss("classes:1", 2.0))
    check_part(CostSensitiveLoss(weight=0.0))


def test_its_value_by_hand() -> None:
    terms = CostSensitiveLoss("0>2:5,1>0", 0.5)(step_at(double(Z_ADV), 0))
    assert float(terms["adversarial"]) == pytest.approx(math.log(1 + math.e + math.exp(3)))
    assert float(terms["cost"]) == pytest.approx(0.5 * math.log(1 + 5 * math.exp(3)))
    terms = CostSensitiveLoss("0>2:5,1>0", 2.0)(step_at(double(Z_ADV), 1))
    assert float(terms["cost"]) == pytest.approx(2 * math.log(1 + math.exp(-1)))


def test_equal_costs_give_the_cross_entropy_again_and_a_class_without_costs_nothing() -> None:
    terms = CostSensitiveLoss("all", 1.0)(step_at(double(Z_ADV), 1))
    assert float(terms["cost"]) == pytest.approx(float(terms["adversarial"]))
    terms = CostSensitiveLoss("0>2", 7.0)(step_at(double(Z_ADV), 1))
    assert float(terms["cost"]) == 0
    assert set(CostSensitiveLoss("0>2", 0.0)(step_at(double(Z_ADV), 1))) == {"adversarial"}


def test_it_stays_finite_for_large_logits_and_has_no_gradient_where_nothing_costs() -> None:
    for y, logits in ((0, (500.0, -500.0, 0.0)), (0, (-500.0, 0.0, 500.0)), (1, Z_ADV)):
        z = double(logits).requires_grad_(True)
        value = CostSensitiveLoss("0>2:5,0>1", 1.0)(step_at(z, y))["cost"]
        (found,) = torch.autograd.grad(value.sum(), z)
        assert value.isfinite().all()
        assert found.isfinite().all()
        if y == 1:
            assert not found.any()


def test_its_gradient_is_the_weighted_softmax() -> None:
    z = double(Z_ADV).requires_grad_(True)
    value = CostSensitiveLoss("0>2:5,0>1:0.5", 1.0)(step_at(z, 0))["cost"]
    (found,) = torch.autograd.grad(value.sum(), z)
    odds = torch.tensor([1.0, 0.5 * math.e, 5 * math.exp(3)], dtype=torch.float64)
    share = odds / odds.sum()
    share[0] -= 1
    assert torch.allclose(found[0], share)


def test_a_file_is_read_once_and_kept_with_the_run(tmp_path: Path) -> None:
    file = tmp_path / "c.csv"
    file.write_text("0,0,5\n1,0,0\n0,0,0\n")
    loss, step = CostSensitiveLoss(str(file), 0.5), step_at(double(Z_ADV), 0)
    first = float(loss(step)["cost"])
    file.unlink()
    assert float(loss(step)["cost"]) == first == pytest.approx(0.5 * math.log(1 + 5 * math.exp(3)))
    assert F.relu(step.remember(loss)["costs"]).sum() == 6


@pytest.mark.parametrize(
    ("costs", "weight", "words"),
    [("classes:x", 1.0, "number of a class"), ("nowhere.npy", 1.0, "nowhere.npy"), ("all", -1.0, "at least 0")],
)
def test_wrong_settings_are_refused(costs: str, weight: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CostSensitiveLoss(costs, weight)


@pytest.mark.parametrize("loss", [CostSensitiveLoss, MarginCsLoss])
def test_other_classes_than_those_of_the_data_are_refused_before_a_run(loss: type[Part], tmp_path: Path) -> None:
    file = tmp_path / "costs.csv"
    file.write_text("0,1,1\n1,0,1\n1,1,0\n")
    for costs, classes, words in (
        ("classes:5", 5, "there is no class 5, the model has classes 0..4"),
        (str(file), 4, "the matrix is of 3 classes, the model has 4 classes"),
    ):
        assert words in (loss(costs).check_classes(classes) or "")  # type: ignore[call-arg]
    assert loss("classes:5").check_classes(6) is None  # type: ignore[call-arg]
    assert loss(str(file)).check_classes(3) is None  # type: ignore[call-arg]


def test_other_classes_than_the_models_are_refused_in_the_first_step() -> None:
    with pytest.raises(CostError, match=r"there is no class 5, the model has classes 0\.\.2"):
        CostSensitiveLoss("classes:5")(step_at(double(Z_ADV), 0))
