"""A run's rows: recorded at its start, compared by resume, evaluate and audit, counted in every report."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robustly.cli import main
from robustly.data import ImageData, load_splits, row_digests
from robustly.evidence import Summary, read_summary
from robustly.experiments.rows_audit import rows_checks
from robustly.experiments.run_data import (
    DATA,
    RunData,
    SeenRows,
    check_test_rows,
    data_of_weights,
    read_run_data,
    refuse_other_training_rows,
    seen_rows,
    write_run_data,
)
from robustly.experiments.run_folder import RunError, open_run

TRAIN = [
    "--data.validation", "12", "--data.test", "18", "--model.width", "0.25", "--training.epochs", "1",
    "--training.validation_steps", "1", "--training.batch_size", "60",
]  # fmt: skip
EVALUATE = ["--evaluation.suite", "quick", "--evaluation.curve_count", "3", "--evaluation.batch_size", "18"]


def write_pictures(root: Path, count: int = 30) -> None:
    random = np.random.default_rng(0)
    for label, name in enumerate(("cat", "dog", "owl")):
        (root / name).mkdir(parents=True)
        for row in range(count):
            picture = random.integers(0, 120, (16, 16), dtype=np.uint8) + np.uint8(60 * label)
            Image.fromarray(picture).save(root / name / f"{row:03}.png")


def grow(root: Path) -> None:
    """One more file, early in the order of the names."""
    Image.fromarray(np.full((16, 16), 7, np.uint8)).save(root / "cat" / "0005.png")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images by class, and a run that is trained and evaluated on them."""
    root = tmp_path_factory.mktemp("data")
    write_pictures(root / "images")
    source = ["--data.source", str(root / "images"), "--data.expected_classes", "3"]
    assert main(["train", "mnist5k/standard", "--out", str(root / "run"), *source, *TRAIN]) == 0
    assert main(["evaluate", str(root / "run"), *EVALUATE]) == 0
    return root


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of the run with a copy of its images."""
    shutil.copytree(made / "images", tmp_path / "images")
    shutil.copytree(made / "run", tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(made), str(tmp_path)))
    summary = tmp_path / "run" / "evaluation" / "summary.json"
    summary.write_text(summary.read_text().replace(str(made), str(tmp_path)))
    return tmp_path / "run"


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(list(words)) == 2
    said = capsys.readouterr().err
    assert said.startswith("robustly: ")
    assert said.count("\n") == 1
    return said


@pytest.mark.slow
def test_a_run_records_its_rows_and_every_report_counts_those_seen(
    made: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, splits = read_run_data(run), load_splits(open_run(run).data)
    assert kept is not None
    assert kept.complete
    expected = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    assert {name: part.sha256() for name, part in kept.parts.items()} == {
        name: row_digests(part).sha256() for name, part in expected.items()
    }
    data = read_summary(run / "evaluation").data
    assert (data.trained_on, data.selected_on) == (0, 0)
    assert main(["audit", str(run), "--share", "0.5", "--confidence", "0.5"]) == 0
    said = capsys.readouterr().out
    assert "ok     the test images are those that the run recorded" in said
    assert "ok     test images that were trained on (0) or selected on (0)" in said
    assert main(["evaluate", str(run), *EVALUATE, "--overwrite", "--evaluation.count", "9"]) == 0
    assert "0 of 9 test images were trained or selected on" in capsys.readouterr().out
    assert main(["report", str(run)]) == 0
    assert "0 of 9 test images were trained or selected on" in (run / "report.html").read_text()
    assert main(["train", "--resume", str(made / "run")]) == 0, "the same data are accepted"


@pytest.mark.slow
def test_a_folder_that_grew_by_one_file_is_refused_everywhere(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made / "run"
    grow(made / "images")
    config = open_run(run)
    kept, moved = read_run_data(run), load_splits(config.data).test
    assert kept is not None
    trained_on = seen_rows(kept, row_digests(moved)).trained_on
    assert trained_on, "training images have moved into the test set"
    for words in (["evaluate", str(run), "--overwrite"], ["audit", str(run)]):
        said = refusal(capsys, *words)
        assert f"the test images are not those that {run} recorded" in said
        assert f"18 of 18 are others, {trained_on} were trained on; restore the data of" in said
    said = refusal(capsys, "train", "--resume", str(run))
    assert f"the training images are not those that {run} was started with" in said
    assert "of 60 are missing and" in said
    assert "start a new run" in said
    (made / "images" / "cat" / "0005.png").unlink()
    assert main(["audit", str(run), "--share", "0.5", "--confidence", "0.5"]) == 0, "the data are restored"


@pytest.mark.slow
def test_weights_in_a_new_folder_may_be_tested_on_other_data_and_overlaps_are_counted(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grow(run.parent / "images")
    new, weights = run.parent / "new", run / "model.safetensors"
    words = ["--model.name", "small_cnn", "--model.width", "0.25", "--data.source", str(run.parent / "images")]
    words += ["--data.validation", "12", "--data.test", "18", "--model.weights", str(weights), *EVALUATE]
    assert main(["evaluate", str(new), *words]) == 0
    kept, data = read_run_data(run), load_splits(open_run(new).data).test
    assert kept is not None
    found = seen_rows(kept, row_digests(data))
    assert found.trained_on
    assert found.selected_on
    stated = read_summary(new / "evaluation").data
    assert (stated.trained_on, stated.selected_on) == (found.trained_on, found.selected_on)
    sentence = f"{found.trained_on} of 18 test images were trained on, {found.selected_on} were selected on"
    assert f"! images seen before: {sentence}" in " ".join(capsys.readouterr().out.split())
    shutil.rmtree(run)  # the new folder has a record of its own
    checks = rows_checks(new, open_run(new), read_summary(new / "evaluation"), data)
    assert all(check.passed for check in checks)
    assert main(["report", str(new)]) == 0
    assert f"{sentence}. Accuracies may be too high" in (new / "report.html").read_text()
    assert main(["compare", str(new)]) == 0
    assert f"{sentence}. Its accuracies may be too high" in capsys.readouterr().out


def images(values: list[int]) -> ImageData:
    pixels = torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4).clone()
    count = len(values)
    return ImageData(pixels, torch.zeros(count, dtype=torch.int64), torch.arange(count), ("a",), "made")


def record(**parts: list[int]) -> RunData:
    return RunData({name: row_digests(images(values)) for name, values in parts.items()})


def test_seen_rows_are_counted_by_image() -> None:
    kept = record(train=[1, 2, 3], extra=[3, 4], earlier_train=[5], validation=[6], earlier_validation=[7])
    relabelled = replace(images([1, 9, 3, 5, 6, 7, 8]), labels=torch.ones(7, dtype=torch.int64), classes=("a", "b"))
    assert seen_rows(kept, row_digests(relabelled)) == SeenRows(trained_on=3, selected_on=2)
    assert seen_rows(kept, row_digests(images([8, 9]))) == SeenRows(0, 0)
    incomplete = replace(kept, complete=False)
    assert seen_rows(incomplete, row_digests(images([8, 1]))) == SeenRows(1, None), "a lower bound, or unknown"


def test_a_run_continues_on_its_own_rows_only(tmp_path: Path) -> None:
    write_run_data(tmp_path, record(train=[1, 2, 3], validation=[4], test=[5]))
    refuse_other_training_rows(tmp_path, "s", record(train=[1, 2, 3], validation=[4], test=[9]))
    for now, words in [
        (record(train=[1, 2, 6], validation=[4]), "training images .* 1 of 3 are missing and 1 are new"),
        (record(train=[1, 2], validation=[4]), "training images .* 1 of 3 are missing and 0 are new"),
        (record(train=[3, 2, 1], validation=[4]), "training images .* the same 3 are in another order"),
        (record(train=[1, 2, 3], validation=[4, 5]), "validation images .* 0 of 1 are missing and 1 are new"),
        (record(train=[1, 2, 3], validation=[4], extra=[8]), "extra images .* there were none"),
    ]:
        with pytest.raises(RunError, match=words):
            refuse_other_training_rows(tmp_path, "s", now)


def test_a_record_is_written_once_and_not_after_training_began(tmp_path: Path) -> None:
    write_run_data(tmp_path, record(train=[1]))
    write_run_data(tmp_path, record(train=[2]))
    kept = read_run_data(tmp_path)
    assert kept is not None
    assert kept.parts["train"].sha256() == record(train=[1]).parts["train"].sha256()
    older = tmp_path / "older"
    (older / "checkpoints").mkdir(parents=True)
    (older / "checkpoints" / "last.pt").write_bytes(b"")
    write_run_data(older, record(train=[2]))
    assert read_run_data(older) is None
    refuse_other_training_rows(older, "s", record(train=[2]))


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    write_run_data(tmp_path, record(train=[1, 2], test=[3]))
    content = (tmp_path / DATA).read_bytes()
    digest = row_digests(images([1])).images.tobytes()
    for wrong, words in [
        (content[:-3], "is damaged"),
        (content.replace(digest, bytes(16)), "the rows of train do not have the hash that it states"),
        (content.replace(b"robustly-run-data-1", b"robustly-run-data-9"), "is not a record of a run's rows"),
    ]:
        assert wrong != content
        (tmp_path / DATA).write_bytes(wrong)
        with pytest.raises(RunError, match=words):
            read_run_data(tmp_path)


def test_the_rows_of_initial_weights_are_kept(tmp_path: Path) -> None:
    first = tmp_path / "first"
    (first / "checkpoints").mkdir(parents=True)
    write_run_data(first, record(train=[1, 2], validation=[3], test=[4], extra=[5]))
    for name in ("model.safetensors", "checkpoints/best.safetensors"):
        found = data_of_weights(str(first / name))
        assert found.complete
        assert {part: len(rows) for part, rows in found.parts.items()} == {
            "earlier_train": 3,
            "earlier_validation": 1,
        }
    assert data_of_weights(None) == RunData()
    assert data_of_weights(str(tmp_path / "downloaded.pt")) == RunData(complete=False)


@pytest.mark.slow
def test_rows_are_unknown_where_the_weights_are_from_elsewhere(run: Path, tmp_path: Path) -> None:
    config, data = open_run(run), load_splits(open_run(run).data).test
    assert check_test_rows(run, config, data) == SeenRows(0, 0)
    (run / DATA).unlink()
    assert check_test_rows(run, config, data) == SeenRows(), "a run of an earlier version"
    loose = tmp_path / "loose" / "a" / "b.safetensors"
    elsewhere = replace(config, model=replace(config.model, weights=str(loose)))
    assert check_test_rows(tmp_path / "new", elsewhere, data) == SeenRows()


@pytest.mark.slow
def test_an_audit_counts_again_and_compares_with_the_record(run: Path) -> None:
    config, summary = open_run(run), read_summary(run / "evaluation")
    splits = load_splits(config.data)

    def problems(stated: Summary, data: ImageData = splits.test) -> list[str]:
        return [check.problem for check in rows_checks(run, config, stated, data)]

    assert problems(summary) == ["", ""]
    assert problems(replace(summary, data=replace(summary.data, trained_on=None))) == ["", ""]
    hidden = problems(replace(summary, data=replace(summary.data, trained_on=3)))
    assert hidden == ["", "stated 3 trained on, counted 0"]
    # evidence with other settings of the data than the run's, which a forger may write
    settings = {**(summary.data.settings or {}), "split_seed": 1}
    moved = load_splits(replace(config.data, split_seed=1)).test
    kept = read_run_data(run)
    assert kept is not None
    seen = seen_rows(kept, row_digests(moved))
    found = problems(replace(summary, data=replace(summary.data, settings=settings)), moved)
    assert "are others" in found[0]
    assert f"stated 0 trained on, counted {seen.trained_on}" in found[1]
    (run / DATA).unlink()
    assert problems(summary)[1] == "stated 0 trained on, counted unknown and 0 selected on, counted unknown"


@pytest.mark.slow
def test_older_evidence_states_nothing_and_can_be_read(run: Path) -> None:
    file = run / "evaluation" / "summary.json"
    values = json.loads(file.read_text())
    for key in ("trained_on", "selected_on"):
        del values["data"][key]
    file.write_text(json.dumps(values))
    data = read_summary(run / "evaluation").data
    assert (data.trained_on, data.selected_on, data.seen) == (None, None, False)
    assert data.seen_words.startswith("unknown")
