"""The documentation lists every attack and every module of a part by itself."""

import re
from pathlib import Path
from types import ModuleType

import pytest

from loading import load_module
from robustly.attacks import ATTACK_KINDS
from robustly.training import LOSSES

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    return load_module("docs_build/attack_tables.py")


def test_every_attack_has_a_row_of_five_cells(tables: ModuleType) -> None:
    page = tables.on_page_markdown((ROOT / "docs" / "attacks.md").read_text())
    for name in ATTACK_KINDS:
        (row,) = (line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert len(re.split(r"(?<!\\)\|", row)) == 7, row
    assert "<!--" not in page


def test_every_module_of_an_attack_or_a_part_is_in_the_api_once(tables: ModuleType) -> None:
    pages = [tables.on_page_markdown(file.read_text()) for file in sorted((ROOT / "docs" / "api").glob("*.md"))]
    listed = [name for page in pages for name in re.findall(r"^::: (\S+)$", page, re.MULTILINE)]
    assert len(listed) == len(set(listed))
    for kind in [*ATTACK_KINDS.values(), *LOSSES.values()]:
        assert kind.__module__ in listed


def test_every_public_module_has_a_page_that_the_index_names() -> None:
    index = (ROOT / "docs" / "api" / "index.md").read_text()
    site = (ROOT / "mkdocs.yml").read_text()
    rooms = {file.parent.name for file in (ROOT / "src" / "robustly").glob("*/__init__.py")}
    for module in rooms - {"api", "cli", "experiments"} | {"door", "objectives"}:
        assert (ROOT / "docs" / "api" / f"{module}.md").is_file(), module
        assert f"({module}.md)" in index
        assert f"api/{module}.md" in site
