"""`training.accumulate`: a batch in parts trains what the whole batch trains."""

from pathlib import Path

import pytest
import torch
from torch import nn
from training_tools import final, make_job, run, small_digits

from robustly.cli.recipes import read_recipe
from robustly.data import Augmentation, Splits
from robustly.experiments.configuration import build_config
from robustly.experiments.overrides import apply_overrides
from robustly.training import (
    AdversarialLoss,
    CleanLoss,
    ExponentialAverage,
    Job,
    Method,
    MethodError,
    OptimizerConfig,
    PGDInner,
    TrainingConfig,
)
from robustly.training.losses.consistency import TradesLoss
from robustly.training.parameters import PARAMETER_PARTS
from robustly.training.weights import WEIGHTS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def digits() -> Splits:
    return small_digits()


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 12), nn.ReLU(), nn.Linear(12, 10))


def job(splits: Splits, method: Method, parts: int, model: nn.Module | None = None) -> Job:
    return make_job(
        splits,
        method,
        model or net(),
        training={"accumulate": parts},
        augmentation=Augmentation(pad_crop=2),
        optimizer=OptimizerConfig(learning_rate=0.05),
    )


@pytest.mark.parametrize(
    "method",
    [
        Method(loss=CleanLoss()),
        Method(inner=PGDInner(steps=2), loss=AdversarialLoss(), parameters=(ExponentialAverage(decay=0.5),)),
        Method(inner=PGDInner(objective="kl", steps=2), loss=TradesLoss()),
    ],
)
@pytest.mark.parametrize("parts", [2, 3, 7])
def test_parts_train_what_the_whole_batch_trains(
    digits: Splits, method: Method, parts: int, tmp_path: Path
) -> None:
    """Also if the parts have different sizes, and if the last batch has fewer images."""
    whole = run(job(digits, method, 1), tmp_path / "whole")
    found = run(job(digits, method, parts), tmp_path / "parts")
    first, second = final(tmp_path / "whole"), final(tmp_path / "parts")
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.allclose(value, second[name], rtol=1e-3, atol=2e-5), name
    for one, other in zip(whole.rows, found.rows, strict=True):
        assert other["train_loss"] == pytest.approx(one["train_loss"], rel=1e-3)
        assert other["train_clean_accuracy"] == pytest.approx(one["train_clean_accuracy"], abs=0.02)


def test_each_part_passes_alone(digits: Splits, tmp_path: Path) -> None:
    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()
            self.sizes: set[int] = set()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training and torch.is_grad_enabled():
                self.sizes.add(len(x))
            found: torch.Tensor = self.net(x)
            return found

    model = Watched()
    made = job(digits, Method(loss=CleanLoss()), 4, model)
    run(made, tmp_path)
    assert max(model.sizes) <= -(-made.training.batch_size // 4) or max(model.sizes) <= 8  # the trial's images


@pytest.mark.parametrize("accumulate", [0, -1, 200])
def test_a_number_of_parts_that_is_none_is_refused(accumulate: int) -> None:
    with pytest.raises(ValueError, match="accumulate must lie between 1 and batch_size"):
        TrainingConfig(batch_size=128, accumulate=accumulate)


def test_methods_of_the_whole_batch_are_refused(digits: Splits, tmp_path: Path) -> None:
    inner = PGDInner(steps=1)
    with pytest.raises(MethodError, match=r"accumulate: parameters\.awp perturbs the weights"):
        job(digits, Method(inner=inner, loss=AdversarialLoss(), parameters=(PARAMETER_PARTS["awp"](),)), 2)
    with pytest.raises(MethodError, match="accumulate: instance weights are those of a whole batch"):
        job(digits, Method(inner=inner, loss=AdversarialLoss(), weights=WEIGHTS["gairat"]()), 2)
    aligned = Method(inner=inner, loss=AdversarialLoss(), parameters=(PARAMETER_PARTS["grad_align"](),))
    with pytest.raises(MethodError, match="averages over the whole batch"):
        run(job(digits, aligned, 2), tmp_path)


def test_runs_without_it_keep_their_hash() -> None:
    recipe = read_recipe("mnist5k/pgd_at")
    digests = {
        parts: build_config(apply_overrides(recipe, ["--training.accumulate", parts])).digest() for parts in "12"
    }
    assert build_config(recipe).digest() == digests["1"] != digests["2"]
