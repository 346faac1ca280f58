"""Audit of the numbers: compute every number of the summary again from the rows."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from robustly.evaluation.audit.check import Check
from robustly.evidence import Evidence
from robustly.evidence.metrics import metrics
from robustly.evidence.records import to_json

_INTERVAL_SINCE = 5  # first schema whose summary has the interval


def numbers_check(evidence: Evidence, stated: Mapping[str, Any]) -> Check:
    """Check that the numbers follow from the rows.

    Args:
        evidence: rows and summary.
        stated: fields of the summary as written.
    """
    summary = evidence.summary
    curve = summary.metrics.security_curve
    expected = metrics(
        evidence.table,
        certificates=summary.terms,
        classes=summary.data.classes,
        limit=summary.threat.limit,
        curve=[] if curve is None else list(zip(curve.epsilon_text, curve.epsilon, strict=True)),
    )
    numbers = to_json(expected)
    if summary.schema < _INTERVAL_SINCE:
        del numbers["interval"]
    wrong = sorted(_differences(numbers, stated, ""))
    return Check("the printed numbers follow from the rows", f"wrong: {', '.join(wrong[:5])}" if wrong else "")


def _differences(expected: Any, stated: Any, where: str) -> Iterator[str]:
    """Names of the fields that differ. Fields that only the summary has are ignored."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            path = f"{where}.{key}" if where else str(key)
            if not isinstance(stated, dict) or key not in stated:
                yield path
            else:
                yield from _differences(value, stated[key], path)
    elif isinstance(expected, list):
        if not isinstance(stated, list) or len(stated) != len(expected):
            yield where
        else:
            for index, (one, other) in enumerate(zip(expected, stated, strict=True)):
                yield from _differences(one, other, f"{where}[{index}]")
    elif isinstance(expected, float) and isinstance(stated, int | float):
        if not math.isclose(expected, stated, rel_tol=1e-9, abs_tol=1e-12):
            yield where
    elif expected != stated:
        yield where
