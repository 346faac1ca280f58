"""The table of attacks and the modules of attacks and training parts, made when the documentation is built."""

import inspect
from collections.abc import Iterable
from typing import Any

from robustly.attacks import ATTACK_KINDS
from robustly.training import INNER_MAXIMISERS, LABEL_SOURCES, LOSSES, PARAMETER_PARTS, WEIGHTS

TABLE = "<!-- table of the attacks -->"
ATTACK_MODULES, PART_MODULES = "<!-- modules of the attacks -->", "<!-- modules of the training parts -->"
PARTS = (LABEL_SOURCES, INNER_MAXIMISERS, LOSSES, WEIGHTS, PARAMETER_PARTS)


def attacks_table() -> str:
    """Every attack of `ATTACK_KINDS`: name, class, first sentence of its docstring, threats, and what it finds."""
    rows = []
    for name, kind in ATTACK_KINDS.items():
        attack, sentence = kind(), str(inspect.getdoc(kind)).partition("\n")[0].rstrip(".").replace("|", "\\|")
        finds = "the nearest" if attack.minimum_norm else "one inside epsilon"
        rows.append(f"| `{name}` | `{type(attack).__name__}` | {sentence} | {attack.needs.words()} | {finds} |")
    head = ["| name | class | search | threats | finds |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([*head, *rows])


def modules(kinds: Iterable[Any]) -> str:
    """A directive for each module that defines some of the classes, in their order."""
    names = dict.fromkeys(kind.__module__ for kind in kinds)
    return "\n\n".join(f"::: {name}" for name in names)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put table and modules where a page has their marks."""
    parts = [kind for table in PARTS for kind in table.values()]
    return (
        markdown.replace(TABLE, attacks_table())
        .replace(ATTACK_MODULES, modules(ATTACK_KINDS.values()))
        .replace(PART_MODULES, modules(parts))
    )
