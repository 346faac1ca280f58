"""Comparison of a small run's figures with those that stand in `values.json`.

Bits are compared where this machine computes as the machine that `values.json` was made on; elsewhere the
figures have to be near.
"""

import json
from typing import Any

import pytest
import runs

VALUES: dict[str, Any] = json.loads(runs.VALUES.read_text(encoding="utf-8"))
NEAR = {"rel": 0.05, "abs": 0.05}


def assert_near(found: Any, known: Any, where: str = "") -> None:
    """The same structure, and numbers that differ by what other rounding explains."""
    if isinstance(known, dict):
        assert found.keys() == known.keys(), where
        for key in known:
            assert_near(found[key], known[key], f"{where}.{key}")
    elif isinstance(known, list):
        assert len(found) == len(known), where
        for place, (one, other) in enumerate(zip(found, known, strict=True)):
            assert_near(one, other, f"{where}[{place}]")
    elif isinstance(known, float):
        assert found == pytest.approx(known, **NEAR), where


def compare(found: dict[str, Any], known: dict[str, Any], same_arithmetic: bool) -> None:
    if same_arithmetic:
        assert found == known
        return
    assert_near({key: value for key, value in found.items() if key in ("norm", "losses")},
                {key: value for key, value in known.items() if key in ("norm", "losses")})  # fmt: skip
    if "printed" in known:
        assert_near(found["printed"].get("worst_case"), known["printed"].get("worst_case"))
        assert found["columns"].keys() == known["columns"].keys()
