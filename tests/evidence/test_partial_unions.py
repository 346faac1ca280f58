"""The union over the evaluations of a run that fit together."""

import pytest
from tables import evaluation

from robustly.evidence.partial_unions import LeftOut, largest_union
from robustly.evidence.unions import union_of_threats
from robustly.statistics import Proportion

LINF, L2 = evaluation("linf:0.1", [1, 1, 0, 0]), evaluation("l2:0.5", [1, 0, 1, 0])


def test_evaluations_that_fit_together_have_the_usual_union() -> None:
    assert largest_union({"evaluation": LINF, "evaluation_l2": L2}) == (union_of_threats([LINF, L2]), ())


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (evaluation("l1:3", [1, 0]), "it has 2 images, not the 4 of evaluation"),
        (evaluation("l1:3", [1, 0, 1, 1, 1], sha256="x"), "it has 5 images, not the 4 of evaluation"),
        (evaluation("l1:3", [1, 0, 1, 1], weights="x"), "its weights are not those of evaluation"),
        (evaluation("l1:3", [1, 0, 1, 1], sha256="x"), "its images or labels are not those of evaluation"),
        (evaluation("l1:3", [1, 0, 1, 1], first_id=1), "its images or labels are not those of evaluation"),
    ],
)
def test_an_evaluation_of_something_else_is_left_out_with_the_reason(other: object, reason: str) -> None:
    found = largest_union({"evaluation": LINF, "other": other, "evaluation_l2": L2})  # type: ignore[dict-item]
    assert found == (union_of_threats([LINF, L2]), (LeftOut("other", reason),))


def test_the_set_with_the_most_threats_is_used_then_the_one_with_the_most_images() -> None:
    few = {"a": evaluation("linf:0.1", [1] * 9), "b": LINF, "c": L2}
    union, left_out = largest_union(few)
    assert union is not None
    assert union.union == Proportion(1, 4)
    assert left_out == (LeftOut("a", "it has 9 images, not the 4 of b"),)
    union, left_out = largest_union({"a": evaluation("linf:0.1", [1] * 3), "b": evaluation("l2:1", [1] * 9)})
    assert union is None
    assert left_out == (LeftOut("a", "it has 3 images, not the 9 of b"),)
    assert largest_union({"a": LINF}) == (None, ())
    assert largest_union({}) == (None, ())


def test_evaluations_under_one_threat_count_together() -> None:
    again = evaluation("linf:0.1", [0, 1, 1, 0])
    union, left_out = largest_union({"evaluation": LINF, "again": again, "evaluation_l2": L2})
    assert union is not None
    assert [one.robust.hits for one in union.threats] == [1, 2]  # only the second image stands in both
    assert union.union == Proportion(0, 4)
    assert left_out == ()
    assert largest_union({"evaluation": LINF, "again": again}) == (None, ())
