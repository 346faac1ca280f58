"""The shape annotations are really checked while the tests run."""

import pytest
import torch
from jaxtyping import TypeCheckError

from robustly.objectives import ClassificationGoal, cross_entropy


def test_a_wrong_shape_is_caught() -> None:
    with pytest.raises(TypeCheckError):
        ClassificationGoal(torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(TypeCheckError):
        cross_entropy(torch.zeros(3), ClassificationGoal(torch.zeros(3, dtype=torch.int64)))
