"""Rows of `results.csv`: the answers to a list of instances."""

import csv
import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from robustly.certification.answers import WORDS, Answer
from robustly.certification.instances import Instance, InstancesError
from robustly.files import whole_file
from robustly.output_text import one_line


@dataclass(frozen=True)
class Result:
    """A row.

    Args:
        onnx: the network, as the list names it.
        vnnlib: the property, as the list names it.
        timeout_s: time limit.
        expected: right answer; empty if the list states none.
        result: the answer.
        seconds: time spent.
        stage: method that decided.
        work: bounded domains.
        lower_bound: least proved bound; infinite if none was needed.
        reason: remark on the answer.
    """

    onnx: str
    vnnlib: str
    timeout_s: float
    expected: str
    result: str
    seconds: float
    stage: str
    work: int
    lower_bound: float
    reason: str

    @classmethod
    def of(cls, one: Instance, timeout: float, found: Answer) -> "Result":
        """The row of an answer."""
        return cls(
            *(one.onnx, one.vnnlib, timeout, one.expected, found.word, round(found.seconds, 3)),
            *(found.stage, found.work, found.lower_bound, one_line(found.reason)),
        )

    @property
    def key(self) -> tuple[str, str]:
        """Names of network and property."""
        return self.onnx, self.vnnlib

    @property
    def is_wrong(self) -> bool:
        """True if the answer contradicts the expected one."""
        return bool(self.expected) and self.result in {"sat", "unsat"} and self.result != self.expected

    def is_final(self, timeout: float) -> bool:
        """Return True if another run with this time limit would not change the answer."""
        if self.result in {"sat", "unsat"}:
            return True
        return self.result in {"timeout", "unknown"} and self.timeout_s >= timeout


_NAMES = tuple(field.name for field in fields(Result))


def read_results(file: Path) -> dict[tuple[str, str], Result]:
    """Read the rows by network and property.

    Raises:
        InstancesError: the file is not such a table.
    """
    try:
        with file.open(encoding="utf-8", newline="") as content:
            rows = [_result(row) for row in csv.DictReader(content, strict=True)]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise InstancesError(
            f"{file} is not a table of results ({error}): remove it or name another --output"
        ) from None
    return {row.key: row for row in rows}


def write_results(file: Path, results: Iterable[Result]) -> None:
    """Write the rows atomically."""
    with whole_file(file) as temporary, temporary.open("w", encoding="utf-8", newline="") as content:
        writer = csv.writer(content)
        writer.writerow(_NAMES)
        writer.writerows(astuple(result) for result in results)


def _result(row: dict[str, str]) -> Result:
    if row["result"] not in WORDS:
        raise ValueError(f"the result {row['result']!r}")
    numbers = [float(row[name]) for name in ("timeout_s", "seconds", "lower_bound")]
    if any(math.isnan(number) for number in numbers):
        raise ValueError("a number is NaN")
    timeout, seconds, bound = numbers
    return Result(
        *(row["onnx"], row["vnnlib"], timeout, row["expected"], row["result"], seconds, row["stage"]),
        *(int(row["work"]), bound, row["reason"]),
    )
