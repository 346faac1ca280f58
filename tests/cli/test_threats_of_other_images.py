"""Threats that the images or the command are not made for: one sentence, and nothing is left on the disk."""

from pathlib import Path

import pytest
from cli_tools import refusal

from robustly.cli import main
from robustly.data import load_test
from robustly.evidence import read_evidence
from robustly.experiments.run_folder import open_run

SMALL = [
    "--data.image_size", "16", "--data.train_limit", "60", "--data.validation", "20", "--data.test", "4",
    "--model.width", "0.25", "--training.epochs", "1", "--training.validation_steps", "1",
]  # fmt: skip
QUICK = ["--suite", "random_draws", "--evaluation.curve", "off", "--evaluation.batch_size", "4"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other") / "run"
    assert main(["train", "mnist5k/standard", *SMALL, "--threat", "linf:0.1", "--out", str(folder)]) == 0
    return folder


def written(run: Path) -> set[str]:
    return {path.name for path in run.iterdir() if not path.name.endswith(".lock")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--threat", "shift:20"], "a shift must be at most the smaller side of the image, 16 pixels"),
        (["--threat", "patch:20"], "patch:20 is larger than images of 16 x 16 pixels"),
        (["--threat", "hue:0.5"], "grey images have no colour"),
        (["--threats", "rotation:30", "flow:16"], "flow:16 moves pixels across the whole image"),
        (["--threats", "rotation:30", "recolor:0.1"], "grey images have no colour"),
        (["--threats", "linf:0.1", "rotation:30", "--suite", "fab"], "the attack 'fab' of suite 'fab'"),
        (["--threat", "rotation:30", "--threat", "linf:0.1"], "--threat is given twice"),
        (["--threat", "corruption:2", "--suite", "exhaustive", "--costs", "all"], "attack of the costs is defined"),
        (["--threat", "30"], "threat '30' must have the form KIND:SIZE"),
        (["--threat", "rotation:"], "threat 'rotation:' must have the form KIND:SIZE"),
    ],
)
def test_a_refused_evaluation_leaves_nothing(
    run: Path, capsys: pytest.CaptureFixture[str], words: list[str], named: str
) -> None:
    before = written(run)
    quick = QUICK if "--suite" not in words else QUICK[2:]
    assert named in refusal(capsys, "evaluate", str(run), *quick, "--as", "refused", *words)
    assert written(run) == before


@pytest.mark.slow
def test_costs_of_a_class_without_images_are_refused_before_the_evaluation(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = set(load_test(open_run(run).data).labels.tolist())
    absent = min(set(range(10)) - there)
    words = ["evaluate", str(run), *QUICK, "--threat", "rotation:30", "--as", "refused"]
    assert "none of the 4 examples is of a class whose confusions cost" in refusal(
        capsys, *words, "--costs", f"classes:{absent}"
    )
    assert not (run / "evaluation_refused").exists()


@pytest.mark.slow
def test_a_space_behind_the_colon_is_allowed(run: Path) -> None:
    assert main(["evaluate", str(run), *QUICK, "--as", "spaced", "--threat", "rotation: 30"]) == 0
    assert read_evidence(run / "evaluation_spaced").summary.threat.text == "rotation:30"


@pytest.mark.parametrize("recipe", ["standard", "pgd_at", "max"])
def test_training_against_corruptions_is_refused_before_it_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: str
) -> None:
    words = ["train", f"mnist5k/{recipe}", *SMALL, "--out", str(tmp_path / "run"), "--threat", "corruption:2"]
    for more in ([], ["--dry-run"]):
        assert "move along gradients, which corruption:2 does not have" in refusal(capsys, *words, *more)
    assert not (tmp_path / "run").exists()
