"""The section on corruptions: heat table, its numbers, and a result of other weights."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_run import Synthetic, write_synthetic_run
from test_report_page import words

from robustly.evidence import EvidenceError
from robustly.evidence.corruption_result import (
    CorruptedData,
    CorruptedImages,
    CorruptedModel,
    CorruptionCell,
    CorruptionReference,
    CorruptionResult,
    CorruptionRow,
    MeanAccuracy,
    write_corruptions,
)
from robustly.reports import read_run, render
from robustly.statistics import Proportion


def row(name: str, family: str, *right: int, procedural: bool = False) -> CorruptionRow:
    cells = tuple(CorruptionCell(k + 1, Proportion(number, 40), "0" * 64) for k, number in enumerate(right))
    return CorruptionRow(name, family, procedural, False, cells, MeanAccuracy(0.5, (0.4, 0.6)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_synthetic_run(tmp_path / "runs", Synthetic(count=40, epochs=2))


def result(folder: Path) -> CorruptionResult:
    evaluation = read_run(folder).evaluation
    assert evaluation is not None
    return CorruptionResult(
        1,
        "2026-01-01T00:00:00+00:00",
        CorruptedModel("small_cnn", evaluation.model.weights_sha256),
        CorruptedData("mnist5k", 40, "b" * 64),
        CorruptedImages("files", "/home/somebody/data/C", "b" * 64, None, None),
        Proportion(39, 40),
        (row("fog", "weather", 40, 30, 20, 10, 0), row("frost", "weather", 8, 8, procedural=True)),
        MeanAccuracy(0.6123, (0.5, 0.7)),
        CorruptionReference("standard", "c" * 64, 0.834, None),
    )


def test_without_a_result_there_is_no_section(folder: Path) -> None:
    assert "Common corruptions" not in words(render([read_run(folder)]))


def test_the_table_has_every_severity_with_its_colour(folder: Path) -> None:
    write_corruptions(folder, result(folder))
    page = render([read_run(folder)])
    section = page[page.index('<section data-section="corruptions"') :]
    section = section[: section.index("</section>")]
    assert re.findall(r'style="--error: ([\d.]+)"', section) == [
        *("0.00000", "0.25000", "0.50000", "0.75000", "1.00000", "0.50000"),
        *("0.80000", "0.80000", "0.50000"),
    ]
    text = words(section)
    assert "fog weather 100.0 75.0 50.0 25.0 0.0 50.0 [40.0, 60.0]" in text
    assert "frost (procedural) weather 20.0 20.0 \u2013 \u2013 \u2013 50.0" in text
    assert "Mean over 15 x 5 61.2" in text
    assert "mCE against standard 83.4" in text
    assert "Relative mCE \u2013" in text
    assert 'href="#corruptions-' in page
    assert "/home/somebody" not in page


def test_a_result_of_other_weights_is_noted(folder: Path) -> None:
    other = replace(result(folder), model=CorruptedModel("small_cnn", "d" * 64))
    write_corruptions(folder, other)
    assert "Corruptions and evaluation are of different weights." in words(render([read_run(folder)]))


def test_a_damaged_result_is_named(folder: Path) -> None:
    (folder / "corruptions.json").write_text("{")
    with pytest.raises(EvidenceError, match=r"corruptions.json"):
        read_run(folder)
