"""More than a thousand bad inputs through the commands: one sentence and exit code 2, never a traceback."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from bad_texts import DOCUMENTS, OPTIONS, overrides
from commands import check_plain, check_sentence, refusal, said
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from synthetic_run import Synthetic, write_synthetic_run

from robustly.cli import main
from robustly.training.engine.checkpoint import TrainingState
from robustly.training.engine.checkpoint_content import wrong_part


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_some_overrides_are_refused(here: Path) -> None:
    every = list(overrides())
    assert len(every) > 900
    for word in every[::40]:
        refusal("train", "mnist5k/dynat", "--dry-run", word)
    assert not list(here.iterdir())


@pytest.mark.slow
def test_every_override_is_refused(here: Path) -> None:
    for word in overrides():
        refusal("train", "mnist5k/dynat", "--dry-run", word)
    assert not list(here.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("use", ["recipe", "sweep", "run", "manifest", "evaluated"])
def test_every_document_is_refused(here: Path, use: str) -> None:
    (here / "run").mkdir()
    path, words = {
        "recipe": ("recipe.yaml", ["train", "recipe.yaml", "--dry-run", "--out", "new"]),
        "sweep": ("sweep.yaml", ["sweep", "sweep.yaml", "--dry-run", "--out", "new"]),
        "run": ("run/config.yaml", ["train", "--resume", "run"]),
        "manifest": ("run/sweep.yaml", ["sweep", "--resume", "run"]),
        "evaluated": ("run/config.yaml", ["evaluate", "run"]),
    }[use]
    for content in DOCUMENTS:
        (here / path).write_bytes(content)
        # the dry run of a sweep loads no data, and a sweep sets the seeds
        if use != "sweep" or (b"source" not in content and content != b"seed: 1.5"):
            refusal(*words)
    assert not (here / "new").exists()


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(st.text(max_size=30))
def test_any_text_as_a_threat_is_a_threat_or_refused(text: str) -> None:
    code, out, err = said("suites", "quick", f"{text}")
    check_plain(out)
    if code:
        assert code == 2, (text, code, err)
        check_sentence(err)


@pytest.mark.slow
def test_every_wrong_word_is_refused(here: Path) -> None:
    for words in OPTIONS:
        refusal(*words)
    assert not [path for path in here.iterdir() if path.name != ".lock"]


def damaged(content: bytes) -> Iterator[bytes]:
    """The bytes cut off, with other bytes in places, and with a part repeated."""
    size = len(content)
    yield from (content[: size * part // 8] for part in range(8))
    for place in (0, 4, size // 2, size - 30, size - 8, size - 1):
        yield content[:place] + b"\xff" * 4 + content[place + 4 :]
    yield bytes(size)
    yield content[: size // 2] + content


def data_files(folder: Path) -> dict[str, Path]:
    """A source of each kind, and the file in it that is damaged."""
    images, labels = np.arange(40 * 64, dtype=np.uint8).reshape(40, 8, 8), np.arange(40) % 2
    np.savez(folder / "a.npz", images=images, labels=labels)
    for place in range(4):
        (folder / "folders" / str(place % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[place]).save(folder / "folders" / str(place % 2) / f"{place}.png")
    picture = (folder / "folders/0/0.png").read_bytes()
    pq.write_table(pa.table({"image": [picture] * 40, "label": labels}), folder / "a.parquet")
    (folder / "idx").mkdir()
    head = (2051).to_bytes(4) + (40).to_bytes(4) + (8).to_bytes(4) * 2
    (folder / "idx/train-images-idx3-ubyte").write_bytes(head + images.tobytes())
    (folder / "idx/train-labels-idx1-ubyte").write_bytes(
        (2049).to_bytes(4) + (40).to_bytes(4) + bytes(labels.tolist())
    )
    torch.save({"a": torch.zeros(3)}, folder / "w.pt")
    return {
        "a.npz": folder / "a.npz",
        "a.parquet": folder / "a.parquet",
        "folders": folder / "folders/0/0.png",
        "idx": folder / "idx/train-images-idx3-ubyte",
        "w.pt": folder / "w.pt",
    }


@pytest.mark.slow
def test_damaged_data_files_are_refused(here: Path) -> None:
    refused = 0
    for source, file in data_files(here).items():
        whole = file.read_bytes()
        words = [
            "train",
            "mnist5k/pgd_at",
            "--dry-run",
            f"--data.source={source}",
            "--data.expected_classes=null",
            "--data.validation=1",
            "--data.test=1",
        ]
        if source == "w.pt":
            words = ["train", "mnist5k/pgd_at", "--dry-run", f"--model.weights={source}"]
        for content in damaged(whole):
            file.write_bytes(content)
            code, out, err = said(*words)
            check_plain(out)
            if code:  # a few bytes of pixels or of padding may change without harm
                assert code == 2, (source, err)
                check_sentence(err)
                refused += 1
        file.write_bytes(whole)
    assert refused > 50


WRONG: list[Any] = [None, "", "\x1b[2J", -1, 10**30, 1e300, [], {}, True, [[[[]]]], {"a": None}]


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list):
        for place, item in enumerate(value[:1]):
            yield from leaves(item, (*path, place))


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    if isinstance(value, dict):
        return {**value, path[0]: changed(value[path[0]], path[1:], new)}
    return [changed(item, path[1:], new) if place == path[0] else item for place, item in enumerate(value)]


def refused_variants(file: Path, words: list[str], every: int) -> int:
    """Write wrong values into a JSON file, one at a time; returns the number of refused ones."""
    whole, refused = json.loads(file.read_text()), 0
    cases = [(path, wrong) for path in leaves(whole) for wrong in WRONG]
    for path, wrong in cases[::every]:
        file.write_text(json.dumps(changed(whole, path, wrong)))
        code, out, err = said(*words)
        check_plain(out)
        if code:  # a text may be empty, and an optional field null
            assert code == 2, (path, wrong, err)
            check_sentence(err)
            refused += 1
    file.write_text(json.dumps(whole))
    return refused


@pytest.mark.slow
def test_wrong_values_in_json_files_are_refused(here: Path) -> None:
    run = write_synthetic_run(here, Synthetic(count=40, epochs=2, certified=0.4, analysis=True))
    assert refused_variants(run / "evaluation/summary.json", ["compare", str(run)], 13) > 50
    assert refused_variants(run / "evaluation/summary.json", ["report", str(run)], 120) > 3
    assert refused_variants(run / "analysis.json", ["report", str(run)], 59) > 3
    assert refused_variants(run / "status.json", ["report", str(run)], 8) > 2


@pytest.mark.slow
def test_damaged_evidence_is_refused(here: Path) -> None:
    run = write_synthetic_run(here, Synthetic(count=40, epochs=2, analysis=True))
    refused = 0
    for name in ("metrics.csv", "evaluation/evidence.parquet", "evaluation/adversarial.safetensors", "config.yaml"):
        whole = (run / name).read_bytes()
        for content in damaged(whole):
            (run / name).write_bytes(content)
            code, out, err = said("report", str(run))
            check_plain(out)
            if code:
                assert code == 2, (name, err)
                check_sentence(err)
                refused += 1
        (run / name).write_bytes(whole)
    assert refused > 30


TENSOR = torch.zeros(2)
SMALL = [
    "--data.train_limit=60", "--data.subset=balanced", "--data.image_size=16",
    "--data.validation=20", "--data.test=20",
    "--model.width=0.25", "--training.epochs=2", "--training.batch_size=30", "--training.validation_steps=1",
    "--method.inner.steps=1", "--training.epsilon_ramp=0", "--runtime.device=cpu",
]  # fmt: skip


@pytest.mark.slow
def test_wrong_parts_of_a_checkpoint_are_refused(here: Path) -> None:
    assert main(["train", "mnist5k/pgd_at", "--out", "run", *SMALL]) == 0
    last = here / "run/checkpoints/last.pt"
    (here / "run/model.safetensors").unlink()
    whole = last.read_bytes()
    content = torch.load(last, weights_only=True)
    wrongs: list[Any] = [None, "x", -1, 1.5, float("nan"), [], {}, {"a": 1}, {1: {}}, [1], {"a": {"b": 1}}, True]
    wrongs += [TENSOR, {"a": {"b": TENSOR}}, 10**25]
    parts = [name for name in content if name in TrainingState.__dataclass_fields__]
    assert len(parts) == 11
    assert not wrong_part({name: content[name] for name in parts})
    fitting = [(name, wrong) for name in parts for wrong in wrongs if not wrong_part({**content, name: wrong})]
    empty = [(name, {}) for name in ("networks", "frozen", "optimizers", "memory", "pretraining")]
    texts = [("config_digest", "x")]
    numbers = [("best_epoch", -1), ("seconds", 1.5)]
    tensors = [(name, {"a": {"b": TENSOR}}) for name in ("networks", "memory")]
    assert sorted(map(str, fitting)) == sorted(map(str, [*empty, *texts, *numbers, *tensors]))
    for name in content:
        torch.save({**content, name: [1]}, last)
        refusal("train", "--resume", "run")
    for content_bytes in list(damaged(whole))[::4]:
        last.write_bytes(content_bytes)
        code, _, err = said("train", "--resume", "run")
        if code:
            assert code == 2, err
            check_sentence(err)


@pytest.mark.slow
def test_names_cannot_control_the_terminal_or_a_spreadsheet(here: Path) -> None:
    classes = ("\x1b[31m", "@x", "+1", "-y", "=z", "a", "b", "c", "d", "e")
    run = write_synthetic_run(here, Synthetic(name="plain", count=40, epochs=2, classes=classes))
    run = run.rename(here / "=cmd|' C calc'!A0\x1b[2J")
    summary = json.loads((run / "evaluation/summary.json").read_text())
    summary |= {"run": "=cmd|' C calc'!A0\x1b[2J", "masking": ["\x1b[5mmasked"]}
    summary["data"]["source"] = "=2+2\x9b2J"
    summary["suite"]["attacks"][0]["title"] = "+PGD\x07"
    (run / "evaluation/summary.json").write_text(json.dumps(summary))
    other = write_synthetic_run(here, Synthetic(name="other", count=40, epochs=2))
    for words in (
        ["compare", str(run), str(other), "--csv", "t.csv", "--html", "t.html"],
        ["report", str(run), str(other)],
    ):
        code, out, err = said(*words)
        assert code == 0, err
        check_plain(out + err)
    rows = list(csv.reader((here / "t.csv").read_text().splitlines()))
    cells = [cell for row in rows for cell in row]
    assert "'=cmd|' C calc'!A0?[2J" in cells
    assert not [cell for cell in cells if re.match(r"[=+\-@\t\r]", cell) and not re.fullmatch(r"-?[\d.]+", cell)]
