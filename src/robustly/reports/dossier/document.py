"""A document of sections, and its form as Markdown."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from robustly.output_text import one_line
from robustly.reports.formats import THIN

_SIGNS = re.compile(r"([\\`*_\[\]|#])")
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "~": "&#126;"})


@dataclass(frozen=True)
class Paragraph:
    """Some sentences; `strong` sets them apart."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Facts:
    """Names with values."""

    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Items:
    """A list of sentences."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """A table of text; `title` describes it for screen readers.

    Raises:
        ValueError: a row has another length than the header.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if any(len(row) != len(self.header) for row in self.rows):
            raise ValueError(f"each row of the table {self.title!r} should have {len(self.header)} cells")


Block = Paragraph | Facts | Items | Grid


@dataclass(frozen=True)
class Section:
    """A heading and what is below it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A document.

    Args:
        title: its title.
        made: time and software that it was made with.
        lead: its first sentences.
        sections: the sections, which are numbered in this order.
    """

    title: str
    made: str
    lead: str
    sections: tuple[Section, ...]


def markdown(document: Document) -> str:
    """The document as Markdown with tables, in which names from files cannot be markup."""
    parts = [f"# {_plain(document.title)}", _plain(document.made), _plain(document.lead)]
    for number, section in enumerate(document.sections, start=1):
        parts.append(f"## {number}. {_plain(section.title)}")
        parts += [_block(one) for one in section.blocks]
    return "\n\n".join(part for part in parts if part) + "\n"


def _block(block: Block) -> str:
    if isinstance(block, Paragraph):
        return f"**{_plain(block.text)}**" if block.strong else _plain(block.text)
    if isinstance(block, Items):
        return "\n".join(f"- {_plain(text)}" for text in block.texts)
    if isinstance(block, Facts):
        return "\n".join(f"- {_plain(name)}: {_plain(value)}" for name, value in block.pairs)
    return "\n".join([_row(block.header), _row(["---"] * len(block.header), plain=False), *map(_row, block.rows)])


def _row(cells: Sequence[str], plain: bool = True) -> str:
    return f"| {' | '.join(_plain(one) if plain else one for one in cells)} |"


def _plain(text: str) -> str:
    """Text on one line whose signs are not markup; thin spaces become spaces."""
    return _SIGNS.sub(r"\\\1", one_line(text).replace(THIN, " ")).translate(_ENTITIES)
