"""Run the code of a documentation page, in its order and in the current folder.

Blocks of Python with a title are files, the others are one session. Blocks of bash hold commands of `robustly`, and
`pip install`, which is not run.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustly.cli import main

_FENCE = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block; title is the name of a file, or empty."""

    language: str
    title: str
    code: str


def blocks(markdown: str) -> Iterator[Block]:
    """All fenced blocks, in their order."""
    for language, title, code in _FENCE.findall(markdown):
        yield Block(language, title, code)


def commands(block: Block) -> list[list[str]]:
    """Words of each command of a block of bash; lines that end in a backslash continue."""
    lines = block.code.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run_page(page: Path, names: dict[str, Any]) -> dict[str, Any]:
    """Run all blocks; return the names that the session defines.

    Args:
        page: the file of Markdown.
        names: names that the session has before its first line.

    Raises:
        RuntimeError: a command has another exit code than 0, or another program is called.
    """
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.language == "python" and block.title:
            Path(block.title).write_text(block.code, encoding="utf-8")
        elif block.language == "python":
            exec(compile(block.code, str(page), "exec"), names)  # noqa: S102 the page is ours
        elif block.language == "bash":
            for words in commands(block):
                _run(words)
    return names


def _run(words: list[str]) -> None:
    if words[:2] == ["pip", "install"]:
        return
    if words[0] != "robustly":
        raise RuntimeError(f"a page should call robustly or pip install, not {words[0]}")
    code = main(words[1:])
    if code != 0:
        raise RuntimeError(f"{shlex.join(words)} has exit code {code}")
