"""Records to JSON and back, and the sentence about each kind of wrong field."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from robustly.evidence.records import (
    EvidenceError,
    Inline,
    Key,
    ShareKeys,
    ShareObject,
    from_json,
    read_object,
    to_json,
)
from robustly.statistics import Proportion


@dataclass(frozen=True)
class Inner:
    robust: Annotated[Proportion, ShareKeys("robust")]
    robust_8bit: Annotated[Proportion, ShareKeys(None, "accuracy_8bit", "interval_8bit")]


@dataclass(frozen=True)
class Outer:
    name: Annotated[str, Key("class")]
    clean: Annotated[Proportion, ShareObject("correct")]
    inner: Annotated[Inner, Inline()]
    parts: Mapping[str, tuple[int, ...]]
    mode: Literal["every", "worst_case"]
    grid: NDArray[np.float64]
    box: tuple[float, float]
    seconds: float | None = None
    settings: Mapping[str, object] | None = None
    flag: bool = False

    def __post_init__(self) -> None:
        if self.box[0] > self.box[1]:
            raise ValueError("the box should not be empty")


def outer() -> Outer:
    return Outer(
        name="cat",
        clean=Proportion(9, 10),
        inner=Inner(Proportion(3, 10), Proportion(4, 10)),
        parts={"a": (1, 2), "b": ()},
        mode="every",
        grid=np.array([[1.0, 2.0], [3.0, 4.0]]),
        box=(0.0, 1.0),
        seconds=1.5,
        settings={"steps": 3, "nested": {"x": [1, None]}},
    )


def test_a_record_survives_json() -> None:
    values = json.loads(json.dumps(to_json(outer())))
    assert values["class"] == "cat"
    assert values["clean"] == {
        "correct": 9,
        "count": 10,
        "accuracy": 0.9,
        "interval": list(Proportion(9, 10).interval),
    }
    assert (values["robust"], values["count"], values["accuracy_8bit"]) == (3, 10, 0.4)
    back = from_json(Outer, values, "file")
    np.testing.assert_array_equal(back.grid, outer().grid)
    assert to_json(back) == to_json(outer())
    assert (back.inner, back.parts, back.settings) == (outer().inner, outer().parts, outer().settings)


def test_fields_with_a_default_may_be_absent_and_null_is_none() -> None:
    values = to_json(outer())
    for key in ("seconds", "settings", "flag"):
        del values[key]
    back = from_json(Outer, values | {"unknown": 1, "seconds": math.nan}, "file", strict=False)
    assert (back.seconds, back.settings, back.flag) == (None, None, False)
    grid = from_json(Outer, values | {"grid": [[None, 1], [2, 3]]}, "file").grid
    assert math.isnan(grid[0, 0])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda v: v.pop("class"), ("class is missing", "text")),
        (lambda v: v.pop("clean"), ("clean is missing",)),
        (lambda v: v.update(clean=3), ("clean should be an object", "'3'")),
        (lambda v: v["clean"].update(correct="many"), ("clean: correct should be a whole number", "'many'")),
        (lambda v: v["clean"].update(correct=11), ("clean: correct", "11", "between 0 and 10")),
        (lambda v: v["clean"].update(count=0), ("count", "at least 1")),
        (lambda v: v.update(robust=True), ("robust should be a whole number",)),
        (lambda v: v.update(robust=2.5), ("robust should be a whole number",)),
        (lambda v: v.update(accuracy_8bit=1.4), ("accuracy_8bit", "between 0 and 10")),
        (lambda v: v.pop("accuracy_8bit"), ("accuracy_8bit is missing",)),
        (lambda v: v["parts"].update(a=[1, "x"]), ("parts: a[1] should be a whole number", "'x'")),
        (lambda v: v.update(parts=[1]), ("parts should be an object",)),
        (lambda v: v.update(mode="some"), ("mode should be one of every, worst_case", "'some'")),
        (lambda v: v.update(mode=["every"]), ("mode should be one of",)),
        (lambda v: v.update(grid=[[1.0, 2.0]]), ("grid", "1 rows of 1 numbers")),
        (lambda v: v.update(grid=[["x", 1], [2, 3]]), ("grid", "numbers only")),
        (lambda v: v.update(box=[1.0]), ("box should be a list of 2",)),
        (lambda v: v.update(box=[1, 0]), ("the box should not be empty",)),
        (lambda v: v.update(box=[0, math.inf]), ("box[1] should be a number",)),
        (lambda v: v.update(seconds="long"), ("seconds should be a number", "'long'")),
        (lambda v: v.update(flag=1), ("flag should be true or false",)),
    ],
)
def test_a_wrong_field_is_named(change: Callable[[dict[str, Any]], object], named: tuple[str, ...]) -> None:
    values = json.loads(json.dumps(to_json(outer())))
    change(values)
    with pytest.raises(EvidenceError) as error:
        from_json(Outer, values, "summary.json")
    for words in ("summary.json", *named):
        assert words in str(error.value)


def test_a_file_that_is_cut_off_or_holds_something_else_is_named(tmp_path: Path) -> None:
    file = tmp_path / "summary.json"
    for content in ('{"a": ', "[1]"):
        file.write_text(content)
        with pytest.raises(EvidenceError, match=r"summary\.json"):
            read_object(file)
    with pytest.raises(EvidenceError, match=r"missing\.json"):
        read_object(tmp_path / "missing.json")


def test_unknown_keys_are_refused_in_the_record_and_in_its_parts() -> None:
    values = to_json(outer())
    with pytest.raises(EvidenceError, match="'unknown' is not a key"):
        from_json(Outer, values | {"unknown": 1}, "file")
    with pytest.raises(EvidenceError, match="clean: 'note' is not a key"):
        from_json(Outer, values | {"clean": values["clean"] | {"note": "x"}}, "file")
