"""Audit of the form of a summary: every field is stated, because a missing one reads as its default."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robustly.evaluation.audit.check import Check
from robustly.evidence import Summary
from robustly.evidence.records import read_object, to_json
from robustly.evidence.schema import FIELDS_SINCE, SUMMARY

_SHOWN = 5


def fields_check(folder: Path, summary: Summary) -> Check:
    """Check that the summary states every field.

    Evidence of earlier schemas was written before some fields existed; a remark names what it does not state.

    Args:
        folder: folder of the evidence.
        summary: its summary.
    """
    missing = list(missing_fields(to_json(summary), read_object(folder / SUMMARY)))
    shown = ", ".join(missing[:_SHOWN]) + (f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else "")
    name = "the summary states every field"
    if summary.schema < FIELDS_SINCE:
        return Check(name, note=f"evidence of schema {summary.schema} does not state {shown}" if missing else "")
    return Check(name, f"missing: {shown}" if missing else "")


def missing_fields(expected: Any, stated: Any, where: str = "") -> Iterator[str]:
    """Places of the keys that an object should have and has not, such as "suite.attacks[0].plan.closest".

    Args:
        expected: plain values with all keys.
        stated: the values as written.
        where: place of the object.
    """
    if isinstance(expected, dict):
        own = stated if isinstance(stated, dict) else {}
        for key, value in expected.items():
            place = f"{where}.{key}" if where else str(key)
            if key in own:
                yield from missing_fields(value, own[key], place)
            else:
                yield place
    elif isinstance(expected, list) and isinstance(stated, list):
        for number, (one, other) in enumerate(zip(expected, stated, strict=False)):
            yield from missing_fields(one, other, f"{where}[{number}]")
