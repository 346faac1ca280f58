"""Data of another number of classes than a recipe states is refused before any work, with the way out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from robustly.cli import main
from robustly.cli.recipes import read_recipe
from robustly.data import DataConfig, load_splits
from robustly.experiments.configuration import build_config
from robustly.experiments.run_folder import RunError, create_run, is_begun

CLASSES = {"mnist5k": 10, "cifar10": 10, "cifar100": 100}
FEW = ["--data.validation", "null", "--data.test", "null"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data of 5, 10 and 100 classes, ten images of each."""
    monkeypatch.chdir(tmp_path)
    numbers = np.random.default_rng(0)
    for classes in (5, 10, 100):
        images = numbers.integers(256, size=(10 * classes, 16, 16, 3), dtype=np.uint8)
        np.savez(f"{classes}.npz", image=images, label=np.arange(10 * classes) % classes)
    return tmp_path


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize("mode", [["train"], ["train", "--dry-run"], ["sweep"], ["sweep", "--dry-run"]])
@pytest.mark.parametrize(
    ("recipe", "given"),
    [("cifar100/dynat", 10), ("cifar10/dynat", 100), ("cifar10/trades", 5), ("mnist5k/dynat", 5)],
)
def test_another_number_of_classes_is_refused(
    recipe: str, given: int, mode: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = CLASSES[recipe.partition("/")[0]]
    words = ["--data.source", f"{given}.npz", "--data.expected_classes", str(expected), *FEW, "--out", "never"]
    said = refusal(capsys, mode[0], recipe, *mode[1:], *words)
    assert f"has {given} classes, but the recipe is for {expected}" in said
    assert said.endswith(f"if that is on purpose, add --data.expected_classes {given}")
    assert not Path("never").exists()


@pytest.mark.parametrize("way_out", ["5", "null"])
def test_the_way_out_that_the_sentence_names(way_out: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["mnist5k/dynat", "--data.source", "5.npz", *FEW, "--data.expected_classes", way_out]
    for command in ("train", "sweep"):
        assert main([command, *words, "--dry-run"]) == 0, capsys.readouterr().err


def test_other_data_of_the_same_number_of_classes_are_taken(here: Path) -> None:
    for command in ("train", "sweep"):
        assert main([command, "mnist5k/standard", "--data.source", "10.npz", *FEW, "--dry-run"]) == 0


def test_a_recipe_of_ones_own_states_its_number(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = {"base": "mnist5k/standard", "data": {"source": "5.npz", "expected_classes": 5, "validation": None}}
    Path("own.yaml").write_text(yaml.safe_dump(own))
    assert main(["train", "own.yaml", "--data.test", "null", "--dry-run"]) == 0
    said = refusal(capsys, "sweep", "own.yaml", "--data.source", "10.npz", *FEW, "--dry-run")
    assert "has 10 classes, but the recipe is for 5" in said


def test_the_dry_run_of_a_sweep_reads_no_source_of_the_recipe(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the CIFAR recipes is a download."""
    monkeypatch.setattr("robustly.cli.sweep.check_sources", lambda config: pytest.fail(config.source))
    assert main(["sweep", "cifar10/dynat", "cifar100/dynat", "--seeds", "0,1", "--dry-run"]) == 0


def test_a_shipped_recipe_takes_data_of_any_number_of_classes(here: Path) -> None:
    assert main(["train", "mnist5k/standard", "--data.source", "5.npz", *FEW, "--dry-run"]) == 0
    assert main(["sweep", "cifar10/standard", "--data.source", "5.npz", *FEW, "--dry-run"]) == 0


def test_extra_images_and_names_of_classes_are_counted_on_their_own(here: Path) -> None:
    """Names of a model's classes count, not those of the images; extra images have a refusal of their own."""
    Path("names.txt").write_text("\n".join(map(str, range(100))))
    config = DataConfig("10.npz", classes="names.txt", expected_classes=100)
    assert load_splits(config).train.num_classes == 100
    with pytest.raises(ValueError, match="has 100 classes, but the recipe is for 10 "):
        load_splits(replace(config, expected_classes=10))
    with pytest.raises(ValueError, match="expected_classes is 1: use at least 2"):
        DataConfig(expected_classes=1)


def test_a_run_begun_without_the_number_is_continued(here: Path) -> None:
    """It is a check: the hash of a run and its continuation do not depend on it."""
    config = build_config(read_recipe("mnist5k/standard"))
    before = replace(config, data=replace(config.data, expected_classes=None))
    assert before.digest() == config.digest()
    create_run(here / "run", before)
    assert is_begun(here / "run", config)
    other = replace(config, data=replace(config.data, flip=True))
    with pytest.raises(RunError, match=r"other settings \(data\)"):
        is_begun(here / "run", other)
