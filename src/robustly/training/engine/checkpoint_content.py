"""Check of the content of a training checkpoint, because the file may come from others."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

_NEEDED_IN_ROWS = ("epoch", "validation_clean_accuracy", "validation_robust_accuracy")


def wrong_part(content: Mapping[str, Any]) -> str:
    """The first part of a checkpoint that has another type or range than it should, in words; empty if all fit.

    Args:
        content: the parts by their names in `TrainingState`; missing parts pass.
    """
    for name, (fits, wanted) in _PARTS.items():
        if name in content and not fits(content[name]):
            return f"{name} should be {wanted}"
    epoch, rows, best = content.get("epoch", 0), content.get("rows", ()), content.get("best_epoch", -1)
    if len(rows) != epoch:
        return f"rows should be one for each of {epoch} epochs"
    if not -1 <= best < max(epoch, 1):
        return "best_epoch should be one of the finished epochs"
    return ""


def unfitting_state(optimizer: Optimizer) -> bool:
    """Return True if a tensor of an optimiser's state has another shape than its parameter."""
    return any(
        isinstance(value, Tensor) and value.ndim > 0 and value.shape != parameter.shape
        for parameter, state in optimizer.state.items()
        for value in state.values()
    )


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _number(value: object) -> bool:
    return (isinstance(value, float) and math.isfinite(value)) or _whole(value)


def _of(inner: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """A test of mappings from text to values that pass the inner test."""
    return lambda value: (
        isinstance(value, Mapping) and all(isinstance(key, str) and inner(item) for key, item in value.items())
    )


def _optimizer_state(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(value.get(key), kind) for key, kind in _OPTIMIZER.items())


def _cells(value: object) -> bool:
    return _of(lambda cell: cell is None or _number(cell))(value)


def _row(value: object) -> bool:
    return _cells(value) and isinstance(value, Mapping) and all(_number(value.get(key)) for key in _NEEDED_IN_ROWS)


def _within(value: object) -> bool:
    """True for the fields of `Within`."""
    if not isinstance(value, Mapping) or set(value) != {"step", "rate", "seconds", "totals"}:
        return False
    pairs = _of(lambda pair: isinstance(pair, tuple | list) and len(pair) == 2 and all(map(_number, pair)))
    numbers = _number(value["rate"]) and _number(value["seconds"])
    return _whole(value["step"]) and value["step"] > 0 and numbers and pairs(value["totals"])


_OPTIMIZER = {"state": Mapping, "param_groups": Sequence}
_TENSORS = _of(_of(lambda value: isinstance(value, Tensor)))
_PARTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "epoch": (lambda value: _whole(value) and value >= 0, "a number of epochs"),
    "config_digest": (lambda value: isinstance(value, str), "text"),
    "networks": (_TENSORS, "tensors by network and name"),
    "frozen": (_of(lambda value: isinstance(value, str)), "hashes by network"),
    "optimizers": (_of(_optimizer_state), "the state of each optimiser"),
    "memory": (_TENSORS, "tensors by part and name"),
    "rows": (lambda value: isinstance(value, list) and all(map(_row, value)), "numbers by column for each epoch"),
    "best_epoch": (_whole, "a whole number"),
    "best_score": (
        lambda value: isinstance(value, tuple | list) and len(value) in (2, 3) and all(map(_number, value)),
        "two or three numbers",
    ),
    "pretraining": (
        _of(lambda value: isinstance(value, list) and all(map(_cells, value))),
        "numbers by column for each epoch before the run",
    ),
    "within": (_within, "a position in an epoch"),
    "parts": (lambda value: _whole(value) and value >= 1, "a number of parts"),
    "seconds": (lambda value: _number(value) and value >= 0, "a time in seconds"),
}
