"""The page on speed: its tables come from committed results, and it names every option of `robustly bench`."""

import argparse
import re
from pathlib import Path
from xml.etree import ElementTree

from loading import load_module
from robustly.cli.commands import bench
from robustly.evaluation import SUITES
from robustly.performance import PARTS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/performance.md").read_text(encoding="utf-8")


def test_every_table_is_in_the_page() -> None:
    page = load_module("docs_build/performance_tables.py").on_page_markdown(PAGE)
    assert "<!--" not in page
    assert not re.search(r"^# ", page.split("\n", 1)[1], flags=re.MULTILINE)  # titles of the files are left out
    for words in ("predicted / real", "attack arithmetic", "WRN-70-16", "AutoAttack on ImageNet", "not measured"):
        assert words in page, words


def test_the_page_names_the_options_of_the_command() -> None:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    own = [one for action in parser._actions for one in action.option_strings if one.startswith("--")]
    general = {"--help", "--trust-code", "--model", "--hf-model", "--weights", "--batch-sizes", "--parts"}
    assert [one for one in own if one not in general and f"`{one}" not in PAGE and f" {one} " not in PAGE] == []


def test_the_picture_is_drawn_from_shares_that_sum_up() -> None:
    text = (ROOT / "docs/images/step-profile.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    shares = [float(found) for found in re.findall(r": ([-\d.]+) %</title>", text)]
    assert len(shares) == 18
    for first in range(0, 18, 6):
        assert abs(sum(shares[first : first + 6]) - 100) < 3  # medians of each part
    assert root.tag.endswith("svg")


def test_constants_of_the_command_are_those_of_the_package() -> None:
    assert bench.PARTS == PARTS
    assert set(bench.SUITES) <= set(SUITES)
