"""Clean epochs of the model before the run: what they train, what is copied after them, and what is refused."""

import csv
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_tools import NormNet, Stop, final, last, make_job, run, same, small_digits, small_net

from robustly.cli import main
from robustly.cli.recipes import read_recipe
from robustly.data import Augmentation, Splits
from robustly.experiments.configuration import build_config
from robustly.experiments.finetune import FinetunePlan, finetuning_settings
from robustly.experiments.overrides import apply_overrides
from robustly.models.recognition import recognised
from robustly.settings import SettingsError
from robustly.training import (
    AdversarialLoss,
    AuxiliaryNetwork,
    DynatLoss,
    GuideLabels,
    Job,
    Method,
    MethodError,
    Observer,
    OptimizerConfig,
    PGDInner,
    ScheduleConfig,
)
from robustly.training.engine import loop
from robustly.training.engine.checkpoint import load_state, save_state
from robustly.training.engine.loop import LAST
from robustly.training.losses.gkl import GklLoss
from robustly.training.losses.mean_teacher import MeanTeacherLoss
from robustly.training.parameters.averaging import EpochAverage, ExponentialAverage, WeightAverage
from robustly.training.parameters.awp import WeightPerturbation
from robustly.training.parts import Part

pytestmark = pytest.mark.slow

PGD = PGDInner(steps=1)
AT = Method(inner=PGD, loss=AdversarialLoss())
ADAMW = OptimizerConfig(name="adamw", learning_rate=0.01)


@pytest.fixture(scope="module")
def digits() -> Splits:
    return small_digits()


class StopAlone(Observer):
    """Stop after some epochs before the run, and record all of them."""

    def __init__(self, left: int = -1) -> None:
        self.left = left
        self.seen: list[tuple[str, int, int]] = []

    def pretrained(self, name: str, row: Any, epochs: int) -> None:
        self.seen.append((name, int(row["epoch"]), epochs))
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def from_clean(splits: Splits, method: Method = AT, pretrain: int = 3, **changes: Any) -> Job:
    return make_job(splits, method, pretrain=pretrain, **changes)


def trained_alone(job: Job, folder: Path) -> dict[str, torch.Tensor]:
    """Weights of the model after its epochs before the run."""
    with pytest.raises(KeyboardInterrupt):
        run(job, folder, StopAlone(job.pretrain))
    weights: dict[str, torch.Tensor] = last(folder)["networks"]["model"]
    return weights


def test_the_weights_are_those_of_a_run_of_clean_training(digits: Splits, tmp_path: Path) -> None:
    """With whole batches and without augmentation the order of the images does not matter: up to rounding."""
    settings = {
        "schedule": ScheduleConfig(name="one_cycle", peak=0.3),
        "optimizer": OptimizerConfig(name="sgd", learning_rate=0.2, momentum=0.9, weight_decay=0.01),
    }
    clean = make_job(digits, Method(), training={"epochs": 5, "batch_size": 150, "select_by": "clean"}, **settings)
    run(clean, tmp_path / "clean")
    job = from_clean(digits, pretrain=5, training={"epochs": 2, "batch_size": 150}, **settings)
    found = trained_alone(job, tmp_path / "run")
    before = small_net().state_dict()
    for name, value in last(tmp_path / "clean")["networks"]["model"].items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
        assert not torch.equal(found[name], before[name]), name


COPIES: dict[str, tuple[Part | None, tuple[Part, ...]]] = {
    "nothing": (None, ()),
    "ema": (None, (ExponentialAverage(decay=0.9, buffers="average"),)),
    "swa": (None, (WeightAverage(start=0),)),
    "epochs": (None, (EpochAverage(),)),
    "awp": (None, (WeightPerturbation(proxy="trades"),)),
    "mean_teacher": (MeanTeacherLoss(begin=0.0), ()),
    "class_prior": (GklLoss(), ()),
}


@pytest.mark.parametrize("copies", COPIES)
def test_parts_that_copy_the_model_copy_the_one_after_its_clean_epochs(
    digits: Splits, tmp_path: Path, copies: str
) -> None:
    """Bit for bit the run of a model that is given these weights: averages, statistics, a fresh optimiser."""
    loss, chain = COPIES[copies]
    method = Method(inner=PGD, loss=loss or AdversarialLoss(), parameters=chain)
    changes = {"optimizer": OptimizerConfig(name="sgd", learning_rate=0.05, momentum=0.9)}
    job = from_clean(digits, method, pretrain=2, model=NormNet(), **changes)
    weights = trained_alone(job, tmp_path / "run")
    model = NormNet()
    model.load_state_dict(weights)
    given = make_job(digits, method, model=model, **changes)
    run(given, tmp_path / "given")
    whole = tmp_path / "whole"
    run(replace(job, model=NormNet()), whole)
    assert same(final(whole), final(tmp_path / "given"))
    first, second = last(whole), last(tmp_path / "given")
    assert same(first["networks"]["model"], second["networks"]["model"])
    assert first["memory"].keys() == second["memory"].keys()
    for part, tensors in first["memory"].items():
        assert same(tensors, second["memory"][part]), part
    run(make_job(digits, method, model=NormNet(), **changes), tmp_path / "cold")
    assert not same(final(tmp_path / "cold"), final(whole)), "without clean epochs the run is another one"


GUIDED = Method(labels=GuideLabels(), inner=PGD, loss=DynatLoss(), parameters=(ExponentialAverage(decay=0.9),))


def both(splits: Splits) -> Job:
    """Three clean epochs of the model and one of the guide, then two of both."""
    return from_clean(
        splits,
        GUIDED,
        model=small_net(0.3),
        networks={"guide": AuxiliaryNetwork(small_net(0.3, seed=4), pretrain=1)},
        optimizer=ADAMW,
        augmentation=Augmentation(pad_crop=1),
    )


def without_times(file: Path) -> list[dict[str, str]]:
    with file.open() as content:
        rows = [*csv.DictReader(content)]
    return [{key: row[key] for key in row if key not in ("seconds", "images_per_second")} for row in rows]


@pytest.fixture(scope="module")
def whole(digits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, seen = tmp_path_factory.mktemp("whole"), StopAlone()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the guide classifies only")
        patch.setattr(loop, "refuse_chance", lambda accuracy, classes: None)
        run(both(digits), folder, seen)
    assert seen.seen == [("model", 1, 3), ("model", 2, 3), ("model", 3, 3), ("guide", 1, 1)]
    return folder


@pytest.mark.filterwarnings("ignore:the guide classifies only")
@pytest.mark.parametrize(
    "stop",
    [*(lambda left=left: StopAlone(left) for left in (1, 2, 3, 4)), lambda: Stop(2), lambda: Stop(7)],
    ids=["clean 1", "clean 2", "clean 3", "guide 1", "step 2", "step 7"],
)
def test_a_run_stopped_at_any_time_goes_on_bit_for_bit(
    digits: Splits, whole: Path, tmp_path: Path, stop: Callable[[], Observer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "refuse_chance", lambda accuracy, classes: None)
    with pytest.raises(KeyboardInterrupt):
        run(both(digits), tmp_path, stop())
    (tmp_path / "model_pretraining.csv").unlink()  # written after the state, so that a kill may come between
    run(both(digits), tmp_path)
    assert same(final(whole), final(tmp_path))
    for network in ("model", "guide"):
        assert same(last(whole)["networks"][network], last(tmp_path)["networks"][network])
        table = f"{network}_pretraining.csv"
        assert without_times(whole / table) == without_times(tmp_path / table)
    assert "pretraining" not in last(tmp_path)["optimizers"]


def test_a_state_cannot_name_a_table_elsewhere(digits: Splits, tmp_path: Path) -> None:
    """The names of the tables come from the file of the state."""
    folder = tmp_path / "run"
    trained_alone(from_clean(digits, pretrain=1), folder)
    state = load_state(folder / LAST, "test")
    save_state(replace(state, pretraining={"../escaped": [{"epoch": 1}], **state.pretraining}), folder / LAST)
    run(from_clean(digits, pretrain=1), folder)
    assert not [*tmp_path.glob("*.csv")]
    assert len(last(folder)["pretraining"]["model"]) == 1


def test_a_head_named_by_the_settings_has_the_highest_rate_in_clean_epochs_too(
    digits: Splits, tmp_path: Path
) -> None:
    """`layer_decay` counts from the named head; the last linear layer is another one here."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 10), nn.Linear(10, 10))
    optimizer = OptimizerConfig(name="sgd", learning_rate=0.05, layer_decay=0.5)
    job = from_clean(digits, model=model, pretrain=1)
    trained_alone(replace(job, optimizer=optimizer, training=replace(job.training, head="1")), tmp_path)
    state = last(tmp_path)["optimizers"]
    scales = [[group["rate_scale"] for group in state[name]["param_groups"]] for name in ("model", "pretraining")]
    assert scales[0] == scales[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coloured_rectangular_images_and_double_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (60, 3, 6, 9), generator=generator, dtype=torch.uint8)
    coloured = replace(small_digits().train, images=pixels, labels=torch.arange(60) % 10, ids=torch.arange(60))
    splits = Splits(*(coloured.select(torch.arange(20) + 20 * part) for part in range(3)))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(112, 10)).to(dtype)
    job = from_clean(splits, model=model, training={"epochs": 1})
    run(job, tmp_path)
    assert final(tmp_path)["3.weight"].dtype == dtype
    assert len(last(tmp_path)["pretraining"]["model"]) == 3


def config(*words: str, recipe: str = "mnist5k/pgd_at") -> Any:
    return build_config(apply_overrides(read_recipe(recipe), list(words)))


def test_the_setting_reaches_the_job_and_leaves_other_runs_alone() -> None:
    plain, longer = config(), config("--model.pretrain", "24")
    assert (plain.pretrain, longer.pretrain) == (0, 24)
    assert longer.training.epochs == 12
    assert config("--model.pretrain", "0").digest() == plain.digest() != longer.digest()
    assert longer.as_plain()["model"]["pretrain"] == 24
    assert build_config(longer.as_plain()) == longer
    assert longer.model == plain.model, "the architecture does not know of it"
    assert config("--model.pretrain", "24", "--model.name", "preact_resnet18").pretrain == 24


def test_a_guide_still_has_at_most_the_epochs_of_the_run() -> None:
    words = ("--model.pretrain", "40", "--guide.pretrain", "13")
    with pytest.raises(SettingsError, match=r"guide\.pretrain is 13 epochs, longer than the run itself"):
        config(*words, recipe="mnist5k/dynat")


@pytest.mark.parametrize(
    ("words", "recipe", "message"),
    [
        (["--model.pretrain", "-1"], "pgd_at", r"model\.pretrain must be at least 0 epochs, got -1"),
        (["--model.pretrain", "half"], "pgd_at", r"model\.pretrain: expected a whole number"),
        (["--model.pretrain", "1.5"], "pgd_at", r"model\.pretrain: expected a whole number"),
        (["--model.pretrained", "5"], "pgd_at", r"did you mean 'pretrain'"),
        (["--model.pretrain", "5"], "standard", r"itself is clean training, use training\.epochs"),
        (
            ["--model.pretrain", "5", "--training.head_epochs", "1"],
            "pgd_at",
            r"model\.pretrain trains all of the model.*use one of them",
        ),
        (
            ["--teacher.weights", "FILE", "--teacher.pretrain", "2", "--model.pretrain", "2"],
            "ard",
            r"teacher\.pretrain: a frozen network is not trained by the run",
        ),
    ],
)
def test_epochs_that_are_not_possible_are_refused(words: list[str], recipe: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        config(*words, recipe=f"mnist5k/{recipe}")


def test_a_job_refuses_them_too(digits: Splits) -> None:
    with pytest.raises(MethodError, match="at least 0"):
        from_clean(digits, pretrain=-1)
    with pytest.raises(MethodError, match="itself is clean training"):
        from_clean(digits, Method())


LITTLE = (
    *("--data.train_limit", "150", "--data.image_size", "16", "--data.validation", "20", "--data.test", "20"),
    *("--model.width", "0.25", "--training.epochs", "1", "--method.inner.steps", "1"),
    *("--training.validation_steps", "1", "--training.epsilon_ramp", "0", "--runtime.device", "cpu"),
)


def test_the_command_line_trains_on_clean_images_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    words = ["train", "mnist5k/pgd_at_from_clean", *LITTLE, "--model.pretrain", "2"]
    assert main([*words, "--dry-run"]) == 0
    line = "before the run, the model for 2 epochs with clean cross-entropy"
    assert f"{line}: as many passes as 1.0 of its epochs in the run\n" in capsys.readouterr().out
    assert main([*words, "--out", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    clean = [number for number, line in enumerate(lines) if line.startswith("model on clean images, epoch")]
    adversarial = [number for number, line in enumerate(lines) if line.startswith("epoch ")]
    assert (len(clean), len(adversarial)) == (2, 1)
    assert max(clean) < min(adversarial)
    assert (folder / "model_pretraining.csv").is_file()

    about = recognised(folder / "model.safetensors")
    assert about.weights == str(folder / "model.safetensors")
    assert (about.name, about.width, about.image_size) == ("small_cnn", 0.25, (16, 16))
    settings = finetuning_settings(FinetunePlan(folder), read_recipe("mnist5k/pgd_at")["method"])
    assert build_config(settings).pretrain == 0, "clean epochs would undo the training"
    assert main([*words, "--model.weights", str(folder), "--dry-run"]) == 0
    assert f"{line}, from its given weights: as" in capsys.readouterr().out
