"""The page of a reproduction and its CSV: numbers over seeds, published lines, missing runs, names of others."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from synthetic_run import Synthetic, write_synthetic_run
from test_report_page import EVIL, words

from robustly.reports.pages.reproduction_page import (
    Reproduction,
    reproduction_csv,
    reproduction_page,
    write_reproduction_page,
)
from robustly.reports.reproduction.controls import Controls
from robustly.reports.tables.evaluations import read_evaluated
from robustly.reports.tables.paper_results import read_results, result_table
from robustly.reports.tables.paper_tables import (
    ALL,
    TITLES,
    PaperRow,
    PaperTable,
    numbers_of,
    published_in,
    with_mean,
)
from robustly.statistics import Proportion

pytestmark = pytest.mark.slow

SOURCE = "arXiv 2408.13102, table 1"
COLUMNS = ("clean", "pgd_10", "pgd_20", "pgd_50", "cw", "aa", ALL)
HITS = {"pgd_10": 35, "pgd_20": 34, "pgd_50": 33, "cw": 33}


def write_run(folder: Path, name: str, *, seed: int = 0, clean: float = 0.9, held: int = 0, **options: Any) -> Path:
    """Write a run: `HITS` plus `held` of 50 images against each attack, and AutoAttack on 20 images."""
    values = {"name": name, "count": 50, "epochs": 2, "seed": seed, "clean": clean, **options}
    run = write_synthetic_run(folder, Synthetic(**values))
    config = yaml.safe_load((run / "config.yaml").read_text()) | {"seed": seed}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    other = write_synthetic_run(folder / "aa", Synthetic(**(values | {"count": 20, "robust": 0.5})))
    shutil.move(other / "evaluation", run / "evaluation_aa")
    shutil.rmtree(folder / "aa")

    def on_all(summary: dict[str, Any]) -> None:
        summary["suite"]["attacks"].pop()
        del summary["attacks"]["autoattack"], summary["seconds"]["autoattack"]
        for attack, hits in HITS.items():
            found = Proportion(hits + held, 50)
            shares = {"robust": found.hits, "accuracy": found.share, "interval": list(found.interval)}
            summary["attacks"][attack] |= shares

    def on_few(summary: dict[str, Any]) -> None:
        summary["data"]["sha256"] = "20"
        summary["suite"] |= {"name": "aa_standard", "mode": "worst_case"}

    edit(run, on_all)
    edit(run, on_few, "evaluation_aa")
    return run


def edit(run: Path, change: Callable[[dict[str, Any]], None], name: str = "evaluation") -> None:
    file = run / name / "summary.json"
    summary = json.loads(file.read_text())
    change(summary)
    file.write_text(json.dumps(summary))


def row(name: str, *runs: Path, published: str = "", group: str = "Others") -> PaperRow:
    return PaperRow(group, name, runs, published_in(SOURCE, published) if published else {})


def of_rows(*rows: PaperRow, **others: Any) -> Reproduction:
    table = PaperTable("table1", "Table 1: CIFAR-10", "CIFAR-10, WRN-34-10", "Methods", COLUMNS, rows)
    values = {"tables": (table,), "scale": "mnist", "about": "Five digits.", "command": "robustly reproduce x"}
    return Reproduction("DYNAT", "Liu et al.", **(values | others))


def lines_of(reproduction: Reproduction) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(reproduction_csv(reproduction))))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    folder = tmp_path_factory.mktemp("three")
    clean = (0.88, 0.9, 0.92)
    return tuple(write_run(folder, f"dynat-{i}", seed=i, clean=clean[i], held=i) for i in range(3))


def test_one_seed_has_intervals_and_the_mean_of_its_attacks(three: tuple[Path, ...]) -> None:
    first = three[0]
    numbers = numbers_of(read_evaluated(first))
    assert numbers is not None
    assert (numbers["clean"].count, numbers["aa"].count) == (50, 20)
    reproduction = of_rows(row("DYNAT", first, published="DYNAT"), row("PGD-AT", published="PGD-AT"))
    ours, published, *_ = lines_of(reproduction)
    assert (ours["kind"], ours["clean"], ours["clean n"], ours["aa n"]) == ("ours", "88.00", "50", "20")
    mean = sum([0.70, 0.68, 0.66, 0.66, numbers["aa"].share]) / 5
    assert ours["all"] == f"{100 * mean:.2f}"
    lows = [numbers[key].low for key in COLUMNS[1:-1]]
    assert ours["all low"] == f"{100 * sum(lows) / 5:.2f}"
    assert (published["kind"], published["clean"], published["aa"], published["all"]) == (
        *("published", "89.16", "49.20"),
        "51.25",
    )
    page = words(reproduction_page(reproduction))
    assert "Clean PGD-10 PGD-20 PGD-50 C&W AA (n = 20) All" in page
    assert "50 test images unless the title of a column states another number" in page
    assert "88.0 % [76.2, 94.4]" in page
    assert "published, another scale 89.2 % 52.9 %" in page
    assert "no run is planned at this scale" in page
    assert "of the evidence" not in page
    assert "from the evidence files of 1 run." in page


def test_several_seeds_have_mean_deviation_and_worst(three: tuple[Path, ...]) -> None:
    ours = lines_of(of_rows(row("DYNAT", *three)))[0]
    assert (ours["clean"], ours["clean deviation"], ours["clean worst"]) == ("90.00", "2.00", "88.00")
    assert (ours["pgd_10"], ours["pgd_10 worst"], ours["seeds"]) == ("72.00", "70.00", "3")
    reproduction = of_rows(row("DYNAT", *three), spread=row("DYNAT", *three), curves={"DYNAT": three})
    page = words(reproduction_page(reproduction))
    assert "DYNAT Others 3 seeds 90.0 ± 2.0 % worst 88.0 %" in page
    assert "Clean 3 90.0 % [85.0, 95.0] 2.0 % 88.0 % 92.0 %" in page
    assert "Figure 3, held-out images" in page
    assert "the paper draws its test images" in page


def test_the_controls_decide_with_seeds_only(three: tuple[Path, ...], tmp_path: Path) -> None:
    weak = tuple(write_run(tmp_path, f"at-{i}", seed=i, clean=0.7 + 0.02 * i) for i in range(2))
    guided, at_ce = row("DYNAT (guided)", *three), row("PGD-AT", *weak)
    controls = Controls(guided, at_ce, row("AT-KL", *three))
    page = words(reproduction_page(of_rows(guided, at_ce, controls=controls)))
    assert "The trade-off of the paper replicates at this scale" in page
    assert (
        "DYNAT (guided) minus PGD-AT, clean accuracy: +19.00 points (2 standard errors over 3 and 2 seeds" in page
    )
    assert "the guide is not the cause of the trade-off" in page
    one = Controls(row("DYNAT (guided)", three[0]), row("PGD-AT", weak[0]), row("AT-KL", three[0]))
    page = words(reproduction_page(of_rows(guided, at_ce, controls=one, seeds_command="reproduce --seeds 3")))
    assert page.count("One seed: no decision.") == 4
    assert "+18.00 points (95 % interval" in page
    assert "over the same 50 images" in page
    assert "Run reproduce --seeds 3 ." in page


def test_missing_failed_and_damaged_runs_are_named(three: tuple[Path, ...], tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(three[0], damaged)
    (damaged / "evaluation/summary.json").write_text("{")
    trained = tmp_path / "trained"
    trained.mkdir()
    rows = [
        row("Absent", tmp_path / "absent"),
        row("Trained", trained, tmp_path / "second"),
        row("Damaged", damaged),
        row("Failed", tmp_path / "failed-0", tmp_path / "failed-1"),
        row("Partly", three[0], three[1], tmp_path / "third"),
    ]
    failures = dict.fromkeys(("failed-0", "failed-1"), "loss is not finite, see /home/anna/secret/log.txt")
    reproduction = of_rows(*rows, failures=failures, curves={"DYNAT": (damaged, trained)})
    found = {line["name"]: line for line in lines_of(reproduction)}
    assert found["Absent"]["missing"] == "not run yet"
    assert found["Trained"]["missing"] == "trained: not evaluated yet; second: not run yet"
    assert found["Damaged"]["missing"].startswith("cannot be read: ")
    assert found["Failed"]["missing"] == "failed: loss is not finite, see log.txt"
    assert (found["Partly"]["seeds"], found["Partly"]["missing"]) == ("2", "third: not run yet")
    assert found["Partly"]["clean"] == "89.00"
    text = reproduction_page(reproduction)
    assert "anna" not in text
    page = words(text)
    assert "Of 9 runs, 2 failed and 5 have no numbers yet or cannot be read." in page
    assert "2 of 3 seeds" in page


def test_a_failed_evaluation_is_named_beside_the_numbers_of_the_others(three: tuple[Path, ...]) -> None:
    reproduction = of_rows(row("DYNAT", three[0]), failures={three[0].name: "AutoAttack ran out of memory"})
    (line,) = lines_of(reproduction)
    assert (line["clean"], line["missing"]) == ("88.00", "failed: AutoAttack ran out of memory")
    page = words(reproduction_page(reproduction))
    assert "Of 1 run, 1 failed." in page
    assert "failed: AutoAttack ran out of memory" in page


def test_the_figure_of_a_table_has_its_columns_only(three: tuple[Path, ...]) -> None:
    rows = (row("GAIRAT", three[0], published="GAIRAT"),)
    few = PaperTable("table3", "Table 3", "", "", ("clean", "pgd_20"), rows)
    wide = of_rows(row("DYNAT", three[1]))
    page = reproduction_page(of_rows(tables=(*wide.tables, few), hybrid=rows))
    drawn = json.loads(page.split('id="figures">')[1].split("</script>")[0])
    bars, hollow = drawn["reproduction-hybrid"]["data"]
    assert (len(bars["x"]), len(hollow["x"])) == (2, 2), "neither other attacks nor a mean over them"


def test_the_front_has_one_attack_for_all_points(three: tuple[Path, ...]) -> None:
    first = PaperTable("t", "T", "", "", ("clean", "cw"), (row("DYNAT", three[0]),))
    controls = PaperTable("c", "C", "", "", ("clean", "cw", "aa"), (row("AT-KL", three[1]),))
    other = PaperTable("d", "D", "", "", ("clean", "aa"), (row("AT-CE", three[2]),))
    page = reproduction_page(of_rows(tables=(first, controls, other)))
    drawn = json.loads(page.split('id="figures">')[1].split("</script>")[0])
    heights = [point["y"][0] for point in drawn["reproduction-clean-against-robust"]["data"]]
    assert heights == pytest.approx([0.66, 0.68]), "accuracy under C&W, not under AA"


def test_numbers_of_the_last_epoch_are_not_those_of_a_row(three: tuple[Path, ...], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(three[0], run)
    shutil.rmtree(run / "evaluation_aa")
    edit(run, lambda summary: summary["model"].update(checkpoint="checkpoints/last.pt"))
    (line,) = lines_of(of_rows(row("DYNAT", run)))
    assert (line["clean"], line["seeds"]) == ("", "0")
    assert line["missing"] == "evaluated after the last epoch only: its selected weights are not"


def test_nothing_at_all_is_a_page(tmp_path: Path) -> None:
    page = words(reproduction_page(of_rows()))
    assert "No run has numbers to draw yet." in page
    assert "No run is evaluated yet." in page
    page = words(reproduction_page(of_rows(tables=())))
    assert "No run was repeated." in page
    output = write_reproduction_page(of_rows(), tmp_path / "new/page.html")
    assert output.read_text().startswith("<!doctype html>")


def test_masking_takes_a_row_out_of_the_ranking(three: tuple[Path, ...], tmp_path: Path) -> None:
    high = write_run(tmp_path, "gairat", held=14, masking=("the gradients vanish",))
    reproduction = of_rows(row("DYNAT", three[0]), row("GAIRAT", high), row("MART", three[1]))
    results = read_results(reproduction.runs, {})
    table = result_table(reproduction.tables[0], results)
    assert [[cell.best for cell in one.cells][1] for one in table.rows] == [False, False, True]
    assert [one.suspected for one in table.rows] == [False, True, False]
    page = words(reproduction_page(reproduction))
    assert "GAIRAT: upper bound; masking suspected." in page
    assert "Masking is suspected, so robust accuracies are upper bounds: GAIRAT." in page
    assert lines_of(reproduction)[1]["masking"] == "suspected"


def test_an_evaluation_of_other_weights_has_no_numbers(three: tuple[Path, ...]) -> None:
    rows = of_rows(row("DYNAT", three[0]), row("MART", three[1]))
    held = read_evaluated(three[0]).evaluations[0].evaluation.model.weights_sha256
    assert lines_of(replace(rows, weights={three[0]: held, three[1]: held}))[0]["clean"]
    exchanged = replace(rows, weights={three[0]: "0" * 64})
    line = lines_of(exchanged)[0]
    assert line["clean"] == ""
    assert line["missing"] == "its evaluation is of other weights than its model.safetensors"
    assert "of other weights than its model.safetensors" in words(reproduction_page(exchanged))


def test_other_numbers_of_images_are_not_ranked(three: tuple[Path, ...], tmp_path: Path) -> None:
    few = write_run(tmp_path, "few", held=3)

    def fewer(summary: dict[str, Any]) -> None:
        summary["attacks"]["cw"] |= {"robust": 5, "count": 5, "accuracy": 1.0, "interval": [0.5655, 1.0]}

    edit(few, fewer)
    reproduction = of_rows(row("DYNAT", three[0]), row("MART", few))
    table = result_table(reproduction.tables[0], read_results(reproduction.runs, {}))
    assert table.titles[COLUMNS.index("cw")] == "C&W (n = 5 or 50)"
    best = {key: [one.cells[i].best for one in table.rows] for i, key in enumerate(COLUMNS)}
    assert best["pgd_10"] == [False, True]
    assert best["cw"] == best[ALL] == [False, False]


def test_names_of_others_are_escaped(three: tuple[Path, ...]) -> None:
    hostile = PaperRow(EVIL, "=1+1" + EVIL, (three[0],), {"clean": 0.5})
    reproduction = of_rows(
        hostile,
        hostile,
        curves={EVIL: three},
        clean=(hostile,),
        hybrid=(hostile, hostile),
        controls=Controls(hostile, hostile, hostile),
        spread=PaperRow("", EVIL, three, {}),
        failures={three[0].name: EVIL},
        paper={"data": EVIL},
        about=EVIL,
        command=EVIL,
        seeds_command=EVIL,
    )
    page = reproduction_page(reproduction)
    assert "<img" not in page
    assert "<script>alert" not in page
    assert page.count("<script") == reproduction_page(of_rows()).count("<script")
    line = lines_of(reproduction)[0]
    assert line["name"].startswith("'=1+1")


def test_the_figures_have_published_markers(three: tuple[Path, ...]) -> None:
    dynat, mart = row("DYNAT", *three, published="DYNAT"), row("MART", three[0].parent / "none", published="MART")
    page = reproduction_page(of_rows(dynat, mart, clean=(dynat, mart), hybrid=(dynat, dynat)))
    drawn = json.loads(page.split('id="figures">')[1].split("</script>")[0])
    ours, theirs = drawn["reproduction-clean-accuracy"]["data"]
    assert (ours["y"], ours["x"]) == ([0], [0.9])
    assert (theirs["y"], theirs["x"]) == ([0, 1], [0.8916, 0.8417])
    *bars, hollow = drawn["reproduction-hybrid"]["data"]
    assert [len(one["x"]) for one in bars] == [6, 6]
    assert bars[0]["x"][1] < 1 < bars[1]["x"][1], "side by side around the place of PGD-10"
    assert hollow["x"] == [*bars[0]["x"], *bars[1]["x"]]
    (point,) = drawn["reproduction-clean-against-robust"]["data"]
    assert (point["x"], point["error_x"]["array"]) == ([0.9], [pytest.approx(0.02)])


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        *[("PGD-AT", 54.32), ("TRADES", 55.21), ("MART", 56.25), ("FAT", 49.02), ("GAIRAT", 52.95), ("AWP", 56.98)],
        *[("LBGAT", 54.34), ("DYNAT", 51.25), ("DYNAT-AWP (lambda 0)", 53.93), ("DYNAT-AWP (lambda 1)", 56.64)],
        ("DYNAT-Inner-AWP (lambda 1)", 57.37),
    ],
)
def test_the_mean_of_published_attacks_is_that_of_the_paper(name: str, printed: float) -> None:
    assert 100 * with_mean(published_in(SOURCE, name), COLUMNS)[ALL] == pytest.approx(printed, abs=0.01)


def test_table_4_has_apgd() -> None:
    published = published_in("arXiv 2408.13102, table 4", "DYNAT-MAIL-Inner")
    assert published == pytest.approx({"clean": 0.823, "pgd_100": 0.5302, "apgd": 0.528, "cw": 0.5257, "aa": 0.499})
    assert set(published) < set(TITLES)
