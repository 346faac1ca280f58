"""Evaluations of one run on different numbers of images are one row."""

import csv
import json
import shutil

import pytest
from synthetic_run import Synthetic, write_synthetic_run

from robustly.cli import main
from robustly.reports.pages.methods_page import front_of, methods_csv, methods_page
from robustly.reports.tables.evaluations import read_evaluated
from robustly.reports.tables.method_tables import method_tables


def add_evaluation(run, count, *, sha256, name="aa", mode="worst_case", robust=0.5, source=None):
    """Add an evaluation on other images to a run."""
    other = write_synthetic_run(
        run.parent / f"of_{run.name}_{name}", Synthetic(count=count, robust=robust, epochs=2)
    )
    file = other / "evaluation/summary.json"
    summary = json.loads(file.read_text())
    summary["data"]["sha256"] = sha256
    summary["data"]["source"] = source or summary["data"]["source"]
    summary["suite"] |= {"mode": mode, "name": "aa_standard" if mode == "worst_case" else "dynat"}
    file.write_text(json.dumps(summary))
    shutil.move(other / "evaluation", run / f"evaluation_{name}")
    shutil.rmtree(other.parent)


@pytest.fixture
def runs(tmp_path):
    """Two runs, each with all attacks on 200 images and AutoAttack on 60."""
    found = []
    for name, robust in (("first", 0.8), ("second", 0.6)):
        run = write_synthetic_run(tmp_path, Synthetic(name=name, count=200, robust=robust, epochs=2))
        add_evaluation(run, 60, sha256="60", robust=robust - 0.2)
        found.append(run)
    return found


def tables_of(*paths):
    return method_tables([read_evaluated(path) for path in paths], "run")


def test_columns_state_their_number_of_images(runs):
    (table,) = tables_of(*runs)
    assert table.title == "200 and 60 test examples of mnist5k, linf:0.3"
    on_all = ["Clean", "PGD-10", "PGD-20", "PGD-50", "CW (PGD-30, margin)", "AutoAttack"]
    assert list(table.titles[:6]) == [f"{title} (n = 200)" for title in on_all]
    assert list(table.titles[6:]) == ["AA (n = 60)", "Worst case (n = 200)", "Worst case (n = 60)"]
    assert not table.notes
    for row in table.rows:
        assert all(cell.value is not None for cell in row.cells)
    assert table.titles[table.robust_column] == "Worst case (n = 60)"
    numbers = [row.cells[table.robust_column].value for row in table.rows]
    aa = [row.cells[6].value for row in table.rows]
    assert (
        [one.share for one in numbers]
        == [one.share for one in aa]
        != [row.cells[7].value.share for row in table.rows]
    )
    assert front_of(table) is not None


def test_attacks_seen_in_training_are_marked_in_columns_with_numbers(runs):
    file = runs[0] / "evaluation/summary.json"
    summary = json.loads(file.read_text())
    summary["seen_attacks"] = {"pgd_10": "training"}
    file.write_text(json.dumps(summary))
    (table,) = tables_of(*runs)
    marks = dict(zip(table.titles, table.rows[0].seen, strict=True))
    assert marks["PGD-10 (n = 200)"] == "training"
    assert {mark for title, mark in marks.items() if not title.startswith("PGD-10")} == {None}


def test_the_page_and_the_csv_state_the_numbers(runs, tmp_path):
    tables = tables_of(*runs)
    page = methods_page(tables)
    assert page.count("<h2>200 and 60 test examples of mnist5k") == 1
    assert "AA (n = 60)" in page
    rows = list(csv.DictReader(methods_csv(tables).splitlines()))
    assert [row["examples"] for row in rows] == ["200 60", "200 60"]
    assert rows[0]["images_sha256"].split()[1] == "60"
    assert 0 < float(rows[0]["AA (n = 60)"]) < float(rows[0]["PGD-10 (n = 200)"])


def test_the_command_prints_one_table(runs, capsys):
    assert main(["compare", *map(str, runs)]) == 0
    said = capsys.readouterr().out
    assert said.count("accuracy in %") == 1
    assert "AA (n = 60)" in said


def test_an_attack_on_fewer_images_too_is_one_column(runs):
    for run in runs:
        add_evaluation(run, 100, sha256="100", name="less", mode="every")
    (table,) = tables_of(*runs)
    assert "PGD-10 (n = 100)" not in table.titles
    assert "Worst case (n = 100)" in table.titles
    shutil.rmtree(runs[1] / "evaluation")
    (table,) = tables_of(*runs)
    assert {"PGD-10 (n = 200)", "PGD-10 (n = 100)"} <= set(table.titles)
    assert "not every run has" in table.notes[0]


def test_other_images_of_one_number_are_other_tables(runs):
    add_evaluation(runs[0], 200, sha256="other", name="other")
    assert len(tables_of(runs[0])) == 1  # both belong with the 60 images
    (table,) = tables_of(runs[0])
    assert "Worst case (n = 200, images other)" in table.titles
    add_evaluation(runs[1], 80, sha256="elsewhere", name="elsewhere", source="elsewhere")
    assert [table.data.source for table in tables_of(*runs)] == ["mnist5k", "elsewhere"]


def test_runs_on_different_numbers_stay_apart(tmp_path):
    first = write_synthetic_run(tmp_path, Synthetic(name="first", count=200, epochs=2))
    second = write_synthetic_run(tmp_path, Synthetic(name="second", count=200, epochs=2))
    shutil.rmtree(second / "evaluation")
    add_evaluation(second, 60, sha256="60")
    tables = tables_of(first, second)
    assert [[row.name for row in table.rows] for table in tables] == [["first"], ["second"]]
    assert all("n =" not in title for table in tables for title in table.titles)


@pytest.mark.slow
def test_a_report_takes_the_runs_of_a_sweep(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sweep = tmp_path / "sweep"
    for seed in range(2):
        write_synthetic_run(sweep, Synthetic(name=f"run{seed}", count=60, epochs=2, seed=seed))
    write_synthetic_run(sweep, Synthetic(name="waiting", evaluation=False, training=False))
    (sweep / "waiting/config.yaml").write_text("seed: 1")
    (sweep / "sweep.yaml").write_text("recipes: [mnist5k/trades]")
    assert main(["report", "sweep"]) == 0
    assert "left out: sweep/waiting has no results yet" in capsys.readouterr().out
    page = (sweep / "report.html").read_text()
    assert "run0 against run1" in page
    assert main(["report", "sweep", "sweep/run0", "--out", "all.html"]) == 0
    assert "run0 against run1" in (tmp_path / "all.html").read_text()
    for seed in range(2):
        shutil.rmtree(sweep / f"run{seed}")
    assert main(["report", "sweep"]) == 2
    assert "sweep without results so far" in capsys.readouterr().err
