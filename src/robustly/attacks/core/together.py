"""Several runs of a search at once: the targets or restarts of an attack as one larger batch.

On few examples the cost of a step hardly depends on the number of points. The runs of an example stop together as
soon as one of them breaks it, so that its verdict is that of runs one after the other.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from robustly.attacks.core.search import Search
from robustly.attacks.core.search_state import Rows
from robustly.threats.contract import per_example

VALUES = 2**19
"""Values of images in one pass of a small batch: 668 digits, 170 images of CIFAR-10, 3 of ImageNet."""


def in_turn(runs: int, estimator: object | None = None) -> list[range]:
    """The runs that go together: the first alone, because it breaks most of the easy examples, then all others.

    With a gradient estimator, which takes many points at once itself, each run goes alone.
    """
    if estimator is not None:
        return [range(run, run + 1) for run in range(runs)]
    return [part for part in (range(min(runs, 1)), range(1, runs)) if len(part)]


def together(search: Search, rows: Rows, runs: int, run: Callable[[Search, Rows, Tensor], None]) -> None:
    """Run a search several times for each of some examples, and merge the results into `search`.

    Memory holds as many points at once as the batch has examples, or `VALUES`.

    Args:
        search: the search of the batch.
        rows: examples `(M,)`.
        runs: runs per example, at least 1.
        run: called with a search; its rows, one per run, those of an example after each other `(P * runs,)`; and
            the positions of the examples in `rows`, `(P,)`.
    """
    if runs == 1:
        run(search, rows, torch.arange(len(rows), device=rows.device))
        return
    size = max(search.x[:1].numel(), 1)
    group = max(max(len(search.x), VALUES // size) // runs, 1)
    for first in range(0, len(rows), group):
        place = torch.arange(first, min(first + group, len(rows)), device=rows.device)
        part = _repeated(search, rows[place], runs)
        run(part, part.unbroken, place)
        _merge(search, rows[place], part)


def _repeated(search: Search, rows: Rows, runs: int) -> Search:
    """A search of the same examples, each several times."""
    each = rows.repeat_interleave(runs)
    part = Search(
        search.model,
        search.x[each],
        search.goal.select(each),
        search.threat.select(each),
        nearest=search.nearest,
        by_margin=search.by_margin,
        half=search.half,
    )
    part.runs, part.clean = runs, search.clean[each]
    part.theta, part.distance = search.theta[each], search.distance[each]
    part.highest, part.margin = search.highest[each], search.margin[each]
    return part


def _merge(search: Search, rows: Rows, part: Search) -> None:
    """Add the passes of the runs, and keep their best point; of several successes, that of the first run."""
    runs = part.runs

    for name in ("forwards", "backwards", "correct_iterates", "zero_gradients"):
        getattr(search, name)[rows] += getattr(part, name).view(-1, runs).sum(1)
    broken, invalid = part.broken.view(-1, runs), part.invalid.view(-1, runs)
    search.invalid[rows] |= invalid.any(1)
    search.margin[rows] = part.margin.view(-1, runs).amax(1)
    if search.nearest:
        distance, best = part.distance.view(-1, runs).min(1)
        better = distance < search.distance[rows]
        search.distance[rows] = distance
    else:
        found = broken & ~invalid
        highest, best = part.highest.view(-1, runs).max(1)
        best = torch.where(found.any(1), found.long().argmax(1), best)
        better = found.any(1) | (highest > search.highest[rows])
        search.highest[rows] = highest
        search.broken[rows] |= broken.any(1)
    chosen = part.theta[torch.arange(len(rows), device=rows.device) * runs + best]
    search.theta[rows] = torch.where(per_example(better, chosen), chosen, search.theta[rows])
