"""Situations in which an evaluation would be wrong without a word."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustly

GENERATOR = torch.Generator().manual_seed(1)
X = (torch.rand(40, 1, 4, 4, generator=GENERATOR) * 255).round() / 255
Y = (X[:, 0, 0, 0] > X[:, 0, 0, 1]).long()


class Corner(nn.Module):
    """Compares two pixels, times a number that is not in its state."""

    def __init__(self, times: float = 1.0) -> None:
        super().__init__()
        self.times = times
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        z = self.weight * self.times * (x[:, 0, 0, 0] - x[:, 0, 0, 1])
        return torch.stack([-z, z], 1)


class OfBatch(Corner):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - super().forward(x).mean(0)


class LossInTraining(Corner):
    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits.sum() if self.training else logits


class Probability(Corner):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, 1:].sigmoid()


def evaluated(model: nn.Module, data: Any = (X, Y), **settings: Any) -> robustly.Result:
    given = {
        "threat": "linf:0.1",
        "suite": "pgd_10",
        "curve": "off",
        "batch_size": 40,
        "progress": False,
    } | settings
    return robustly.evaluate(model, data, **given)


def test_outputs_that_depend_on_the_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="depend on the other images of the batch"):
        evaluated(OfBatch())


def test_a_killed_evaluation_is_not_continued_with_another_model_of_the_same_weights(tmp_path: Path) -> None:
    evaluated(Corner(1.0), checkpoint=tmp_path / "kept")
    with pytest.warns(UserWarning, match="another model: they are removed"):
        mixed = evaluated(Corner(-1.0), checkpoint=tmp_path / "kept")
    assert mixed.summary.metrics.worst_case.robust.hits == 0
    assert mixed.audit().passed


def test_a_model_given_in_training_mode_passes_the_audit_in_evaluation_mode() -> None:
    dropping = nn.Sequential(nn.Dropout(0.9), Corner())
    assert evaluated(dropping.train()).audit(dropping.eval(), (X, Y)).passed


def test_a_model_that_returns_a_loss_in_training_mode_is_evaluated() -> None:
    plain = evaluated(Corner()).summary.metrics.worst_case.robust
    assert evaluated(LossInTraining().train()).summary.metrics.worst_case.robust == plain


def test_guesses_and_single_probabilities_are_named() -> None:
    assert any("guesses among 2 classes" in words for words in evaluated(Corner(), (X, 1 - Y)).summary.warnings)
    assert evaluated(Corner()).summary.warnings == ()
    with pytest.warns(UserWarning, match="final sigmoid"):
        evaluated(Probability())


def test_the_text_of_a_result_states_its_warnings() -> None:
    assert "guesses among 2 classes" in repr(evaluated(Corner(), (X, 1 - Y)))
    assert "warnings" not in repr(evaluated(Corner()))


@pytest.mark.parametrize(
    ("mean", "words"), [(0.5, "a list with one number"), ("0.5", "a list with one number"), ([127.5], "by 255")]
)
def test_a_normalisation_of_another_form_is_named(mean: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        robustly.wrap(Corner(), mean=mean, std=mean)


def test_an_evaluation_inside_inference_mode_has_gradients() -> None:
    model = Corner()
    outside = evaluated(model)
    with torch.inference_mode():
        inside = evaluated(model)
        assert inside.audit().passed
    assert inside.summary.metrics == outside.summary.metrics


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": -3}, "at least 1 image"),
        ({"device": "gpu"}, "no device 'gpu'"),
        ({"threat": 0.03}, "give a text such as"),
    ],
)
def test_wrong_arguments_get_a_sentence(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        evaluated(Corner(), **settings)


def test_a_model_without_weights_is_named() -> None:
    class Bare(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :2]

    with pytest.warns(UserWarning, match="no weights were found"):
        evaluated(Bare())
