"""A guide that was trained before is measured first: one of chance is refused, a weak one is warned of."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from training_tools import make_job, run, small_digits, small_net

from robustly.cli import main
from robustly.cli.progress import epoch_line
from robustly.data import ImageData, Splits
from robustly.models import ModelConfig, build_model, save_weights
from robustly.statistics import Proportion, wilson_interval
from robustly.training import AuxiliaryNetwork, DynatLoss, GuideLabels, Job, LbgatLoss, Method, Observer, PGDInner
from robustly.training.engine import guide_check
from robustly.training.engine.guide_check import (
    GuideError,
    checked_images,
    guide_warm_up,
    is_checked,
    refuse_chance,
    weak_epoch,
    weak_words,
)
from robustly.training.engine.validation import clean_accuracy

DYNAT = Method(labels=GuideLabels(), inner=PGDInner(steps=1), loss=DynatLoss())


@pytest.fixture(scope="module")
def digits() -> Splits:
    return small_digits()


class Oracle(nn.Module):
    """A network that answers correctly on a share of the training images, by their first pixel."""

    def __init__(self, data: ImageData, share: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.keys = nn.Buffer(data.floats().flatten(1) @ torch.arange(256.0))
        wrong = torch.arange(len(data)) >= share * len(data)
        self.answers = nn.Buffer(torch.where(wrong, (data.labels + 1) % 10, data.labels))

    def forward(self, x: Tensor) -> Tensor:
        place = (x.flatten(1) @ torch.arange(256.0)).unsqueeze(1).sub(self.keys).abs().argmin(1)
        return self.scale * nn.functional.one_hot(self.answers[place], 10).float()


class Checked(Observer):
    """Record the accuracy, and stop."""

    def guide_checked(self, accuracy: Proportion) -> None:
        self.accuracy = accuracy
        raise KeyboardInterrupt


def job_of(splits: Splits, guide: nn.Module, **changes: object) -> Job:
    return make_job(splits, DYNAT, networks={"guide": AuxiliaryNetwork(guide, has_weights=True)}, **changes)


def test_the_accuracy_is_that_of_the_training_images(digits: Splits, tmp_path: Path) -> None:
    watched = Checked()
    with pytest.raises(KeyboardInterrupt):
        run(job_of(digits, Oracle(digits.train, 0.75)), tmp_path, watched)
    assert watched.accuracy.count == len(digits.train)
    assert watched.accuracy.share == pytest.approx(0.75, abs=0.01)


def test_many_images_are_sampled_evenly(digits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of images that are ordered by class, every class is among the sample."""
    order = digits.train.labels.argsort()
    train = digits.train.select(order)
    job = replace(job_of(digits, Oracle(train, 0.5)), train=train)
    monkeypatch.setattr(guide_check, "IMAGES", 20)
    images = checked_images(job)
    assert len(images) == 20
    assert set(images.labels.tolist()) == set(range(10))
    assert clean_accuracy(job.networks["guide"].module, images, batch_size=7) == Proportion(10, 20)


def test_a_guide_of_chance_is_refused_before_the_first_epoch(digits: Splits, tmp_path: Path) -> None:
    job = job_of(digits, Oracle(digits.train, 0.12))
    with pytest.raises(GuideError, match=r"guide: it classifies 12\.\d % of 1\d\d training images correctly"):
        run(job, tmp_path)
    assert not (tmp_path / "metrics.csv").exists()
    assert "not clearly above chance" in (tmp_path / "status.json").read_text()


def test_the_limit_is_the_lower_end_of_the_interval() -> None:
    hits = next(n for n in range(2000) if wilson_interval(n, 2000)[0] > 0.1)
    refuse_chance(Proportion(hits, 2000), 10)
    with pytest.raises(GuideError):
        refuse_chance(Proportion(hits - 1, 2000), 10)
    assert weak_words(0.6) == ""
    assert "59.9 %" in weak_words(0.599)


def test_a_weak_guide_is_warned_of(digits: Splits, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"the guide classifies only 40\.\d % of the training images"):
        run(job_of(digits, Oracle(digits.train, 0.4), training={"epochs": 1}), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(
            job_of(digits, Oracle(digits.train, 0.4), training={"epochs": 1}), tmp_path
        )  # goes on: not at the start


def test_a_guide_from_scratch_is_not_checked(digits: Splits) -> None:
    assert not is_checked(make_job(digits, DYNAT, guide=small_net()))
    assert is_checked(make_job(digits, DYNAT, networks={"guide": AuxiliaryNetwork(small_net(), pretrain=1)}))
    assert not is_checked(make_job(digits, Method()))


def test_epochs_with_the_labels_of_the_data_have_no_warning(digits: Splits) -> None:
    late = Method(labels=GuideLabels(warm_up=1.0), inner=PGDInner(steps=1), loss=DynatLoss())
    assert guide_warm_up(make_job(digits, late, guide=small_net())) == 1.0
    lbgat = Method(inner=PGDInner(steps=1), loss=LbgatLoss())
    assert guide_warm_up(make_job(digits, lbgat, guide=small_net())) == 0.0
    assert weak_epoch({"epoch": 1, "guide_accuracy": 0.2}, 1.0) == ""
    assert "20.0 %" in weak_epoch({"epoch": 2, "guide_accuracy": 0.2}, 1.0)
    assert weak_epoch({"epoch": 2}, 0.0) == ""


LITTLE = (
    *("--data.validation", "20", "--data.test", "20", "--model.width", "0.25", "--guide.width", "0.25"),
    *("--training.epochs", "2", "--method.inner.steps", "1", "--training.validation_steps", "1"),
    *("--training.epsilon_ramp", "0", "--runtime.device", "cpu", "--method.labels.warm_up", "0"),
)
SMALL = ("--data.train_limit", "150", "--data.image_size", "16", *LITTLE)


@pytest.fixture
def file_of(tmp_path: Path) -> Callable[[int], Path]:
    def write(classes: int) -> Path:
        file = tmp_path / f"{classes}.safetensors"
        save_weights(
            build_model(ModelConfig(width=0.25, image_size=(16, 16), classes=classes, dropout=0.0), seed=3), file
        )
        return file

    return write


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_weights_of_other_data_are_refused_before_files_exist(
    file_of: Callable[[int], Path], dry: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights of chance, as those of other data are."""
    words = ["train", "mnist5k/dynat", *SMALL, "--guide.weights", str(file_of(10)), "--out", str(tmp_path / "run")]
    assert main([*words, *dry]) == 2
    error = capsys.readouterr().err
    assert "not clearly above chance (10.0 % for 10 classes)" in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_guide_of_another_number_of_classes_is_refused(
    file_of: Callable[[int], Path], dry: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.random.default_rng(0).integers(0, 255, (60, 16, 16), dtype=np.uint8)
    np.savez(tmp_path / "five.npz", images=images, labels=np.arange(60) % 5)
    words = ["train", "mnist5k/dynat", *LITTLE, "--data.source", str(tmp_path / "five.npz"), *dry]
    words += ["--data.expected_classes", "5", "--guide.weights", str(file_of(10)), "--out", str(tmp_path / "run")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "guide: " in error
    assert "(the file is of 10 classes, the model of 5)" in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_progress_lines_show_the_guide_and_warn_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "mnist5k/dynat", *SMALL, "--optimizer.learning_rate", "1e-6", "--training.epochs", "3"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("epoch ")]
    assert all("  guide  " in line for line in lines)
    assert out.count("! the guide classifies only") == 1
    assert out.count("! in the last epoch, the guide classifies only") == 1
    row = {"epoch": 1, "train_loss": 1.0, "images_per_second": 9.0}
    row |= {"validation_clean_accuracy": 0.5, "validation_robust_accuracy": 0.25}
    assert "guide" not in epoch_line(row, is_best=False)
    assert "guide  71.2 %" in epoch_line(row | {"guide_accuracy": 0.712}, is_best=False)
