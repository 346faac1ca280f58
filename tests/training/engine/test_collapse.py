"""A network that predicts one class is never selected over one that learns; training, evaluation, report say so.

The images are grey: 30 of class 0 at 0.48, 12 of class 0 at 0.1, 18 of class 1 at 0.52. A threshold at 0.5 has
clean accuracy 1 and, at epsilon 0.1, robust accuracy 0.2. Class 0 for all has 0.7 of both.
"""

import csv
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from training_tools import THREAT, make_job, run

from robustly.attacks import dynat_pgd
from robustly.cli.progress import PlainLines
from robustly.data import ImageData, Splits
from robustly.evaluation import evaluate
from robustly.evidence.collapse import collapse_words
from robustly.reports.reading import read_run
from robustly.training import Job, Method, OptimizerConfig, Part
from robustly.training.engine.checkpoint import load_state, save_state
from robustly.training.engine.validation import Validation, validate
from robustly.training.parts import EpochEnd


class Threshold(nn.Module):
    """Logits (0, scale (mean - 0.5) + shift)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.tensor(10.0)), nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        second = self.scale * (x.flatten(1).mean(1) - 0.5) + self.shift
        return torch.stack([torch.zeros_like(second), second], 1)


def greys(first_id: int = 0) -> ImageData:
    levels = torch.tensor([122] * 30 + [26] * 12 + [133] * 18, dtype=torch.uint8)
    labels = torch.tensor([0] * 42 + [1] * 18)
    images = levels[:, None, None, None].expand(-1, 1, 2, 2).clone()
    return ImageData(images, labels, torch.arange(60) + first_id, ("night", "day"), "greys")


@dataclass(frozen=True)
class Scripted(Part):
    """Sets the shift after each epoch: -9 predicts class 0 for all, 9 class 1, 0 learns."""

    shifts: tuple[float, ...]

    def after_epoch(self, end: EpochEnd) -> None:
        network = end.model
        assert isinstance(network, Threshold)
        with torch.no_grad():
            network.scale.fill_(10.0)
            network.shift.fill_(self.shifts[end.epoch])


def job(*shifts: float, select_by: str = "robust") -> Job:
    splits = Splits(greys(), greys(100), greys(200))
    training = {"epochs": len(shifts), "select_by": select_by, "batch_size": 60, "validation_steps": 10}
    still = OptimizerConfig(name="sgd", learning_rate=1e-9)
    method = Method(parameters=(Scripted(shifts),))
    return make_job(splits, method, Threshold(), optimizer=still, training=training)


def rows_of(folder: Path) -> list[str]:
    with (folder / "metrics.csv").open() as file:
        return [row["validation_collapsed_class"] for row in csv.DictReader(file)]


def test_validation_names_the_class() -> None:
    network = Threshold()
    settings = {"seed": 0, "batch_size": 7}
    assert validate(network, greys(), dynat_pgd(10), THREAT, **settings) == Validation(1.0, 0.2, None)  # type: ignore[arg-type]
    nn.init.constant_(network.shift, -9.0)
    assert validate(network, greys(), dynat_pgd(10), THREAT, **settings) == Validation(0.7, 0.7, 0)  # type: ignore[arg-type]
    one_class = greys().select(torch.arange(42))
    assert validate(network, one_class, dynat_pgd(10), THREAT, **settings).collapsed is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shifts", "best", "collapsed"),
    [
        ((-9, 0, -9), 2, None),  # 0.7 robust twice against 0.2
        ((0, -9, 9), 1, None),
        ((9, -9, -9), 2, 0),  # of collapsed epochs the first best one
        ((9,), 1, 1),
    ],
)
@pytest.mark.parametrize("select_by", ["robust", "clean"])
def test_a_collapsed_epoch_is_never_selected_over_one_that_learns(
    shifts: tuple[float, ...], best: int, collapsed: int | None, select_by: str, tmp_path: Path
) -> None:
    outcome = run(job(*shifts, select_by=select_by), tmp_path)
    assert (outcome.best_epoch, outcome.collapsed) == (best, collapsed)
    assert rows_of(tmp_path) == [{-9: "0", 0: "", 9: "1"}[int(shift)] for shift in shifts]
    training = read_run(tmp_path).training
    assert training is not None
    assert training.collapsed == collapsed


def test_order_of_selection() -> None:
    assert Validation(0.3, 0.1).score("robust") > Validation(0.9, 0.9, 4).score("robust")
    assert Validation(0.3, 0.1).score("clean") > Validation(0.9, 0.9, 4).score("clean")
    assert Validation(0.3, 0.2).score("robust") > Validation(0.4, 0.1).score("robust")
    assert Validation(0.3, 0.2).score("clean") < Validation(0.4, 0.1).score("clean")


def test_a_state_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    run(job(0.0), tmp_path)
    last = tmp_path / "checkpoints" / "last.pt"
    state = load_state(last, "test")
    assert state.best_score == (1.0, pytest.approx(0.2), 1.0)
    save_state(replace(state, best_score=state.best_score[1:]), last)
    longer = run(job(0.0, -9.0), tmp_path)
    assert (longer.best_epoch, longer.epochs) == (1, 2)


def test_progress_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(job(-9.0, 0.0), tmp_path, PlainLines(Console(width=200)))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[1] == "! every validation image is predicted as class night: the network has collapsed"


def test_an_evaluation_says_so() -> None:
    network = Threshold().eval()
    settings = {"batch_size": 60, "curve_count": 1}
    nn.init.constant_(network.shift, 9.0)
    evidence = evaluate(network, greys(), THREAT, "quick", **settings)  # type: ignore[arg-type]
    (words,) = [one for one in evidence.summary.warnings if "collapsed" in one]
    assert words == collapse_words(evidence.table.examples, ("night", "day"))
    assert words.startswith("Every image is predicted as the class day: the network has collapsed.")
    nn.init.constant_(network.shift, 0.0)
    learning = evaluate(network, greys(), THREAT, "quick", **settings)  # type: ignore[arg-type]
    assert not [one for one in learning.summary.warnings if "collapsed" in one]
