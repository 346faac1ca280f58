"""Tables of the evidence schema in the documentation, made from the schema when the documentation is built."""

from typing import Any

from robustly.evidence.schema import SCHEMA, described_columns

TYPES = {"verdict": "word"}
COLUMNS, VERSION = "<!-- columns of the evidence -->", "<!-- version of the evidence -->"


def columns_table() -> str:
    """All columns of the evidence table, one row each."""
    rows = [
        f"| `{name}` | {TYPES.get(column.kind, column.kind)} | {column.goal or 'every'} | {column.meaning} |"
        for name, column in described_columns()
    ]
    return "\n".join(["| column | type | goal | meaning |", "| --- | --- | --- | --- |", *rows])


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the tables where a page asks for them."""
    return markdown.replace(COLUMNS, columns_table()).replace(VERSION, str(SCHEMA))
