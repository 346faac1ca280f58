"""`training.measure_train`: clean accuracy of the first training images in evaluation mode, after every epoch."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_tools import final, last, make_job, run, same, small_digits, small_net

from robustly.cli.recipes import read_recipe
from robustly.data import Augmentation, Splits
from robustly.experiments.configuration import build_config
from robustly.experiments.overrides import apply_overrides
from robustly.training import CleanLoss, ExponentialAverage, Job, Method, OptimizerConfig, TrainingConfig
from robustly.training.engine.validation import averaged_state

COLUMN = "train_subset_clean_accuracy"


@pytest.fixture(scope="module")
def digits() -> Splits:
    return small_digits()


def measuring(splits: Splits, method: Method, count: int) -> Job:
    return make_job(
        splits,
        method,
        small_net(dropout=0.5),
        training={"measure_train": count},
        augmentation=Augmentation(pad_crop=4),
        optimizer=OptimizerConfig(name="adamw", learning_rate=0.01),
    )


@pytest.mark.parametrize("method", [Method(loss=CleanLoss()), Method(parameters=(ExponentialAverage(decay=0.5),))])
def test_it_is_the_accuracy_of_the_weights_to_release(digits: Splits, method: Method, tmp_path: Path) -> None:
    outcome = run(measuring(digits, method, 50), tmp_path)
    net = small_net(dropout=0.5).eval()
    state = last(tmp_path)
    average = averaged_state(method, state["memory"])
    net.load_state_dict(state["networks"]["model"] if average is None else average)
    images = digits.train.select(torch.arange(50))
    with torch.no_grad():
        right = int((net(images.floats()).argmax(1) == images.labels).sum())
    assert outcome.rows[-1][COLUMN] == pytest.approx(right / 50)
    assert outcome.rows[-1][COLUMN] != outcome.rows[-1]["train_clean_accuracy"]


def test_measuring_changes_no_weight_and_is_off_by_default(digits: Splits, tmp_path: Path) -> None:
    method = Method()
    measured = run(measuring(digits, method, 10_000), tmp_path / "measured")  # more than there are: all
    plain = run(measuring(digits, method, 0), tmp_path / "plain")
    assert all(COLUMN in row for row in measured.rows)
    assert not any(COLUMN in row for row in plain.rows)
    assert same(final(tmp_path / "measured"), final(tmp_path / "plain"))
    assert same(last(tmp_path / "measured")["networks"]["model"], last(tmp_path / "plain")["networks"]["model"])


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(ValueError, match="measure_train must be at least 0, got -1"):
        TrainingConfig(measure_train=-1)


def test_runs_without_it_keep_their_hash() -> None:
    config = build_config(read_recipe("mnist5k/pgd_at"))
    off = build_config(apply_overrides(read_recipe("mnist5k/pgd_at"), ["--training.measure_train", "0"]))
    on = replace(config, training=replace(config.training, measure_train=5))
    assert config.digest() == off.digest() != on.digest()
