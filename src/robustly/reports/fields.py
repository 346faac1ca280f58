"""Typed access to a JSON document, with errors that say which field of which file is wrong."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from robustly.reports.evidence import Proportion, ReportError, wilson


@dataclass(frozen=True)
class Fields:
    """A JSON object and the words that say where it stands."""

    values: Mapping[str, object]
    where: str

    def inside(self, key: str) -> "Fields":
        """The object under `key`.

        Raises:
            ReportError: if there is none.
        """
        value = self.values.get(key)
        if not isinstance(value, dict):
            raise self._wrong(key, "an object")
        return Fields(value, f"{self.where}: {key}")

    def maybe_inside(self, key: str) -> "Fields | None":
        """The object under `key`, or None if the key is absent or null."""
        return None if self.values.get(key) is None else self.inside(key)

    def listed(self, key: str) -> list[object]:
        """The list under `key`; empty if absent or null."""
        value = self.values.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self._wrong(key, "a list")
        return value

    def objects(self, key: str) -> list["Fields"]:
        """The objects of the list under `key`."""
        found = []
        for i, value in enumerate(self.listed(key)):
            if not isinstance(value, dict):
                raise self._wrong(f"{key}[{i}]", "an object")
            found.append(Fields(value, f"{self.where}: {key}[{i}]"))
        return found

    def text(self, key: str) -> str:
        """The text under `key`; numbers are turned into text."""
        value = self.values.get(key)
        if not isinstance(value, (str, int, float)):
            raise self._wrong(key, "text")
        return str(value)

    def maybe_text(self, key: str) -> str | None:
        """The text under `key`, or None."""
        return None if self.values.get(key) is None else self.text(key)

    def number(self, key: str) -> float:
        """The finite number under `key`."""
        number = self.maybe_number(key)
        if number is None:
            raise self._wrong(key, "a number")
        return number

    def maybe_number(self, key: str) -> float | None:
        """The number under `key`; None if absent, null, or not finite."""
        value = self.values.get(key)
        if value is None:
            return None
        return self._as_number(key, value)

    def whole(self, key: str) -> int:
        """The whole number under `key`."""
        return int(self.number(key))

    def maybe_whole(self, key: str) -> int | None:
        """The whole number under `key`, or None."""
        number = self.maybe_number(key)
        return None if number is None else int(number)

    def numbers(self, key: str) -> tuple[float | None, ...]:
        """The list of numbers under `key`; those that are null or not finite become None."""
        return tuple(None if value is None else self._as_number(key, value) for value in self.listed(key))

    def proportion(self, correct: str, interval: str, accuracy: str = "accuracy") -> Proportion:
        """A share from the fields named: its count of right examples (or accuracy), `count`, interval."""
        count = self.whole("count")
        if count < 1:
            raise self._wrong("count", "at least 1")
        hits = self.maybe_whole(correct)
        if hits is None:
            hits = round(self.number(accuracy) * count)
        if not 0 <= hits <= count:
            raise self._wrong(correct if correct in self.values else accuracy, f"between 0 and {count} examples")
        ends = self.numbers(interval)
        if len(ends) == 2 and ends[0] is not None and ends[1] is not None:
            return Proportion(hits, count, ends[0], ends[1])
        return wilson(hits, count)

    def _as_number(self, key: str, value: object) -> float | None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._wrong(key, "a number")
        return float(value) if math.isfinite(value) else None

    def _wrong(self, key: str, wanted: str) -> ReportError:
        if key not in self.values and "[" not in key:
            return ReportError(f"{self.where}: {key} is missing; it should be {wanted}.")
        return ReportError(f"{self.where}: {key} should be {wanted}, but is {str(self.values.get(key))[:80]!r}.")


def read_json(path: Path) -> Fields:
    """The JSON object in a file.

    Raises:
        ReportError: if the file is cut off or no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"{path} is no readable JSON (cut off while it was written?): {error}.") from error
    if not isinstance(value, dict):
        raise ReportError(f"{path} should hold one JSON object.")
    return Fields(value, str(path))
