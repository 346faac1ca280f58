"""Evaluation under corruptions: predictions, continuation, and an audit that finds changes."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from robustly.corruptions import STANDARD, CorruptionError, corrupt
from robustly.corruptions.mnist_c import MNIST_C, corrupt_digits
from robustly.data import ImageData, Splits
from robustly.evaluation import EvaluationError, EvaluationTarget
from robustly.evaluation.audit.corruptions import audit_corruptions
from robustly.evaluation.audit.sampling import Sampling
from robustly.evaluation.corrupted import (
    CorruptionSource,
    chosen_names,
    computed_source,
    corruption_result,
    digit_source,
    predict_corrupted,
)
from robustly.evidence.corruption_predictions import CorruptionPredictions
from robustly.evidence.corruption_result import CorruptedImages, CorruptionResult, compared
from robustly.statistics import Proportion
from robustly.threats import ThreatModel

NAMES = ("gaussian_noise", "contrast")


@pytest.fixture
def target(digits: Splits, digit_net: nn.Module) -> EvaluationTarget:
    return EvaluationTarget(digit_net, digits.test.select(torch.arange(30)), ThreatModel("linf", 0.1), 3, 8)


def test_cells_are_the_accuracies_on_corrupted_images(target: EvaluationTarget, digit_net: nn.Module) -> None:
    source = computed_source(target.data, 3)
    found = predict_corrupted(target, source, NAMES)
    result = corruption_result(found, target, source, "net")
    assert [row.name for row in result.rows] == list(NAMES)
    data = target.data
    corrupted = corrupt(data.images, "contrast", 5, seed=3, ids=data.ids)
    with torch.no_grad():
        right = int((digit_net(corrupted.float() / 255).argmax(1) == data.labels).sum())
    assert result.rows[1].cells[4].accuracy.hits == right
    assert result.clean == found.clean_accuracy
    assert result.mean is None  # two of fifteen corruptions
    assert "procedural" in result.images.words.lower()


def test_predictions_do_not_depend_on_the_batch_size(target: EvaluationTarget) -> None:
    source = computed_source(target.data, 3)
    one, other = (predict_corrupted(replace(target, batch_size=size), source, NAMES[:1]) for size in (7, 30))
    for cell, predicted in one.cells.items():
        assert np.array_equal(predicted, other.cells[cell])


def test_a_second_call_continues_and_another_seed_begins_again(target: EvaluationTarget) -> None:
    kept: list[CorruptionPredictions] = []
    source = computed_source(target.data, 3)
    predict_corrupted(target, source, NAMES[:1], keep=kept.append)
    assert [len(one.cells) for one in kept] == [1, 2, 3, 4, 5]
    read: list[tuple[str, int]] = []

    def noted(name: str, severity: int) -> ImageData:
        read.append((name, severity))
        return source.read(name, severity)

    again = predict_corrupted(target, replace(source, read=noted), NAMES, earlier=kept[2])
    assert read == [
        ("gaussian_noise", 4),
        ("gaussian_noise", 5),
        *(("contrast", severity) for severity in range(1, 6)),
    ]
    assert len(again.cells) == 10
    assert np.array_equal(again.cells["gaussian_noise", 5], kept[4].cells["gaussian_noise", 5])
    other = predict_corrupted(target, computed_source(target.data, 4), NAMES[:1], earlier=kept[4])
    assert other.identity != kept[4].identity
    assert other.hashes["gaussian_noise", 1] != kept[4].hashes["gaussian_noise", 1]


def test_outputs_that_are_not_finite_count_as_wrong(target: EvaluationTarget) -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full((len(x), 10), torch.nan)

    broken = replace(target, model=Broken())
    found = predict_corrupted(broken, computed_source(target.data, 0), NAMES[:1])
    assert found.clean_accuracy.hits == 0
    assert set(found.cells["gaussian_noise", 1].tolist()) == {-1}


def test_the_audit_passes_and_finds_each_change(target: EvaluationTarget) -> None:
    source = computed_source(target.data, 3)
    found = predict_corrupted(target, source, NAMES[:1])
    stated = corruption_result(found, target, source, "net")

    def problems(**changed: object) -> list[str]:
        given: dict[str, object] = {"stated": stated, "found": found, "target": target, "source": source, **changed}
        return [check.name for check in audit_corruptions(**given) if not check.passed]  # type: ignore[arg-type]

    assert problems() == []
    row = stated.rows[0]
    better = replace(row.cells[0], accuracy=replace(row.cells[0].accuracy, hits=30, count=31))
    lie = replace(stated, rows=(replace(row, cells=(better, *row.cells[1:])),))
    assert problems(stated=lie) == ["the numbers follow from the predictions"]
    raised = replace(row, mean=replace(row.mean, accuracy=row.mean.accuracy + 0.01))
    assert problems(stated=replace(stated, rows=(raised,))) == ["the numbers follow from the predictions"]
    cell = ("gaussian_noise", 2)
    wrong = found.cells[cell].copy()
    wrong[4] = (wrong[4] + 1) % 10
    tampered = replace(found, cells={**found.cells, cell: wrong})
    restated = corruption_result(tampered, target, source, "net")
    assert problems(found=tampered, stated=restated) == ["predictions on 30 images under every corruption"]
    other = computed_source(target.data, 9)
    assert "weights, clean images and corrupted images are those of the predictions" in problems(source=other)
    other_hash = replace(found, hashes={**found.hashes, cell: "0" * 64})
    restated = corruption_result(other_hash, target, source, "net")
    assert problems(found=other_hash, stated=restated) == ["the corrupted images are the same"]


def test_labels_of_predictions_are_those_of_the_data(target: EvaluationTarget) -> None:
    source = computed_source(target.data, 3)
    found = predict_corrupted(target, source, NAMES[1:])
    worst = found.cells["contrast", 5]
    assert (worst != found.labels).any()
    for forged, where in (
        (replace(found, labels=worst), "labels and ids of the corrupted images"),
        (replace(found, clean_labels=found.clean), "labels of the clean images, and predictions on them"),
        (replace(found, ids=found.ids[::-1].copy()), "labels and ids of the corrupted images"),
    ):
        if np.array_equal(forged.clean_labels, found.clean_labels) and where.startswith("labels of the clean"):
            pytest.skip("the network is right on every clean image")
        stated = corruption_result(forged, target, source, "net")
        failed = [check.name for check in audit_corruptions(stated, forged, target, source) if not check.passed]
        assert failed == [where]


def test_every_audit_of_corruptions_draws_other_images(target: EvaluationTarget) -> None:
    source = computed_source(target.data, 3)
    found = predict_corrupted(target, source, NAMES[:1])
    stated = corruption_result(found, target, source, "net")
    batches: list[tuple[float, ...]] = []

    def note(_: nn.Module, inputs: tuple[torch.Tensor, ...], __: object) -> None:
        batches.append(tuple(inputs[0].flatten(1).sum(1).tolist()))

    whole, few, samples = replace(target, batch_size=30), Sampling(0.5, 0.6), set()
    hook = target.model.register_forward_hook(note)
    try:
        for _ in range(5):
            assert all(check.passed for check in audit_corruptions(stated, found, whole, source, few))
            samples.add(batches[-1])
    finally:
        hook.remove()
    assert len(samples) > 1


def test_errors_relative_to_another_model_are_computed_again(target: EvaluationTarget) -> None:
    source = computed_source(target.data, 3)
    found = predict_corrupted(target, source, NAMES[1:])
    own = corruption_result(found, target, source, "net")
    none_right = replace(found, cells=dict.fromkeys(found.cells, (found.labels + 1) % 10))
    other = corruption_result(none_right, target, source, "other")
    honest = replace(own, reference=compared(own, other, "other"))
    assert honest.reference is not None
    forged = replace(honest, reference=replace(honest.reference, mce=0.01))

    def outcome(stated: CorruptionResult, reference: CorruptionResult | None) -> tuple[bool, str]:
        checks = audit_corruptions(stated, found, target, source, reference=reference)
        (one,) = (check for check in checks if check.name.startswith("the errors relative to other"))
        return one.passed, one.note

    assert outcome(honest, other) == (True, "")
    assert outcome(forged, other) == (False, "")
    assert outcome(forged, own)[0] is False
    assert outcome(forged, None)[0] is True
    assert outcome(forged, None)[1].startswith("stated, not checked")


def test_a_severity_that_does_not_exist_is_refused(target: EvaluationTarget) -> None:
    source = computed_source(target.data, 3)
    found = predict_corrupted(target, source, NAMES[1:])
    forged = found.with_cell(("contrast", 0), found.labels, "0" * 64)
    stated = corruption_result(forged, target, source, "net")
    wrong = [check for check in audit_corruptions(stated, forged, target, source) if not check.passed]
    assert [(check.name, check.problem) for check in wrong] == [("the corruptions exist", "contrast 0 does not")]


def test_choices_are_checked_by_name(digits: Splits) -> None:
    source = computed_source(digits.test, 0)
    assert "saturate" not in source.names
    grey = digits.test.shape
    assert chosen_names(source, None, False, grey) == list(STANDARD)
    assert chosen_names(source, ("fog", "contrast"), False, grey) == ["fog", "contrast"]
    assert chosen_names(source, ("fog",), True, grey) == ["fog", "speckle_noise", "gaussian_blur", "spatter"]
    with pytest.raises(CorruptionError, match="no corruption 'rain'"):
        chosen_names(source, ("rain",), False, grey)
    with pytest.raises(CorruptionError, match="saturate needs colour images"):
        chosen_names(source, ("saturate",), False, grey)
    files = CorruptedImages("files", "/data/c", "0" * 64, None, None)
    only_extra = CorruptionSource(files, ("saturate",), source.kinds, source.read)
    with pytest.raises(EvaluationError, match="/data/c has no images of fog: it has saturate"):
        chosen_names(only_extra, ("fog",), False, grey)
    with pytest.raises(EvaluationError, match="none of the 15 corruptions, only saturate: add --extra"):
        chosen_names(only_extra, None, False, grey)


def test_the_corruptions_of_digits_have_one_severity(target: EvaluationTarget, digit_net: nn.Module) -> None:
    source = digit_source(target.data, 3)
    names = chosen_names(source, None, False, target.data.shape)
    assert sorted(names) == sorted(MNIST_C)
    found = predict_corrupted(target, source, names)
    result = corruption_result(found, target, source, "net")
    assert [row.name for row in result.rows] == names
    assert all([cell.severity for cell in row.cells] == [1] for row in result.rows)
    data = target.data
    for row in result.rows:
        digits = corrupt_digits(data.images, row.name, seed=3, ids=data.ids)
        with torch.no_grad():
            right = int((digit_net(digits.float() / 255).argmax(1) == data.labels).sum())
        (cell,) = row.cells
        assert cell.accuracy == Proportion(right, 30)
        assert (row.mean.accuracy, row.mean.low) == (cell.accuracy.share, cell.accuracy.low)
    assert result.mean is not None
    assert result.mean.accuracy == pytest.approx(np.mean([row.mean.accuracy for row in result.rows]))
    assert result.mean_words == "15"
    assert [row.name for row in result.rows if row.procedural] == ["motion_blur"]
    own = compared(result, result, "itself").mce
    assert own == pytest.approx(1.0) or own is None  # without an error under a corruption it is not defined
    assert all(check.passed for check in audit_corruptions(result, found, target, source))
    fewer = corruption_result(predict_corrupted(target, source, names[:14]), target, source, "net")
    assert fewer.mean is None


@pytest.mark.parametrize(
    ("forged", "problem"),
    [
        (lambda row: {"family": "weather"}, "the rows are not those"),
        (lambda row: {"extra": True}, "the rows are not those"),
        (lambda row: {"procedural": not row.procedural}, "the rows are not those"),
        (lambda row: {"cells": (replace(row.cells[0], severity=2),)}, "the rows are not those"),
        (lambda row: {"mean": replace(row.mean, accuracy=1.0)}, "a mean is 1.000000"),
    ],
    ids=["family", "extra", "procedural", "severity", "mean"],
)
def test_forged_rows_of_digits_are_found(target: EvaluationTarget, forged: Any, problem: str) -> None:
    source = digit_source(target.data, 3)
    found = predict_corrupted(target, source, ["zigzag"])
    honest = corruption_result(found, target, source, "net")
    rows = (replace(honest.rows[0], **forged(honest.rows[0])),)
    problems = [check.problem for check in audit_corruptions(replace(honest, rows=rows), found, target, source)]
    assert any(problem in one for one in problems), problems


def test_another_set_or_name_is_found(target: EvaluationTarget) -> None:
    source = digit_source(target.data, 3)
    found = predict_corrupted(target, source, ["zigzag"])
    honest = corruption_result(found, target, source, "net")
    renamed = audit_corruptions(honest, found, target, source, name="other")
    assert [check.passed for check in renamed[:2]] == [True, False]
    # the same predictions under the name of the other set
    assert not audit_corruptions(honest, found, target, computed_source(target.data, 3))[0].passed


def test_the_corruptions_of_digits_refuse_other_images_and_names(target: EvaluationTarget) -> None:
    colour = replace(target.data, images=target.data.images.expand(-1, 3, -1, -1))
    with pytest.raises(CorruptionError, match="grey images of 28 x 28 pixels, got 3 x 28 x 28"):
        digit_source(colour, 0)
    with pytest.raises(CorruptionError, match="got 1 x 20 x 28"):
        digit_source(replace(target.data, images=target.data.images[:, :, :20]), 0)
    source = digit_source(target.data, 0)
    with pytest.raises(EvaluationError, match="MNIST-C has no corruption 'snow'"):
        chosen_names(source, ["snow"], False, target.data.shape)
    with pytest.raises(EvaluationError, match="MNIST-C has no further corruptions: leave out --extra"):
        chosen_names(source, None, True, target.data.shape)
