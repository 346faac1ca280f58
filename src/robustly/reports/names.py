"""Names of runs that appear side by side."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path


def distinct_names(named: Sequence[tuple[str, Path]]) -> list[str]:
    """Distinct names; runs of one name get the name of their folder, or else a number.

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
