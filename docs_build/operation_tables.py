"""Operations that can be bounded and operators that are read, from the code when the documentation is built."""

from collections.abc import Iterable
from typing import Any

from robustly.certification.operations import supported
from robustly.certification.readers import aten
from robustly.certification.readers.onnx_reader import OPERATORS

OPERATIONS, TORCH = "<!-- table of the operations -->", "<!-- operators of PyTorch -->"
ONNX = "<!-- operators of ONNX -->"


def operations_table() -> str:
    """Every operation of the graph, with a description of its bounds."""
    rows = [f"| `{op}` | {words} |" for op, words in supported()]
    return "\n".join(["| operation | bounds |", "| --- | --- |", *rows])


def listed(names: Iterable[str]) -> str:
    """Names as code, with commas."""
    return ", ".join(f"`{name}`" for name in sorted(names))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the tables where a page has their marks."""
    return (
        markdown.replace(OPERATIONS, operations_table())
        .replace(TORCH, listed(aten.supported().split(", ")))
        .replace(ONNX, listed(OPERATORS))
    )
