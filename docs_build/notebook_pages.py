"""Show a notebook with its stored outputs on a page that names it: <!-- notebook FILE -->, FILE below `docs`."""

import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs"
_MARK = re.compile(r"^<!-- notebook (\S+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the cells of the notebook in place of its mark."""
    return _MARK.sub(lambda found: notebook_markdown(DOCS / found[1]), markdown)


def notebook_markdown(file: Path) -> str:
    """All cells but the title, as Markdown: code in fences, outputs as HTML where they have it, else as text."""
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(re.sub(r"\A# .*\n*", "", source))
        else:
            parts.append(f"```python\n{source}\n```")
            parts.extend(_output(output) for output in cell["outputs"])
    return "\n\n".join(part for part in parts if part)


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {"text/plain": output.get("text", "")})
    if "text/html" in data:
        html = re.sub(r"\s*\n\s*", " ", "".join(data["text/html"]))  # an empty line would end the HTML
        return f'<div class="notebook-output">{html}</div>'
    return f"```text\n{''.join(data['text/plain']).rstrip()}\n```"
