"""Every recipe's method has a page, made of what its parts and recipes say."""

from pathlib import Path
from types import ModuleType

import pytest

from loading import load_module

pytest.importorskip("mkdocs", reason="the documentation's tools are not installed")
ROOT = Path(__file__).parents[2]


def load_pages() -> ModuleType:
    return load_module("docs_build/method_pages.py")


PAGES = load_pages()


@pytest.mark.parametrize("method", PAGES.methods())
def test_a_page_says_what_a_user_asks(method: str) -> None:
    page = PAGES.page(method)
    assert page.startswith(f"# {PAGES.title(method)}\n")
    for heading in ("## The parts", "## What a step costs", "| labels |", "| inner |", "| loss |"):
        assert heading in page, heading
    venues = ("arXiv", "ICLR", "ICML", "ICCV", "CVPR", "NeurIPS", "AAAI", "RobustBench")
    assert any(venue in page for venue in venues), "a source"
    for name in PAGES.recipes_of(method):
        assert f"## `{name.name}`" in page
        assert f"robustly train {name.name}" in page, "the recipe's header says how to run it"


def test_dynat_has_its_formula_settings_cost_and_published_numbers() -> None:
    page = PAGES.page("dynat")
    assert "beta CE(z', label) + consistency KL(p || p')" in page
    assert "- `beta`: weight of the adversarial term" in page
    assert "| model | 12 | 11 |" in page
    assert "89.16" in page
    assert "| guide | `resnet18_lbgat` |" in page


def test_pages_say_which_network_has_clean_epochs_first_and_what_was_found() -> None:
    page = PAGES.page("pgd_at_from_clean")
    assert "0.2435, 0.2616], trained first for 60 clean epochs |" in page
    assert "| guide | `resnet18_lbgat` | width 1, trained first for 30 clean epochs |" in PAGES.page("dynat_guided")
    assert "| PGD-AT from 12 clean epochs | 3 | 53.2 ± 0.6 | 26.6 ± 0.4 |" in page
    assert "](pgd_at_from_clean.md)" in PAGES.page("dynat")


@pytest.mark.parametrize(("method", "number"), [("lbgat0", "52.20"), ("at_awp", "53.90"), ("mail_mse", "48.90")])
def test_published_rows_are_found_by_any_name_of_the_method(method: str, number: str) -> None:
    assert number in PAGES.page(method)


@pytest.mark.slow
def test_the_index_lists_every_method_with_its_parts() -> None:
    index = PAGES.index()
    for method in PAGES.methods():
        assert f"]({method}.md)" in index
    assert "| [DYNAT](dynat.md) | guide | pgd (kl) | dynat | none | none | 13 + 12 |" in index


def test_the_list_of_parts_has_every_name_and_its_first_sentence() -> None:
    text = PAGES.parts()
    for slot, table in PAGES.TABLES.items():
        section = text.partition(f"## {slot}\n")[2].partition("\n## ")[0]
        rows = [line for line in section.splitlines() if line.startswith("| `")]
        assert [row.split("`")[1] for row in rows] == list(table)
        assert all(len(row.split(" | ")[1]) > 15 for row in rows)
    assert "| `trades` | CE(z, y) + beta KL(p \\|\\| p')" in text
