"""`robustly compare` on small runs of real digits."""

import csv
from pathlib import Path

import pytest
import yaml
from cli_tools import refusal

from robustly.cli import main

pytestmark = pytest.mark.slow

SMALL = [
    "--data.train_limit", "300", "--data.validation", "60", "--data.test", "60", "--model.width", "0.25",
    "--training.epochs", "1", "--training.validation_steps", "2", "--evaluation.curve_count", "20",
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of standard training, one run of FGSM training with a second threat, and one without evaluation."""
    folder = tmp_path_factory.mktemp("runs")
    for name, recipe, seed in (
        ("a", "standard", 0),
        ("b", "standard", 1),
        ("c", "fgsm_at", 0),
        ("d", "fgsm_at", 1),
    ):
        assert main(["train", f"mnist5k/{recipe}", "--out", str(folder / name), "--seed", str(seed), *SMALL]) == 0
        if name != "d":
            assert main(["evaluate", str(folder / name)]) == 0
    assert main(["evaluate", str(folder / "c"), "--as", "smaller", "--threat", "linf:0.1"]) == 0
    return folder


def test_seeds_are_one_row(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    assert main(["compare", str(runs / "a"), str(runs / "b")]) == 0
    said = capsys.readouterr().out
    assert "60 test examples of mnist5k, linf:0.3" in said
    assert "2 seeds: 0, 1" in said
    for word in ("Clean", "PGD-10", "PGD-20", "PGD-50", "C&W", "Worst case", "\u00b1", "worst"):
        assert word in said
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before
    assert main(["compare", str(runs / "a"), str(runs / "b"), "--by", "run"]) == 0
    assert "\u00b1" not in capsys.readouterr().out


def test_threats_have_tables_of_their_own_and_files_are_written(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, page = tmp_path / "new" / "table.csv", tmp_path / "page.html"
    names = [str(runs / name) for name in "abc"]
    assert main(["compare", *names, "--csv", str(table), "--html", str(page)]) == 0
    said = capsys.readouterr().out
    assert "2 tables" in said
    assert "linf:0.1" in said
    lines = list(csv.DictReader(table.read_text().splitlines()))
    assert [(line["threat"], line["kind"]) for line in lines] == [
        ("linf:0.3", "seeds"),
        ("linf:0.3", "run"),
        ("linf:0.1", "run"),
    ]
    text = page.read_text()
    assert "Clean against robust accuracy" in text
    assert "http-equiv" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "page.html"]


def test_published_numbers_are_set_apart(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "evaluation").symlink_to(runs / "a" / "evaluation")
    config = yaml.safe_load((runs / "a" / "config.yaml").read_text()) | {"recipe": "cifar10/dynat"}
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["compare", str(copy)]) == 0
    said = capsys.readouterr().out
    assert "published: DYNAT" in said
    assert "51.8" in said
    assert "different scale" in said


def test_a_sweep_stands_for_its_runs(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep.yaml").write_text("recipes: []\n")
    assert "without runs" in refusal(capsys, "compare", str(tmp_path))
    for name in "ab":
        (tmp_path / name).symlink_to(runs / name)
    assert main(["compare", str(tmp_path)]) == 0
    assert "2 seeds: 0, 1" in capsys.readouterr().out


def test_refusals(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such folder" in refusal(capsys, "compare", str(tmp_path / "none"))
    assert "neither config.yaml nor" in refusal(capsys, "compare", str(tmp_path))
    assert f"`robustly evaluate {runs / 'd'}` first" in refusal(capsys, "compare", str(runs / "d"))
    run = str(runs / "a")
    assert "is a folder: name a file" in refusal(capsys, "compare", run, "--html", str(tmp_path))
    (tmp_path / "file").write_text("")
    for option in ("--csv", "--html"):
        assert str(tmp_path / "file") in refusal(capsys, "compare", run, option, str(tmp_path / "file" / "x"))
    assert "invalid choice" in refusal(capsys, "compare", run, "--by", "seed")
    assert "takes no settings" in refusal(capsys, "compare", run, "--threat", "linf:0.1")
