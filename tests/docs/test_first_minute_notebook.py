"""The notebook is executed by a kernel of its own: its outputs are the table, the plot and the progress line."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from loading import load_module

FILE = Path(__file__).parents[2] / "docs" / "notebooks" / "first_minute.ipynb"
CALLS = ("robustly.evaluate(", "result.plot()", "result.audit()")


def outputs(notebook: Any, call: str) -> list[Any]:
    (cell,) = (cell for cell in notebook.cells if cell.cell_type == "code" and call in cell.source)
    return list(cell.outputs)


def check(notebook: Any) -> None:
    """The outputs that a reader needs, in an executed notebook and in the stored one."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error", output
            assert output.get("name") != "stderr", output.text
    progress, table = outputs(notebook, CALLS[0])
    assert re.fullmatch(r"evaluation finished in \d+ s", progress.data["text/plain"])
    assert "worst case" in table.data["text/html"]
    assert re.search(r"worst case  \d+\.\d % \[\d+\.\d, \d+\.\d\]", table.data["text/plain"])
    (plot,) = outputs(notebook, CALLS[1])
    assert plot.data["image/svg+xml"].startswith("<svg ")
    assert "epsilon" in plot.data["text/html"]
    (audit,) = outputs(notebook, CALLS[2])
    assert audit.data["text/plain"] == "(True, ())"


def test_the_stored_outputs_are_small_and_of_this_code() -> None:
    notebook = nbformat.read(FILE, as_version=4)
    nbformat.validate(notebook)
    check(notebook)
    assert FILE.stat().st_size < 60_000


@pytest.mark.slow
def test_the_notebook_runs_and_its_progress_is_one_line(tmp_path: Path) -> None:
    notebook = nbformat.read(FILE, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    process, lines = client.process_message, []

    def recorded(message: Any, *arguments: Any) -> Any:
        if message["msg_type"] in ("display_data", "update_display_data"):
            content = message["content"]
            lines.append((content["transient"].get("display_id"), content["data"]["text/plain"]))
        return process(message, *arguments)

    client.process_message = recorded
    client.execute()
    check(notebook)
    assert (tmp_path / "report.html").is_file()
    progress = [text for _, text in lines]
    assert len({display for display, _ in lines}) == 1, "one display, whose text changes"
    assert any(re.fullmatch(r"\S.*: (\d+) of \1", text) for text in progress), progress
    assert progress[0] == "evaluation begins"


def test_the_page_has_the_cells_and_outputs_of_the_notebook() -> None:
    pages = load_module("docs_build/notebook_pages.py")
    page = pages.on_page_markdown((FILE.parents[1] / "first-minute.md").read_text(encoding="utf-8"))
    assert all(call in page for call in CALLS)
    assert '<div class="notebook-output"><div class="robustly-evidence"' in page
    assert "<!--" not in page
    assert not re.search(r"<div class=\"notebook-output\">[^\n]*\n\S", page), "HTML is one line"
