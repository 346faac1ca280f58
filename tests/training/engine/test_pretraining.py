"""Epochs of a guide alone before the run: what they train, how they go on after a kill, and what is refused."""

import csv
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from training_tools import Stop, final, last, make_job, run, same, small_digits, small_net

from robustly.cli import main
from robustly.cli.recipes import read_recipe
from robustly.data import Augmentation, Splits, batches
from robustly.experiments.configuration import build_config
from robustly.experiments.overrides import apply_overrides
from robustly.randomness import derive_seed
from robustly.settings import SettingsError
from robustly.training import (
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
from robustly.training.engine.checkpoint import Row
from robustly.training.engine.optimisation import rate_factor
from robustly.training.engine.stopping import DivergenceError

DYNAT = Method(labels=GuideLabels(), inner=PGDInner(steps=1), loss=DynatLoss())
ADAMW = OptimizerConfig(name="adamw", learning_rate=0.01)


pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:the guide classifies only")]


@pytest.fixture(autouse=True, scope="module")
def any_guide() -> Iterator[None]:
    """Guides of a few steps, which are refused otherwise, as `test_guide_check` tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "refuse_chance", lambda accuracy, classes: None)
        yield


@pytest.fixture(scope="module")
def digits() -> Splits:
    return small_digits()


def guided(splits: Splits, pretrain: int = 2, dropout: float = 0.0, **changes: Any) -> Job:
    guide = AuxiliaryNetwork(small_net(dropout, seed=4), pretrain=pretrain)
    return make_job(splits, DYNAT, networks={"guide": guide}, training={"epochs": 3}, **changes)


class StopBefore(Observer):
    """Stop after some epochs of the guide alone, and record its steps."""

    def __init__(self, epochs: int) -> None:
        self.left = epochs
        self.rows: list[Row] = []

    def pretrained(self, name: str, row: Row, epochs: int) -> None:
        assert (name, epochs) == ("guide", 2)
        self.rows.append(row)
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def test_the_guide_is_trained_by_plain_steps_of_the_optimiser_of_the_run(digits: Splits, tmp_path: Path) -> None:
    """An independent loop over the same batches, with the schedule of three epochs on two."""
    schedule = ScheduleConfig(name="piecewise", boundaries=(1.5,), factors=(1.0, 0.1))
    optimizer = OptimizerConfig(name="sgd", learning_rate=0.05, momentum=0.9, weight_decay=0.01)
    augmentation = Augmentation(pad_crop=1)
    job = guided(digits, schedule=schedule, optimizer=optimizer, augmentation=augmentation)
    watched = StopBefore(2)
    with pytest.raises(KeyboardInterrupt):
        run(job, tmp_path, watched)

    net = small_net(seed=4)
    by_hand = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    seed, steps = derive_seed(0, "pretrain guide"), math.ceil(len(digits.train) / 32)
    for epoch in range(2):
        right = 0
        for index, batch in enumerate(batches(digits.train, 32, seed=seed, epoch=epoch, augmentation=augmentation)):
            time = (epoch + (index + 0.5) / steps) * 3 / 2
            by_hand.param_groups[0]["lr"] = 0.05 * (1.0 if time < 1.5 else 0.1)
            by_hand.zero_grad()
            logits = net(batch.x.contiguous(memory_format=torch.channels_last))
            F.cross_entropy(logits, batch.y).backward()
            by_hand.step()
            right += int((logits.argmax(1) == batch.y).sum())
        assert watched.rows[epoch]["train_clean_accuracy"] == pytest.approx(right / len(digits.train))
    assert watched.rows[0]["learning_rate"] == pytest.approx(0.05)
    assert watched.rows[1]["learning_rate"] == pytest.approx(0.005)
    found = last(tmp_path)["networks"]["guide"]
    for name, value in net.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        validated = (net.eval()(digits.validation.floats()).argmax(1) == digits.validation.labels).float().mean()
    assert watched.rows[1]["validation_clean_accuracy"] == pytest.approx(float(validated), abs=0.02)
    assert same(last(tmp_path)["networks"]["model"], small_net().state_dict()), "the target waits"


def test_the_run_begins_with_the_weights_of_the_guide_and_a_fresh_optimiser(digits: Splits, tmp_path: Path) -> None:
    """A run whose guide is given the trained weights has the same epochs."""
    first = tmp_path / "first"
    with pytest.raises(KeyboardInterrupt):
        run(guided(digits), first, StopBefore(2))
    trained = small_net(seed=4)
    trained.load_state_dict(last(first)["networks"]["guide"])
    run(guided(digits), first)
    given = make_job(digits, DYNAT, guide=trained, training={"epochs": 3})
    run(given, tmp_path / "given")
    for name in ("model", "guide"):
        assert same(last(first)["networks"][name], last(tmp_path / "given")["networks"][name])
    other = tmp_path / "cold"
    run(guided(digits, pretrain=0), other)
    assert not same(final(other), final(first)), "without it the run is another one"
    assert not (other / "guide_pretraining.csv").exists()


@pytest.fixture(scope="module")
def whole(digits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(guided(digits, dropout=0.3, optimizer=ADAMW), folder)
    return folder


@pytest.mark.parametrize(
    "stop",
    [lambda: StopBefore(1), lambda: StopBefore(2), lambda: Stop(2), lambda: Stop(7)],
    ids=["before epoch 1", "before epoch 2", "step 2", "step 7"],
)
def test_a_run_stopped_at_any_time_goes_on_bit_for_bit(
    digits: Splits, whole: Path, tmp_path: Path, stop: Callable[[], Observer]
) -> None:
    cut = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        run(guided(digits, dropout=0.3, optimizer=ADAMW), cut, stop())
    seen = StopBefore(-1)
    (cut / "guide_pretraining.csv").unlink()  # written after the state, so that a kill may come between
    run(guided(digits, dropout=0.3, optimizer=ADAMW), cut, seen)
    assert same(final(whole), final(cut))
    assert same(last(whole)["networks"]["guide"], last(cut)["networks"]["guide"])
    tables = []
    for folder in (whole, cut):
        with (folder / "guide_pretraining.csv").open() as file:
            tables.append(
                [
                    {key: value for key, value in row.items() if key not in ("seconds", "images_per_second")}
                    for row in csv.DictReader(file)
                ]
            )
    assert tables[0] == tables[1]
    assert [row["epoch"] for row in tables[0]] == ["1", "2"]
    assert "pretraining" not in last(whole)["optimizers"]


def test_time_of_the_guide_alone_counts(whole: Path) -> None:
    alone, rows = last(whole)["pretraining"]["guide"], last(whole)["rows"]
    assert 0 < alone[0]["seconds"] < alone[1]["seconds"] < rows[0]["seconds"]


def test_a_guide_that_diverges_alone_is_named(digits: Splits, tmp_path: Path) -> None:
    job = guided(digits, optimizer=OptimizerConfig(name="sgd", learning_rate=1e8))
    with pytest.raises(
        DivergenceError, match=r"the training of the guide before the run diverged in epoch 1, step "
    ):
        run(job, tmp_path)


def test_any_schedule_fits_into_fewer_epochs() -> None:
    """Its start, its middle and its end, whatever the number of epochs."""
    for name in ("constant", "cosine", "one_cycle", "one_cycle_cosine"):
        schedule = ScheduleConfig(name=name)  # type: ignore[arg-type]
        for share in (0.0, 0.5, 0.999):
            assert math.isfinite(rate_factor(schedule, share * 12, 12))


def config(*words: str) -> Any:
    return build_config(apply_overrides(read_recipe("mnist5k/dynat"), list(words)))


def test_the_setting_reaches_the_job_and_leaves_other_runs_alone() -> None:
    plain, guided = config(), config("--guide.pretrain", "5")
    assert plain.networks["guide"].pretrain == 0
    assert guided.networks["guide"].pretrain == 5
    assert config("--guide.pretrain", "0").digest() == plain.digest() != guided.digest()
    assert build_config(guided.as_plain()).networks == guided.networks
    assert "pretrain" not in (config("--guide.pretrain", "5").as_plain()["teacher"] or {})


def test_another_architecture_keeps_the_epochs_of_the_guide() -> None:
    changed = config("--guide.pretrain", "5", "--guide.name", "preact_resnet18")
    assert changed.networks["guide"].pretrain == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--guide.pretrain", "-1"], r"guide\.pretrain must be at least 0 epochs, got -1"),
        (
            ["--guide.pretrain", "13"],
            r"guide\.pretrain is 13 epochs, longer than the run itself: use at most training\.epochs \(12\)",
        ),
        (["--guide.pretrain", "half"], r"guide\.pretrain: expected a whole number"),
        (
            ["--teacher.weights", "FILE", "--teacher.pretrain", "2"],
            r"teacher\.pretrain: a frozen network is not trained by the run",
        ),
        (
            [
                "--networks.other.weights",
                "FILE",
                "--networks.other.frozen",
                "true",
                "--networks.other.pretrain",
                "2",
            ],
            r"networks\.other\.pretrain: a frozen network is not trained by the run",
        ),
    ],
)
def test_epochs_that_are_not_possible_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        config(*words)


def test_a_job_refuses_them_too(digits: Splits) -> None:
    with pytest.raises(MethodError, match="longer than the run"):
        guided(digits, pretrain=4)
    with pytest.raises(MethodError, match="at least 0"):
        AuxiliaryNetwork(small_net(), pretrain=-1)
    with pytest.raises(MethodError, match="frozen"):
        replace(AuxiliaryNetwork(small_net(), pretrain=1), frozen=True)


LITTLE = (
    *("--data.train_limit", "150", "--data.image_size", "16", "--data.validation", "20", "--data.test", "20"),
    *("--model.width", "0.25", "--guide.width", "0.25", "--training.epochs", "2", "--method.inner.steps", "1"),
    *("--training.validation_steps", "1", "--training.epsilon_ramp", "0", "--runtime.device", "cpu"),
)


def test_the_command_line_trains_the_guide_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "mnist5k/dynat", *LITTLE, "--guide.pretrain", "2"]
    assert main([*words, "--dry-run"]) == 0
    assert "before the run, the guide alone for 2 epochs with clean cross-entropy" in capsys.readouterr().out
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    lines = capsys.readouterr().out.splitlines()
    alone = [number for number, line in enumerate(lines) if line.startswith("guide alone, epoch")]
    both = [number for number, line in enumerate(lines) if line.startswith("epoch ")]
    assert len(alone) == len(both) == 2
    assert max(alone) < min(both)
    assert (tmp_path / "run" / "guide_pretraining.csv").is_file()
