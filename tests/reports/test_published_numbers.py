"""The shipped published numbers against the specification's transcript of DYNAT's paper, and their recipes."""

import csv
import re
from pathlib import Path

import pytest

from robustly.cli.recipes import recipe_names
from robustly.reports.tables.published import Published, published_row, published_rows, rows_of_method

PAPER = "arXiv 2408.13102"
Key = tuple[str, str, str, str]


def plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def of_the_paper() -> list[Published]:
    return [row for row in published_rows() if row.source.startswith(PAPER)]


def key_of(row: Published) -> Key:
    network, _, guide = row.architecture.partition(" (guide ")
    return row.data, network, guide.rstrip(")"), plain(row.name)


@pytest.fixture
def transcript(shared_data: Path) -> dict[Key, dict[str, float]]:
    """Numbers of the paper's Tables 1 to 4 in per cent, by row and attack."""
    file = shared_data.parent / "specs" / "published-results.csv"
    if not file.is_file():
        pytest.skip("the folder of optional data has no specification beside it")
    numbers: dict[Key, dict[str, float]] = {}
    with file.open(encoding="utf-8") as opened:
        for row in csv.DictReader(opened):
            if PAPER in row["source"]:
                key = (plain(row["dataset"]), row["target_net"], row["guide_net"], plain(row["method"]))
                attack = row["attack"].lower().replace("-", "_")
                value = numbers.setdefault(key, {}).setdefault(attack, float(row["accuracy"]))
                assert value == float(row["accuracy"]), "a row of two tables has the same numbers in both"
    return numbers


def test_every_number_of_the_papers_tables_is_shipped(transcript: dict[Key, dict[str, float]]) -> None:
    shipped = {key_of(row): {name: round(100 * v, 2) for name, v in row.accuracy.items()} for row in of_the_paper()}
    assert len(shipped) == len(of_the_paper())
    expected = {key: {k: v for k, v in row.items() if k != "all"} for key, row in transcript.items()}
    assert shipped == expected


def test_the_column_all_is_the_mean_over_the_five_attacks(transcript: dict[Key, dict[str, float]]) -> None:
    """Clean accuracy is not in it; the last digit is rounded in some rows and cut in others."""
    rows = [row for row in transcript.values() if "all" in row]
    assert len(rows) == 11
    for row in rows:
        mean = sum(row[attack] for attack in ("pgd_10", "pgd_20", "pgd_50", "cw", "aa")) / 5
        assert abs(mean - row["all"]) < 0.01


def test_every_row_of_the_paper_is_found_by_a_shipped_recipe() -> None:
    for row in of_the_paper():
        methods = [name.partition("/")[2] for name in recipe_names() if name.startswith(f"{row.data}/")]
        assert any(row in rows_of_method(method) for method in methods), row.name


@pytest.mark.parametrize(
    ("recipe", "model", "table", "clean"),
    [
        ("cifar10/pgd_at_wrn", "wrn34_10", "table 1", 0.8517),
        ("cifar10/mart_wrn", "wrn34_10", "table 1", 0.8417),
        ("cifar100/pgd_at_wrn", "wrn34_10", "table 2", 0.6089),
        ("cifar10/gairat_resnet18", "resnet18", "table 3", 0.8227),
        ("cifar10/dynat_inner_gairat", "wrn34_10", "table 3", 0.8725),
        ("cifar10/dynat_inner_gairat_swapped", "resnet18", "table 3", 0.8232),
    ],
)
def test_a_recipe_finds_the_row_of_its_own_network(recipe: str, model: str, table: str, clean: float) -> None:
    row = published_row(recipe, ("pgd_20", "cw", "aa"), model=model, epsilon=8 / 255)
    assert row is not None
    assert table in row.source
    assert row.accuracy["clean"] == pytest.approx(clean)


def test_apgd_is_an_attack_of_the_table() -> None:
    row = published_row("cifar10/mail_at", ("apgd",), model="resnet18", epsilon=8 / 255)
    assert row is not None
    assert row.accuracy["apgd"] == pytest.approx(0.532)
