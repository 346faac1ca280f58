"""The audit of threats whose search does not move the image itself, and of masks."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from forging import Tensors, edit_images, problems, reseal
from torch import nn

from robustly.attacks import PGD
from robustly.data import Splits
from robustly.evaluation import EvaluationTarget, Suite, audit, evaluate
from robustly.evidence import Evidence, write_evidence
from robustly.evidence.schema import SUMMARY
from robustly.files import write_json
from robustly.threats import Threat, ThreatModel, parse_threat

SUITE = Suite("test", {"pgd": PGD(steps=10, precision="full")}, curve="pgd")
TURNED, CHAINED = parse_threat("rotation:40"), parse_threat("rotation:15+linf:0.05")
HALVED = parse_threat("rotation:30+linf:0.08").scaled(0.5)
MOVED = parse_threat("affine:rotation=30,shift=4,scale=0.2").scaled(0.5)
RIGHT_HALF = torch.arange(28) >= 14
MASKED = ThreatModel("linf", 0.25, mask=RIGHT_HALF.expand(28, 28).clone())


_EVALUATED: dict[str, Evidence] = {}


def evaluated(net: nn.Module, digits: Splits, threat: Threat, folder: Path) -> EvaluationTarget:
    target = EvaluationTarget(net, digits.test.select(torch.arange(60)), threat)
    if str(threat) not in _EVALUATED:
        _EVALUATED[str(threat)] = evaluate(net, target.data, threat, SUITE, curve_count=20)
    write_evidence(_EVALUATED[str(threat)], folder)
    return target


@pytest.mark.slow
@pytest.mark.parametrize("threat", [TURNED, CHAINED, HALVED, MOVED, MASKED], ids=str)
def test_honest_evidence_passes(digit_net: nn.Module, digits: Splits, tmp_path: Path, threat: Threat) -> None:
    result = audit(tmp_path, evaluated(digit_net, digits, threat, tmp_path), SUITE)
    assert result.passed, problems(result)


def turn_further(images: Tensors) -> None:
    images["pgd.theta"][:] = 45.0


def turn_otherwise(images: Tensors) -> None:
    images["pgd.theta"] = -images["pgd.theta"]


def repaint(images: Tensors) -> None:
    images["pgd.images"][0, 0, :3] = 1.0


def without_parameters(images: Tensors) -> None:
    del images["pgd.theta"]


def other_shape(images: Tensors) -> None:
    images["pgd.theta"] = np.zeros((len(images["pgd.ids"]), 3), np.float32)


def no_number(images: Tensors) -> None:
    images["pgd.theta"][0] = np.nan


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [turn_further, turn_otherwise, repaint, without_parameters, other_shape, no_number]
)
@pytest.mark.parametrize("threat", [TURNED, CHAINED], ids=str)
def test_forged_parameters_fail(
    digit_net: nn.Module, digits: Splits, tmp_path: Path, threat: Threat, change: Callable[[Tensors], None]
) -> None:
    target = evaluated(digit_net, digits, threat, tmp_path)
    edit_images(tmp_path, change)
    reseal(tmp_path)
    assert "pgd: images" in problems(audit(tmp_path, target, SUITE))


@pytest.mark.slow
def test_an_image_that_changes_forbidden_pixels_fails(digit_net: nn.Module, digits: Splits, tmp_path: Path) -> None:
    def change_the_left_half(images: Tensors) -> None:
        images["pgd.images"][0, 0, :, 3] += 0.02

    target = evaluated(digit_net, digits, MASKED, tmp_path)
    edit_images(tmp_path, change_the_left_half)
    reseal(tmp_path)
    assert "inside the threat set" in problems(audit(tmp_path, target, SUITE))


@pytest.mark.slow
def test_a_stored_mask_that_is_not_the_stated_one_is_refused(
    digit_net: nn.Module, digits: Splits, tmp_path: Path
) -> None:
    def allow_everything(images: Tensors) -> None:
        (name,) = (name for name in images if name.startswith("threat."))
        images[name][:] = True

    target = evaluated(digit_net, digits, MASKED, tmp_path)
    edit_images(tmp_path, allow_everything)
    reseal(tmp_path)
    assert str(MASKED) in problems(audit(tmp_path, target, SUITE))


@pytest.mark.slow
def test_evidence_without_its_mask_is_refused(digit_net: nn.Module, digits: Splits, tmp_path: Path) -> None:
    def forget(images: Tensors) -> None:
        (name,) = (name for name in images if name.startswith("threat."))
        del images[name]

    target = evaluated(digit_net, digits, MASKED, tmp_path)
    edit_images(tmp_path, forget)
    reseal(tmp_path)
    assert MASKED.mask_digest in problems(audit(tmp_path, target, SUITE))


def halved(images: Tensors) -> None:
    images["pgd.images"] = images["pgd.images"][:, :, :14, :14]


def flattened(images: Tensors) -> None:
    images["pgd.images"] = images["pgd.images"].reshape(len(images["pgd.images"]), -1)


def in_double(images: Tensors) -> None:
    images["pgd.images"] = images["pgd.images"].astype(np.float64)


def theta_in_double(images: Tensors) -> None:
    images["pgd.theta"] = images["pgd.theta"].astype(np.float64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("threat", "change"),
    [(MASKED, halved), (MASKED, flattened), (MASKED, in_double), (TURNED, halved), (TURNED, theta_in_double)],
)
def test_tensors_of_another_shape_or_type_fail(
    digit_net: nn.Module, digits: Splits, tmp_path: Path, threat: Threat, change: Callable[[Tensors], None]
) -> None:
    target = evaluated(digit_net, digits, threat, tmp_path)
    edit_images(tmp_path, change)
    reseal(tmp_path)
    assert "14, 14" in (found := problems(audit(tmp_path, target, SUITE))) or "784" in found or "float64" in found


@pytest.mark.slow
def test_a_smaller_threat_than_the_one_evaluated_fails(
    digit_net: nn.Module, digits: Splits, tmp_path: Path
) -> None:
    target = evaluated(digit_net, digits, TURNED, tmp_path)
    summary = json.loads((tmp_path / SUMMARY).read_text())
    summary["threat"]["text"] = "rotation:10"
    write_json(tmp_path / SUMMARY, summary)
    assert "inside the threat set" in problems(audit(tmp_path, target, SUITE))
