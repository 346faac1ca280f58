"""The shape annotations are really checked while the tests run, each combination of shapes once."""

from dataclasses import dataclass

import jaxtyping
import pytest
import torch
from jaxtyping import Float, Int64, TypeCheckError
from torch import Tensor

from robustly.attacks import AttackResult
from robustly.objectives import ClassificationGoal, cross_entropy
from shape_checks import check, check_once

checked = check_once(typechecker=check)


def test_a_wrong_shape_is_caught() -> None:
    with pytest.raises(TypeCheckError):
        ClassificationGoal(torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(TypeCheckError):
        cross_entropy(torch.zeros(3), ClassificationGoal(torch.zeros(3, dtype=torch.int64)))
    with pytest.raises(TypeCheckError):
        AttackResult(*[torch.zeros(2)] * 7)


def test_a_wrong_shape_is_caught_after_right_ones() -> None:
    calls = []

    @checked
    def first(x: Float[Tensor, "N K"], y: Int64[Tensor, " N"], cut: int = 0) -> Float[Tensor, " N"]:
        calls.append(cut)
        return x[cut:, 0]

    x, y = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)
    for _ in range(3):
        assert first(x, y).shape == (3,)
    assert calls == [0, 0, 0], "each call runs the function once"
    for wrong in ((x, y[:2]), (x[0], y), (x.long(), y), (x, y.float()), (x, None), (x, y, 0.5)):
        with pytest.raises(TypeCheckError, match="checking the parameters of"):
            first(*wrong)
    assert calls == [0, 0, 0], "wrong arguments do not reach the function"
    first(x, y, 0)
    for _ in range(2):
        with pytest.raises(TypeCheckError, match="checking the return value of"):
            first(x, y, 1)
    assert first(x, y, cut=0).shape == (3,)
    with pytest.raises(TypeError):
        first(x, y, sut=0)


def test_methods_properties_and_classes_are_checked() -> None:
    @checked
    @dataclass
    class Pair:
        x: Float[Tensor, " N"]
        y: Float[Tensor, " N"]

        @property
        @checked
        def total(self) -> Float[Tensor, " N"]:
            return self.x + self.y[:, None]

        @staticmethod
        @checked
        def double(x: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
            return x.repeat(2)

    pair = Pair(torch.zeros(2), torch.zeros(2))
    with pytest.raises(TypeCheckError):
        Pair(torch.zeros(2), torch.zeros(3))
    with pytest.raises(TypeCheckError):
        _ = pair.total
    with pytest.raises(TypeCheckError):
        pair.double(torch.zeros(2))


def test_the_hook_decorates_with_it() -> None:
    assert jaxtyping.jaxtyped is check_once
    assert cross_entropy.__wrapped__.__module__ == "robustly.objectives"  # type: ignore[attr-defined]
