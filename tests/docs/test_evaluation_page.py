"""The page on evaluation: its table of costs is the committed result, and its sentences round these numbers."""

import re
from pathlib import Path

from loading import load_module

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "benchmarks/results/costs.md").read_text(encoding="utf-8")


def numbers(row: str) -> list[float]:
    """Numbers of the row of a table, without those in intervals; a name may have a row in each of two tables."""
    return [float(one) for one in re.findall(r"[-+]?\d+\.\d+", re.sub(r"\[.*?\]", "", row))]


def rows(name: str) -> list[list[float]]:
    return [numbers(line) for line in RESULTS.splitlines() if line.startswith(f"| {name} |")]


def test_the_table_of_costs_is_that_of_the_results() -> None:
    page = load_module("docs_build/performance_tables.py").on_page_markdown(PAGE)
    assert "<!-- results" not in page
    table = [line for line in RESULTS.splitlines() if line.startswith("| ")]
    assert len(table) == 11
    for line in table:
        assert line in page, line
        assert line not in PAGE or line.startswith("| ---"), "no row is copied by hand"


def test_the_sentences_round_the_differences_of_the_results() -> None:
    words = " ".join(PAGE.partition("What is shown, and what is not.")[2].split())
    (no_costs,), (noise,) = rows("no costs")[1:], rows("noise alone")[1:]
    swapped = float(re.findall(r"mean \+([\d.]+) \[", RESULTS)[0])
    assert f"gain about {no_costs[0]:.0f} points of robust accuracy over the same margins without costs" in words
    assert abs(swapped - no_costs[0]) < 1.5
    assert "about as many over the same digits while two others have the costs" in words
    assert f"about {noise[0]:.0f} over training on the noise alone" in words
    clean = [sum(rows(name)[0][:3]) / 3 for name in ("noise alone", "costs")]
    assert f"about {-noise[1]:.0f} points more robust and {clean[0] - clean[1]:.0f} points more accurate" in words
