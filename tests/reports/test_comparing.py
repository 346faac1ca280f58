import csv
import io
import json
import re
import shutil
from dataclasses import replace
from statistics import fmean, stdev

import pytest
import yaml
from synthetic_run import Synthetic, write_synthetic_run

from robustly.reports import ReportError, read_run, render
from robustly.reports.figures.charts import RUN_COLOURS, run_symbol
from robustly.reports.figures.front import Point, Whiskers, pareto_front
from robustly.reports.pages.methods_page import front_of, methods_csv, methods_page
from robustly.reports.tables.columns import WORST_CASE
from robustly.reports.tables.evaluations import read_evaluated
from robustly.reports.tables.method_tables import distinguishing, method_tables
from robustly.reports.tables.published import published_row, published_rows
from robustly.statistics import Proportion


def write(folder, name, recipe=None, **options):
    """A synthetic run with a recipe of its own."""
    path = write_synthetic_run(folder, Synthetic(name=name, count=200, epochs=2, **options))
    if recipe is not None:
        change(path / "config.yaml", recipe=recipe)
    return path


def change(file, **values):
    """Put other values into a YAML or JSON file."""
    content = yaml.safe_load(file.read_text()) | values
    file.write_text(json.dumps(content))


def add_attack(summary, name):
    """Put another attack into a summary, with the numbers of PGD-10."""
    summary["suite"]["attacks"].append({**summary["suite"]["attacks"][0], "name": name, "title": name})
    summary["attacks"][name] = summary["attacks"]["pgd_10"]


def tables_of(*paths, by="method"):
    return method_tables([read_evaluated(path) for path in paths], by)


def shares(row):
    return [None if cell.value is None else cell.value.share for cell in row.cells]


@pytest.fixture
def seeds(tmp_path):
    """Three seeds of one recipe."""
    return [write(tmp_path, f"trades_{seed}", "mnist5k/trades", seed=seed, robust=0.8) for seed in range(3)]


def test_columns_are_the_union_in_order_and_cells_have_wilson_intervals(tmp_path):
    path = write(tmp_path, "one")
    other = write(tmp_path, "other", robust=0.5)
    file = other / "evaluation" / "summary.json"
    summary = json.loads(file.read_text())
    summary["suite"]["attacks"] = [entry for entry in summary["suite"]["attacks"] if entry["name"] != "pgd_50"]
    del summary["attacks"]["pgd_50"]
    add_attack(summary, "fgsm")
    file.write_text(json.dumps(summary))
    (table,) = tables_of(path, other)
    assert table.titles == (
        "Clean", "fgsm", "PGD-10", "PGD-20", "PGD-50", "CW (PGD-30, margin)", "AutoAttack", "Worst case",
    )  # fmt: skip
    first, second = table.rows
    assert (first.cells[1].value, second.cells[4].value) == (None, None)
    clean = read_run(path).evaluation.metrics.clean
    score = first.cells[0].value
    assert (score.share, score.low, score.high) == (clean.share, clean.low, clean.high)
    assert "not every run has fgsm, PGD-50" in table.notes[0]
    assert not any(row.cells[-1].best for row in table.rows)
    assert table.titles[table.robust_column] == "AutoAttack"


def test_seeds_are_one_row_with_mean_deviation_and_worst(seeds):
    (table,) = tables_of(*seeds)
    (row,) = table.rows
    assert (row.name, row.seeds, row.words) == ("mnist5k/trades", (0, 1, 2), "3 seeds: 0, 1, 2")
    worst = [read_run(path).evaluation.metrics.worst_case.robust for path in seeds]
    score = row.cells[-1].value
    assert score.share == pytest.approx(fmean(part.share for part in worst))
    assert score.deviation == pytest.approx(stdev(part.share for part in worst))
    assert score.worst == min(part.share for part in worst)
    assert (score.low, score.high) == (min(part.low for part in worst), max(part.high for part in worst))
    assert len(tables_of(*seeds, by="run")[0].rows) == 3


def test_only_the_seed_may_differ_and_the_settings_that_do_are_told(seeds, tmp_path):
    others = [write(tmp_path, f"beta_{seed}", "mnist5k/trades", seed=seed) for seed in range(2)]
    for path in others:
        change(path / "config.yaml", method={"loss": {"name": "trades", "beta": 3.0}, "labels": "data"})
        change(path / "config.yaml", evaluation={"count": 7}, runtime={"device": "cuda"})
    (table,) = tables_of(*seeds, *others)
    assert [len(row.seeds) for row in table.rows] == [3, 2]
    assert "method.loss.beta 3" in table.rows[1].name
    assert "method.loss.beta 6" in table.rows[0].name


def test_a_second_run_of_a_seed_is_no_second_seed(seeds, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(seeds[0], again)
    (table,) = tables_of(*seeds, seeds[0], again)
    assert [row.seeds for row in table.rows] == [(0, 1, 2), (0,)]


def test_other_threats_and_other_images_are_other_tables(tmp_path):
    first, second, third = (write(tmp_path, name) for name in ("first", "second", "third"))
    for path, part, values in ((second, "threat", {"limit": 0.2, "text": "linf:0.2"}), (third, "data", {})):
        file = path / "evaluation" / "summary.json"
        summary = json.loads(file.read_text())
        change(file, **{part: summary[part] | values | ({"sha256": "77" * 32} if part == "data" else {})})
    tables = tables_of(first, second, third)
    assert [len(table.rows) for table in tables] == [1, 1, 1]
    titles = distinguishing(tables)
    assert "linf:0.2" in titles[1]
    assert titles[2].endswith("(images 777777777777)")
    page = methods_page(tables)
    assert page.count('<table class="compare methods">') == 3
    assert "not comparable" in page


def test_evaluations_kept_beside_the_first_join_it(tmp_path):
    path = write(tmp_path, "one", robust=0.9)
    beside = path / "evaluation_aa"
    shutil.copytree(write(tmp_path, "weaker", robust=0.4) / "evaluation", beside)
    summary = json.loads((beside / "summary.json").read_text())
    change(beside / "summary.json", suite=summary["suite"] | {"name": "aa_standard", "mode": "worst_case"})
    (table,) = tables_of(path)
    assert "AA" in table.titles
    numbers = dict(zip(table.titles, shares(table.rows[0]), strict=True))
    assert numbers["PGD-10"] > 0.8
    assert numbers["AA"] < 0.5
    assert numbers["Worst case"] <= numbers["AA"]
    (beside / "evidence.parquet").unlink()
    assert dict(zip(table.titles, shares(tables_of(path)[0].rows[0]), strict=True))["Worst case"] == numbers["AA"]
    change(beside / "summary.json", model=summary["model"] | {"weights_sha256": "00" * 32})
    with pytest.raises(ReportError, match=r"evaluation and evaluation_aa .*different weights"):
        read_evaluated(path)


def test_the_same_attack_with_other_settings_is_another_column(tmp_path):
    first, second = write(tmp_path, "first"), write(tmp_path, "second")
    file = second / "evaluation" / "summary.json"
    summary = json.loads(file.read_text())
    summary["suite"]["attacks"][0]["settings"]["step_size"] = 0.01
    summary["suite"]["attacks"][1]["settings"]["full_precision"] = True
    file.write_text(json.dumps(summary))
    (table,) = tables_of(first, second)
    assert table.titles[1:4] == ("PGD-10 (step size 0.075)", "PGD-10 (step size 0.01)", "PGD-20")


def test_masking_keeps_a_row_from_being_best_and_from_the_front(tmp_path):
    honest = write(tmp_path, "honest", robust=0.6)
    masked = write(tmp_path, "masked", robust=0.9, clean=0.99, masking=("Square broke what gradients left.",))
    (table,) = tables_of(honest, masked)
    assert table.rows[1].suspected
    assert not any(cell.best for cell in table.rows[1].cells[1:])
    assert [row[3] for row in front_of(table).table.rows] == ["yes", "no"]
    assert "masked:</strong> upper bound; masking suspected" in methods_page([table])


def at(clean, robust, ranked=True):
    one, other = (Whiskers(share, share, share, "") for share in (clean, robust))
    return Point(0, f"{clean} {robust}", one, other, ranked)


def test_no_two_runs_look_alike():
    looks = [(RUN_COLOURS[i % 8], run_symbol(i)) for i in range(64)]
    assert len(set(looks)) == 64
    assert len({run_symbol(i) for i in range(8)}) == 8


def test_the_front_holds_what_nothing_beats():
    points = [at(0.9, 0.3), at(0.8, 0.5), at(0.8, 0.4), at(0.7, 0.5), at(0.95, 0.1), at(1.0, 1.0, ranked=False)]
    assert [point.name for point in pareto_front(points)] == ["0.8 0.5", "0.9 0.3", "0.95 0.1"]
    twins = [at(0.5, 0.5), at(0.5, 0.5)]
    assert pareto_front(twins) == twins
    assert pareto_front([]) == []


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ("cifar10/trades", "TRADES"),
        ("/home/me/recipes/cifar10/trades.yaml", "TRADES"),
        ("cifar10/pgd_at", "PGD-AT"),
        ("cifar10/awp", "AWP"),
        ("cifar10/at_awp", "AWP"),
        ("cifar10/pgd_at_awp", "AWP"),
        ("cifar10/mart_wrn", "MART"),
        ("cifar10/trades_extra", "Wang2023Better (20M images)"),
        ("cifar10/trades_ema", None),
        ("cifar10/ikl", "Cui2023Decoupled"),
        ("cifar100/sat", "SAT"),
        ("cifar10/dynat_inner_awp", "DYNAT-Inner-AWP (lambda 1)"),
        ("cifar10/dynat_awp", "DYNAT-AWP (lambda 1)"),
        ("cifar100/lbgat", "LBGAT"),
        ("cifar10/fgsm_at", None),
        ("mnist5k/trades", None),
        ("custom", None),
        ("/", None),
    ],
)
def test_recipes_find_their_published_row(recipe, name):
    row = published_row(recipe, ("pgd_20", "cw", "aa"), model="wrn34_10", epsilon=8 / 255)
    assert (row.name if row else None) == name


def test_the_published_row_of_the_same_network_and_epsilon_is_preferred():
    def named(model, epsilon, attacks=("pgd_20", "aa")):
        return published_row("cifar10/trades", attacks, model=model, epsilon=epsilon)

    assert named("resnet18", 8 / 255).architecture.startswith("ResNet-18")
    assert named("wrn34_10", 0.031).epsilon == "0.031"
    lbgat = published_row("cifar10/lbgat0", ("clean", "pgd_20"), model="wrn34_10", epsilon=0.031)
    assert "pgd_20" in lbgat.accuracy, "rather another epsilon than no attack in common"
    assert named("wrn34_10", 8 / 255).accuracy["aa"] == 0.534
    assert named("wrn34_10", 8 / 255, ("fgsm",)) is None
    by_source = published_row("trades", ("aa",), model="wrn34_10", epsilon=8 / 255, source="hf:uoft-cs/cifar100")
    assert by_source.data == "cifar100"


def test_the_published_file_is_whole():
    rows = published_rows()
    assert len(rows) > 60
    assert all(row.source and row.architecture and row.methods for row in rows)
    assert all(0 <= share <= 1 for row in rows for share in row.accuracy.values())
    dynat = published_row("cifar10/dynat", ("cw",), model="wrn34_10", epsilon=8 / 255)
    expected = {"clean": 89.16, "pgd_10": 52.88, "pgd_20": 51.78, "pgd_50": 51.49, "cw": 50.88, "aa": 49.2}
    assert {key: round(100 * share, 2) for key, share in dynat.accuracy.items()} == expected


def test_published_numbers_stand_beside_and_take_no_part(tmp_path):
    paths = [write(tmp_path, name, f"cifar10/{name}", robust=0.3, clean=0.5) for name in ("trades", "standard")]
    (table,) = tables_of(*paths)
    row = table.rows[0]
    assert row.published.accuracy["pgd_20"] > row.cells[2].value.share
    (alone,) = method_tables([replace(read_evaluated(path), config=None) for path in paths])
    assert [cell for each in alone.rows for cell in each.cells] == [c for each in table.rows for c in each.cells]
    assert front_of(table).table.rows == front_of(alone).table.rows
    page = methods_page([table])
    assert "published: TRADES" in page
    assert "different scale" in page
    assert "published" not in re.sub(r"<(script|style)\b.*?</\1>", "", methods_page([alone]), flags=re.DOTALL)


def test_the_csv_has_a_line_for_every_row(seeds, tmp_path):
    single = write(tmp_path, "other", "cifar10/trades", clean=0.6)
    lines = list(csv.DictReader(io.StringIO(methods_csv(tables_of(*seeds, single)))))
    assert [line["kind"] for line in lines] == ["seeds", "run", "published"]
    several, one, theirs = lines
    assert several["seeds"] == "0 1 2"
    assert float(several["Worst case worst"]) < float(several["Worst case"])
    clean = read_run(single).evaluation.metrics.clean
    assert one["Clean low"] == f"{100 * clean.low:.2f}"
    assert one["Clean deviation"] == ""
    assert (theirs["PGD-20"], theirs["threat"]) == ("56.10", "linf:8/255")
    assert "arXiv 2408.13102" in theirs["source"]


def test_text_from_outside_cannot_become_markup(tmp_path):
    evil = "</script><script>alert(1)</script>"
    path = write(tmp_path, "evil", evil)
    change(path / "evaluation" / "summary.json", run=evil)
    assert evil not in methods_page(tables_of(path))


def test_refusals_are_one_sentence(tmp_path):
    with pytest.raises(ReportError, match="no such folder"):
        read_evaluated(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReportError, match="not a run folder"):
        read_evaluated(tmp_path / "empty")
    trained = write(tmp_path, "trained", evaluation=False)
    with pytest.raises(ReportError, match=r"`robustly evaluate .*trained`"):
        read_evaluated(trained)
    with pytest.raises(ReportError, match="at least one run"):
        method_tables([])


def test_the_report_of_several_runs_draws_the_front_too(tmp_path):
    runs = [read_run(write(tmp_path, name, robust=robust)) for name, robust in (("a", 0.4), ("b", 0.8))]
    assert "On the front" in render(runs)


def test_one_seed_of_several_that_met_more_attacks_is_said(seeds):
    file = seeds[0] / "evaluation" / "summary.json"
    summary = json.loads(file.read_text())
    add_attack(summary, "square")
    file.write_text(json.dumps(summary))
    (table,) = tables_of(*seeds)
    assert "not every run has square" in table.notes[0]
    assert table.columns[-1] == WORST_CASE
    square = table.rows[0].cells[table.titles.index("square")].value
    assert (square.seeds, square.deviation) == (1, None)
    assert square.low == Proportion(round(200 * square.share), 200).low
