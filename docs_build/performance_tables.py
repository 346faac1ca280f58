"""Tables of benchmarks in the documentation, from the committed results, when the documentation is built."""

import re
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
MARK = re.compile(r"<!-- results of (\w+) -->")


def body_of(name: str) -> str:
    """A file of results without its title, its headings one level lower."""
    text = (RESULTS / f"{name}.md").read_text(encoding="utf-8")
    _, _, rest = text.partition("\n")
    return re.sub(r"^#", "##", rest.strip(), flags=re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the results where a page asks for them."""
    return MARK.sub(lambda found: body_of(found[1]), markdown)
