"""The page on evaluation shows the columns of the schema, made from it."""

import sys
from pathlib import Path

from robustly.evidence.schema import SCHEMA, described_columns

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "docs_build"))

from evidence_tables import columns_table, on_page_markdown  # noqa: E402


def test_the_page_lists_every_column_with_its_meaning() -> None:
    page = on_page_markdown((ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8"))
    for name, column in described_columns():
        (row,) = (line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert column.meaning in row
        assert row.count("|") == 5, "a meaning may not break the table"
    assert f"version {SCHEMA};" in page
    assert "of the evidence -->" not in page


def test_a_page_without_a_mark_is_left_alone() -> None:
    assert on_page_markdown("text") == "text"
    assert "evidence_tables.py" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert len(columns_table().splitlines()) == len(described_columns()) + 2
