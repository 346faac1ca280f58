"""Sentences with numbers: those of another machine are the same, those of a forger are not."""

import pytest

from robustly.evaluation.audit.statements import similar


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("FGSM misses 7 of 178 images", "FGSM misses 8 of 178 images", True),
        ("FGSM misses 7 of 178 images", "FGSM misses 17 of 178 images", False),
        ("FGSM misses 7 of 178 images", "PGD misses 7 of 178 images", False),
        ("0.95 times the rise (p = 1)", "0.94 times the rise (p = 1)", True),
        ("0.95 times the rise (p = 1)", "0.35 times the rise (p = 1)", False),
        ("1 times", "1.1 times", True),
        ("it broke 5", "it broke -5", False),
        ("it broke 5 of 9", "it broke 5", False),
    ],
)
def test_numbers_may_differ_by_rounding(one: str, other: str, expected: bool) -> None:
    assert similar(one, other) is expected
