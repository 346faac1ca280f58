"""Numbers of corruptions: means and their intervals, mean corruption error, and the files."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from robustly.evidence import EvidenceError
from robustly.evidence.corruption_predictions import (
    CorruptionKind,
    CorruptionPredictions,
    mean_of,
    read_predictions,
    rows_of,
    write_predictions,
)
from robustly.evidence.corruption_result import (
    CorruptedData,
    CorruptedImages,
    CorruptedModel,
    CorruptionCell,
    CorruptionResult,
    CorruptionRow,
    MeanAccuracy,
    compared,
    mean_accuracy,
    read_corruptions,
    write_corruptions,
)
from robustly.statistics import Proportion, wilson_interval


def row(name: str, *wrong: int, extra: bool = False) -> CorruptionRow:
    cells = tuple(CorruptionCell(k + 1, Proportion(100 - number, 100), "0" * 64) for k, number in enumerate(wrong))
    share = float(np.mean([cell.accuracy.share for cell in cells]))
    return CorruptionRow(name, "noise", False, extra, cells, MeanAccuracy(share, (share - 0.1, share + 0.1)))


def result(*rows: CorruptionRow, clean: int = 90) -> CorruptionResult:
    return CorruptionResult(
        1,
        "2026-01-01T00:00:00+00:00",
        CorruptedModel("small_cnn", "a" * 64),
        CorruptedData("mnist5k", 100, "b" * 64),
        CorruptedImages("C-proc", None, "b" * 64, "cifar", 0),
        Proportion(clean, 100),
        rows,
    )


def test_mean_corruption_error_by_hand() -> None:
    ours = result(row("fog", 20, 20, 20, 20, 20), row("snow", 30, 40, 50, 60, 70), row("x", 90, extra=True))
    theirs = result(row("snow", 50, 50, 50, 50, 50), row("fog", 40, 40, 40, 40, 40), clean=80)
    found = compared(ours, theirs, "reference")
    assert found.mce == pytest.approx((100 / 200 + 250 / 250) / 2)
    # errors minus the clean error: 10 against 20 of fog, 40 against 30 of snow
    assert found.relative_mce == pytest.approx((10 / 20 + 40 / 30) / 2)
    assert compared(ours, ours, "itself").mce == pytest.approx(1)
    assert ours.worst is not None
    assert ours.worst.name == "x"


def test_ratios_to_nothing_are_not_defined() -> None:
    ours = result(row("fog", 20, 20, 20, 20, 20))
    perfect = result(row("fog", 0, 0, 0, 0, 0), clean=100)
    assert compared(ours, perfect, "perfect").mce is None
    flat = result(row("fog", 20, 20, 20, 20, 20), clean=80)
    assert compared(ours, flat, "flat").relative_mce is None
    assert compared(ours, flat, "flat").mce == pytest.approx(1)


def test_references_on_other_images_or_without_a_corruption_are_refused() -> None:
    ours = result(row("fog", 20, 20, 20, 20, 20))
    other = replace(ours, data=replace(ours.data, count=50))
    with pytest.raises(EvidenceError, match="the reference r was evaluated on other images"):
        compared(ours, other, "r")
    with pytest.raises(EvidenceError, match="no mean corruption error against r: fog is missing"):
        compared(ours, result(row("snow", 1, 1, 1, 1, 1)), "r")
    with pytest.raises(EvidenceError, match="every corruption at all severities is missing"):
        compared(result(row("fog", 20)), ours, "r")


def test_the_interval_of_a_mean_is_over_images() -> None:
    mean = mean_accuracy([1.0, 0.5, 0.75, 0.75])
    deviation = (0.125 / 3) ** 0.5
    assert mean.accuracy == 0.75
    assert mean.interval == pytest.approx((0.75 - 3.182446 * deviation / 2, 1.0))
    # repeating every corruption changes nothing: its number does not narrow the interval
    assert mean_accuracy([1.0] * 20).interval == wilson_interval(20, 20)
    assert mean_accuracy([0.5]).accuracy == 0.5


def predictions(names: tuple[str, ...], count: int = 10) -> CorruptionPredictions:
    labels = (np.arange(count) % 3).astype(np.int32)
    cells = {(name, severity): np.where(np.arange(count) < severity, -1, labels).astype(np.int32)
             for name in names for severity in range(1, 6)}  # fmt: skip
    return CorruptionPredictions(
        '{"weights": "x"}', labels, labels, np.arange(count), labels, cells, dict.fromkeys(cells, "0" * 64)
    )


def test_rows_and_mean_count_right_predictions() -> None:
    names = tuple(f"c{number}" for number in range(15))
    kinds = [CorruptionKind(name, "noise", False, False) for name in names]
    found = predictions(names)
    rows = rows_of(found, kinds)
    assert [cell.accuracy.hits for cell in rows[0].cells] == [9, 8, 7, 6, 5]
    assert rows[0].mean.accuracy == pytest.approx(0.7)
    mean = mean_of(found, rows, range(1, 6))
    assert mean is not None
    assert mean.accuracy == pytest.approx(0.7)
    assert mean.interval == pytest.approx(rows[0].mean.interval)  # 15 times the same
    assert mean_of(found, rows[1:], range(1, 6)) is None


def test_predictions_are_read_as_written_and_damage_is_named(tmp_path: Path) -> None:
    assert read_predictions(tmp_path) is None
    found = predictions(("fog",))
    write_predictions(tmp_path, found)
    again = read_predictions(tmp_path)
    assert again is not None
    assert again.identity == found.identity
    assert again.hashes == found.hashes
    assert all(np.array_equal(again.cells[cell], found.cells[cell]) for cell in found.cells)
    short = replace(found, cells={("fog", 1): np.zeros(3, np.int32)})
    write_predictions(tmp_path, short)
    with pytest.raises(EvidenceError, match="arrays of different lengths"):
        read_predictions(tmp_path)
    (tmp_path / "corruptions.safetensors").write_bytes(b"no")
    with pytest.raises(EvidenceError, match=r"corruptions.safetensors is damaged"):
        read_predictions(tmp_path)


def test_results_are_read_as_written_and_damage_is_named(tmp_path: Path) -> None:
    ours = result(row("fog", 20, 20, 20, 20, 20), row("snow", 1, 2, 3))
    ours = replace(ours, reference=compared(ours, ours, "itself"), mean=mean_accuracy([1.0, 0.5]))
    write_corruptions(tmp_path, ours)
    file = tmp_path / "corruptions.json"
    assert read_corruptions(file) == ours
    content = json.loads(file.read_text())
    content["rows"][0]["cells"][0]["correct"] = 101
    file.write_text(json.dumps(content))
    with pytest.raises(EvidenceError, match=r"corruptions.json: rows\[0\].*101"):
        read_corruptions(file)
    file.write_text(json.dumps({**content, "schema": 9}))
    with pytest.raises(EvidenceError, match="schema 9, but this robustly reads schema 1"):
        read_corruptions(file)
