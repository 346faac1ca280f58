"""Marks of attacks and counts of images that a model has seen before, in the tables, the CSV and the pages."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from synthetic_run import Synthetic, write_synthetic_run
from test_report_page import words

from robustly.cli import main
from robustly.cli.evaluate_tables import summary_table
from robustly.evidence import EvidenceError, read_summary
from robustly.reports import read_run, render
from robustly.reports.pages.methods_page import methods_csv, methods_page
from robustly.reports.tables.evaluations import read_evaluated
from robustly.reports.tables.method_tables import method_tables


def write(folder: Path, name: str, *, data: dict[str, Any] | None = None, **values: Any) -> Path:
    path = write_synthetic_run(folder, Synthetic(name=name, count=200, epochs=2))
    file = path / "evaluation" / "summary.json"
    summary = json.loads(file.read_text())
    summary["data"] |= data or {}
    file.write_text(json.dumps(summary | values))
    return path


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    seen = {"pgd_10": "training", "pgd_20": "training", "cw": "selection"}
    return write(tmp_path, "marked", data={"trained_on": 3, "selected_on": 0}, seen_attacks=seen)


@pytest.fixture
def unknown(tmp_path: Path) -> Path:
    return write(tmp_path, "unknown")


def printed(run: Path) -> str:
    console = Console(width=160, record=True, quiet=False, file=io.StringIO())
    console.print(summary_table(read_summary(run / "evaluation")))
    return console.export_text()


def row_of(text: str, title: str) -> list[str]:
    (line,) = [one for one in text.splitlines() if one.startswith(f"│ {title} ")]
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_the_table_of_an_evaluation_has_a_column_of_marks(marked: Path, unknown: Path) -> None:
    shown = printed(marked)
    assert "seen in" in shown
    marks = {title: row_of(shown, title)[1] for title in ("clean", "PGD-10", "PGD-20", "PGD-50", "worst case")}
    assert marks == {"clean": "", "PGD-10": "training", "PGD-20": "training", "PGD-50": "", "worst case": ""}
    assert row_of(shown, "CW (PGD-30, margin)")[1] == "selection"
    assert len({len(row_of(shown, title)) for title in marks}) == 1
    assert "seen in" not in printed(unknown)


def test_statements(marked: Path, unknown: Path, tmp_path: Path) -> None:
    found = read_summary(marked / "evaluation")
    assert found.seen_words == ("PGD-10, PGD-20 (in training); CW (PGD-30, margin) (in the selection of the epoch)")
    assert found.data.seen_words == "3 of 200 test images were trained on, 0 were selected on"
    assert read_summary(unknown / "evaluation").seen_words == "unknown: the model was trained elsewhere"
    nothing = write(tmp_path, "nothing", data={"trained_on": 0, "selected_on": 0}, seen_attacks={})
    assert read_summary(nothing / "evaluation").seen_words == "none of the suite"
    assert read_summary(nothing / "evaluation").data.seen_words == (
        "0 of 200 test images were trained or selected on"
    )
    partly = write(tmp_path, "partly", data={"trained_on": 2, "selected_on": None})
    assert read_summary(partly / "evaluation").data.seen_words.startswith("at least 2 trained on: there is no full")


@pytest.mark.slow
def test_the_page_marks_attacks_and_warns_of_images(marked: Path, unknown: Path) -> None:
    page = words(render([read_run(marked)]))
    assert "PGD-10 seen in training" in page
    assert "CW (PGD-30, margin) seen in selection" in page
    assert "PGD-50 seen" not in page
    assert "3 of 200 test images were trained on, 0 were selected on. Accuracies may be too high." in page
    other = words(render([read_run(unknown)]))
    assert "unknown for this model, which was trained elsewhere" in other
    assert "Accuracies may be too high" not in other
    assert "PGD-10 seen" not in other
    together = words(render([read_run(marked), read_run(unknown)]))
    assert together.count("seen in training") == 2 * page.count("PGD-10 seen in training") + 2


def test_compare_marks_cells_and_states_counts(
    marked: Path, unknown: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (table,) = method_tables([read_evaluated(path) for path in (marked, unknown)], "run")
    first, second = table.rows
    marks = dict(zip(table.titles, first.seen, strict=True))
    assert {title: mark for title, mark in marks.items() if mark} == {
        "PGD-10": "training",
        "PGD-20": "training",
        "CW (PGD-30, margin)": "selection",
    }
    assert set(second.seen) == {None}
    assert (first.trained_on, first.selected_on, second.trained_on) == (3, 0, None)
    assert table.notes == (), "the worst cases stay comparable"
    assert table.remarks == (
        "marked: 3 of 200 test images were trained on, 0 were selected on. Its accuracies may be too high.",
    )
    rows = list(csv.DictReader(io.StringIO(methods_csv([table]))))
    assert rows[0]["seen_in_training"] == "PGD-10; PGD-20"
    assert rows[0]["seen_in_selection"] == "CW (PGD-30, margin)"
    assert (rows[0]["trained_on"], rows[0]["selected_on"]) == ("3", "0")
    assert [rows[1][key] for key in ("seen_in_training", "seen_in_selection", "trained_on")] == ["", "", ""]
    page = words(methods_page([table]))
    assert page.count("seen in training") == 2
    assert table.remarks[0] in page
    assert main(["compare", str(marked), str(unknown), "--by", "run"]) == 0
    said = capsys.readouterr().out
    assert said.count("†") == 3, "two cells and the legend"
    assert said.count("‡") == 2
    assert "†: seen in training" in said
    assert f"! {table.remarks[0]}" in said


@pytest.mark.parametrize(
    ("values", "data", "named"),
    [
        ({"seen_attacks": {"pgd_10": "test"}}, {}, "seen_attacks: pgd_10 should be one of training, selection"),
        ({}, {"trained_on": 201}, "trained_on should be between 0 and 200 examples"),
        ({}, {"selected_on": -1}, "selected_on should be between 0 and 200 examples"),
    ],
)
def test_impossible_marks_are_refused(
    values: dict[str, Any], data: dict[str, Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(EvidenceError, match=named):
        read_summary(write(tmp_path, "wrong", data=data, **values) / "evaluation")
