"""Cost matrix: what each confusion of a true class with a predicted one costs (Zhang and Evans, ICLR 2019)."""

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robustly.documents import DocumentError, read_csv
from robustly.memory import SizeError, check_npy

FORMS = (
    "'all', true classes such as 'classes:3,5', pairs TRUE>PREDICTED:COST such as '6>4:1,6>2:5', or a .csv or .npy "
    "file of K rows of K numbers"
)
"""The ways to write costs."""
MOST = 1e100
"""Largest cost: sums and squares of costs are finite."""
_PAIR = re.compile(r"\s*(\d{1,6})\s*>\s*(\d{1,6})\s*(?::(.*))?", re.ASCII)


class CostError(ValueError):
    """Costs that are not a cost matrix of the model's classes; the message is one sentence."""


@dataclass(frozen=True)
class CostMatrix:
    """Costs of confusions, true class by predicted class.

    Args:
        rows: C_yj, K rows of K numbers from 0 to 1e100; 0 on the diagonal, at least one positive.
        text: the costs as their user wrote them.

    Raises:
        CostError: another matrix; the message names the first entry that is wrong.
    """

    rows: tuple[tuple[float, ...], ...]
    text: str = ""

    def __post_init__(self) -> None:
        where = f"costs {self.text!r}" if self.text else "costs"
        size = len(self.rows)
        if size < 2 or any(len(row) != size for row in self.rows):
            lengths = sorted({len(row) for row in self.rows})
            raise CostError(
                f"{where}: a cost matrix has K rows of K numbers, K >= 2, got {size} rows of "
                f"{' or '.join(map(str, lengths)) or 'no'} numbers"
            )
        for true, row in enumerate(self.rows):
            for predicted, cost in enumerate(row):
                if not (math.isfinite(cost) and cost >= 0):
                    raise CostError(f"{where}: costs are finite and at least 0, {true}>{predicted} is {cost}")
                if cost > MOST:
                    raise CostError(f"{where}: costs are at most {MOST:g}, {true}>{predicted} is {cost:g}")
                if true == predicted and cost:
                    raise CostError(f"{where}: a correct prediction costs 0, {true}>{predicted} is {cost}")
        if not any(map(any, self.rows)):
            raise CostError(f"{where}: every cost is 0, so that no confusion counts")

    @property
    def classes(self) -> int:
        """The number K of classes."""
        return len(self.rows)

    @property
    def array(self) -> NDArray[np.float64]:
        """The matrix as an array `(K, K)`."""
        return np.array(self.rows, dtype=np.float64)

    @property
    def largest(self) -> float:
        """The largest cost."""
        return max(map(max, self.rows))

    @property
    def digest(self) -> str:
        """SHA-256 of the numbers, row by row as little-endian doubles, in hexadecimal."""
        return hashlib.sha256(self.array.astype("<f8").tobytes()).hexdigest()

    @classmethod
    def of(cls, values: Sequence[Sequence[float]] | NDArray[np.generic], text: str = "") -> "CostMatrix":
        """Build a matrix from numbers in rows.

        Raises:
            CostError: not a matrix of numbers, or not a cost matrix.
        """
        where = f"costs {text!r}" if text else "costs"
        array = np.asarray(values)
        if array.ndim != 2 or array.dtype.kind not in "biuf":
            raise CostError(f"{where}: a cost matrix is K rows of K numbers, got {array.dtype} {array.shape}")
        return cls(tuple(tuple(row) for row in array.astype(np.float64).tolist()), text)


def read_costs(text: str, classes: int) -> CostMatrix:
    """Read the costs of a model's confusions.

    Args:
        text: "all" (every confusion costs 1); "classes:3,5" (errors on examples of these true classes cost 1);
            "6>4:1,6>2:5" (pairs true > predicted with their cost, 1 if it is left out); or a file of K rows of K
            numbers, `.csv` without a header or `.npy` (never unpickled).
        classes: number K of the model's classes.

    Raises:
        CostError: another text, a file that cannot be read, another number of classes, or not a cost matrix.
    """
    if is_file(text):
        found = _read(Path(text))
        if found.classes != classes:
            raise CostError(
                f"costs {text!r}: the matrix is of {found.classes} classes, the model has {classes} classes"
            )
        return found
    rows = [[0.0] * classes for _ in range(classes)]
    for true, predicted, cost in _confusions(text, classes):
        for one in (true, predicted):
            if one >= classes:
                raise CostError(f"costs {text!r}: there is no class {one}, the model has classes 0..{classes - 1}")
        rows[true][predicted] = cost
    return CostMatrix(tuple(map(tuple, rows)), text)


def check_costs(text: str) -> int:
    """Refuse costs that no model could have, before the number of classes is known; returns the least number.

    Raises:
        CostError: a text of another form, or a file that is not a cost matrix.
    """
    if is_file(text):
        return _read(Path(text)).classes
    named = max((max(true, predicted) for true, predicted, _ in _confusions(text, 2)), default=1)
    return read_costs(text, max(named + 1, 2)).classes


def costs_problem(text: str, classes: int) -> str | None:
    """Error message if costs are not those of a number of classes, else None; see `read_costs`."""
    try:
        read_costs(text, classes)
    except CostError as error:
        return str(error)
    return None


def is_file(text: str) -> bool:
    """Return True if a text of costs names a file."""
    return text.lower().endswith((".csv", ".npy"))


def _confusions(text: str, classes: int) -> Iterator[tuple[int, int, float]]:
    """True class, predicted class and cost of each confusion that a text names."""
    kind, colon, listed = text.partition(":")
    if text.strip() == "all":
        yield from ((true, other, 1.0) for true in range(classes) for other in range(classes) if other != true)
    elif kind.strip() == "classes" and colon:
        for part in listed.split(","):
            if not re.fullmatch(r"\s*\d{1,6}\s*", part, re.ASCII):
                raise CostError(f"costs {text!r}: {part.strip()[:20]!r} is not the number of a class")
            true = int(part)
            others = range(max(classes, true + 1))
            yield from ((true, other, 1.0) for other in others if other != true)
    else:
        yield from _pairs(text)


def _pairs(text: str) -> Iterator[tuple[int, int, float]]:
    seen: set[tuple[int, int]] = set()
    for part in text.split(","):
        match = _PAIR.fullmatch(part)
        if match is None:
            raise CostError(f"costs {text[:60]!r}: {part.strip()[:20]!r} is not a pair: give {FORMS}")
        true, predicted = int(match[1]), int(match[2])
        if (true, predicted) in seen:
            raise CostError(f"costs {text!r}: the pair {true}>{predicted} is given twice")
        seen.add((true, predicted))
        try:
            cost = float(match[3]) if match[3] is not None else 1.0
        except ValueError:
            raise CostError(f"costs {text!r}: {match[3].strip()[:20]!r} is not a number") from None
        yield true, predicted, cost


def _read(file: Path) -> CostMatrix:
    if file.suffix.lower() == ".npy":
        return CostMatrix.of(_npy(file), str(file))
    try:
        rows = [row for row in read_csv(file) if any(cell.strip() for cell in row)]
    except DocumentError as error:
        raise CostError(f"costs: {error}") from None
    for number, row in enumerate(rows, start=1):
        for cell in row:
            try:
                float(cell)
            except ValueError:
                raise CostError(
                    f"costs {str(file)!r}: row {number} has {cell.strip()[:20]!r}, which is not a number"
                ) from None
    return CostMatrix(tuple(tuple(map(float, row)) for row in rows), str(file))


def _npy(file: Path) -> NDArray[np.generic]:
    try:
        check_npy(file)
        found: NDArray[np.generic] = np.load(file, allow_pickle=False)
    except SizeError as error:
        raise CostError(f"costs: {error}") from None
    except Exception as error:  # a damaged file raises many kinds of errors of NumPy
        raise CostError(f"costs {str(file)!r}: not a readable .npy file of numbers ({error})") from None
    if not isinstance(found, np.ndarray):
        raise CostError(f"costs {str(file)!r}: not one .npy array")
    return found
