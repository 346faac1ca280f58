"""The page of operations is made from the code."""

from pathlib import Path

from loading import load_module
from robustly.certification.operations import RULES
from robustly.certification.readers.aten import TABLE
from robustly.certification.readers.onnx_reader import OPERATORS

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"


def test_every_operation_and_operator_is_on_the_page() -> None:
    page = load_module("docs_build/operation_tables.py").on_page_markdown(PAGE.read_text())
    assert "<!--" not in page
    for op in RULES:
        assert sum(line.startswith(f"| `{op}` |") for line in page.splitlines()) == 1, op
    torch_part, onnx_part = page.split("## PyTorch")[1].split("## ONNX")
    assert all(f"`{name}`" in torch_part for name in TABLE if not name.startswith("_"))
    assert all(f"`{name}`" in onnx_part for name in OPERATORS)
