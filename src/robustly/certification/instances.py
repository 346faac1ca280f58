"""Instances in lists, as in the verification competition: network, property, time limit."""

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_NETWORK_NAME = re.compile(r"[A-Za-z_]\w*:")
_FOLDERS = ("", "onnx", "vnnlib")
_TIMEOUTS = ("timeout", "timeout_s")


class InstancesError(ValueError):
    """A list of instances that cannot be read."""


@dataclass(frozen=True)
class Instance:
    """One row of a list.

    Args:
        onnx: name of the network as the list has it.
        vnnlib: name of the property as the list has it.
        network: file of the network; None if there is none, or if the row names several.
        property_: file of the property; None if there is none.
        timeout: seconds; None if the list has none.
        expected: "sat" or "unsat" if the list states the right answer; else empty.
    """

    onnx: str
    vnnlib: str
    network: Path | None
    property_: Path | None
    timeout: float | None
    expected: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """Names of network and property."""
        return self.onnx, self.vnnlib


def read_instances(file: Path) -> list[Instance]:
    """Read a list `onnx,vnnlib,timeout`, with or without a header; a column `expected` states right answers.

    Files are searched from the folder of the list, then in its folders `onnx` and `vnnlib`, each as named and with
    the ending `.gz`. A network may be written `name:path`. Rows that repeat an earlier one are left out.

    Args:
        file: the list.

    Raises:
        InstancesError: it is a folder, the list is empty or a row is wrong; the message names the line.
        OSError: it cannot be read.
    """
    if file.is_dir():
        raise InstancesError(f"{file} is a folder: name the list in it, such as {file / 'instances.csv'}")
    try:
        with file.open(encoding="utf-8-sig", newline="") as content:
            rows = [(number, [cell.strip() for cell in row]) for number, row in enumerate(csv.reader(content), 1)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InstancesError(f"{file} is not a table in CSV: {error}") from error
    rows = [(number, row) for number, row in rows if any(row) and not row[0].startswith("#")]
    columns = _columns(rows[0][1]) if rows else None
    if columns is not None:
        rows = rows[1:]
    if not rows:
        raise InstancesError(f"{file} has no instances; a row is onnx,vnnlib,timeout")
    instances: dict[tuple[str, str], Instance] = {}
    for number, row in rows:
        one = _instance(file, number, row, columns or {"onnx": 0, "vnnlib": 1, "timeout": 2})
        instances.setdefault(one.key, one)
    return list(instances.values())


def _columns(row: Sequence[str]) -> dict[str, int] | None:
    """Places of the columns if the row is a header."""
    names = [cell.lower() for cell in row]
    if "onnx" not in names or "vnnlib" not in names:
        return None
    places: dict[str, int] = {name: names.index(name) for name in ("onnx", "vnnlib", "expected") if name in names}
    for name in _TIMEOUTS:
        if name in names:
            places["timeout"] = names.index(name)
    return places


def _instance(file: Path, number: int, row: Sequence[str], columns: dict[str, int]) -> Instance:
    cells = {name: row[place] for name, place in columns.items() if place < len(row)}
    onnx, vnnlib = cells.get("onnx", ""), cells.get("vnnlib", "")
    if not onnx or not vnnlib:
        raise InstancesError(f"{file}, line {number}: expected onnx,vnnlib,timeout, found {','.join(row)[:80]!r}")
    written = cells.get("timeout", "")
    try:
        timeout = float(written) if written else None
    except ValueError:
        timeout = math.nan
    if timeout is not None and not 0 < timeout < math.inf:
        raise InstancesError(
            f"{file}, line {number}: the time limit {written!r} is not a positive number of seconds"
        )
    expected = cells.get("expected", "").lower()
    if expected not in {"sat", "unsat"}:
        expected = ""
    return Instance(onnx, vnnlib, _network(file.parent, onnx), find_file(file.parent, vnnlib), timeout, expected)


def _network(folder: Path, name: str) -> Path | None:
    found = find_file(folder, name)
    if found is None and len(_NETWORK_NAME.findall(name)) == 1 and (match := _NETWORK_NAME.match(name)):
        return find_file(folder, name[match.end() :])
    return found


def find_file(folder: Path, name: str) -> Path | None:
    """The file of this name, or with the ending `.gz` added or left out; None if there is none.

    Args:
        folder: folder from which a relative name is searched, and in its folders `onnx` and `vnnlib`.
        name: a path.
    """
    other = name.removesuffix(".gz") if name.endswith(".gz") else f"{name}.gz"
    candidates = [folder / part / one for one in (name, other) for part in _FOLDERS]
    return next((candidate for candidate in candidates if candidate.is_file()), None)
