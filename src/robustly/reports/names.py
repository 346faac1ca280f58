"""Distinct names of runs in one table or figure."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path


def distinct_names(named: Sequence[tuple[str, Path]]) -> list[str]:
    """Distinct names; runs with the same name get the name of their folder, or a number.

    Args:
        named: name and folder of every run.
    """
    often = Counter(name for name, _ in named)
    longer = [
        name if often[name] == 1 else f"{folder.resolve().parent.name}/{folder.resolve().name}"
        for name, folder in named
    ]
    often = Counter(longer)
    return [name if often[name] == 1 else f"{name} ({i + 1})" for i, name in enumerate(longer)]
