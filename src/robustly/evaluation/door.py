"""Refuse wrong arguments of an evaluation, and threats, attacks and models that do not fit, before any work."""

import warnings
from collections.abc import Callable, Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from robustly.attacks import ATTACK_KINDS, Attack
from robustly.data import ImageData
from robustly.evaluation.curve import GivenCurve, with_curve
from robustly.evaluation.stages import EvaluationError
from robustly.evaluation.suites import as_suite
from robustly.evaluation.suites.suite import Suite
from robustly.evaluation.target import EvaluationTarget, Mode
from robustly.models import as_classifier
from robustly.threats import Affine, Chain, Threat


def as_evaluated(
    model: nn.Module | Callable[[Tensor], object],
    data: ImageData,
    threat: Threat,
    suite: Suite | str | Attack | Sequence[Attack | str],
    curve: GivenCurve,
) -> tuple[nn.Module, Threat, Suite]:
    """Model, threat and suite as `evaluate` uses them.

    Raises:
        AdapterError: as `evaluate`.
        EvaluationError: an attack is not defined for the threat, or the threat does not fit.
    """
    if isinstance(threat.extent, Tensor):
        raise EvaluationError("an evaluation has one epsilon for all examples, not one per example")
    if isinstance(threat, Chain | Affine):
        threat = threat.whole()  # evidence states limits, not shares of others
    if tuple(threat.box) != (0.0, 1.0):
        raise EvaluationError(
            f"the threat has the box {list(threat.box)}, but images are in [0, 1] here: leave the box out, and "
            "give the size in that unit, such as linf:8/255"
        )
    suite = with_curve(as_suite(suite, threat), curve, threat)
    check_fit(data, threat, suite)
    return as_classifier(model, data.first(2)), threat, suite


def check_arguments(mode: str, batch_size: int | None) -> None:
    """Refuse another mode than those of `Mode`, and a batch size below 1.

    Raises:
        EvaluationError: one of them.
    """
    if mode not in get_args(Mode):
        raise EvaluationError(f"mode is {mode!r}: use {' or '.join(get_args(Mode))}")
    if batch_size is not None and batch_size < 1:
        raise EvaluationError(f"batch_size is {batch_size}: use at least 1 image, or None to measure sizes")


def check_fit(data: ImageData, threat: Threat, suite: Suite) -> None:
    """Refuse a threat that the images or an attack of the suite are not defined for, before anything is written.

    Raises:
        EvaluationError: an attack is not defined for the threat.
        ThreatError: the threat is not defined for images of this shape.
    """
    _check_attacks(suite, threat)
    rows = torch.arange(min(1, len(data)), device=data.device)
    threat.select(rows).around(data.floats(rows))


def _check_attacks(suite: Suite, threat: Threat) -> None:
    for name, attack in suite.attacks.items():
        if not isinstance(attack, Attack):
            raise EvaluationError(
                f"the attack {name!r} lacks `needs` or `minimum_norm`: see `robustly.attacks.Attack`"
            )
        if not attack.needs.accept(threat):
            raise EvaluationError(
                f"the attack {name!r} of suite {suite.name!r} is {attack.needs.refusal(threat)}; attacks that are "
                f"defined for it: {', '.join(_defined_for(threat))}"
            )


def _defined_for(threat: Threat) -> list[str]:
    """Names of the attacks that are defined for a threat."""
    return [name for name, kind in ATTACK_KINDS.items() if kind().needs.accept(threat)]


def clean_logits(target: EvaluationTarget) -> Tensor:
    """Logits of the clean images, `(N, K)`.

    Raises:
        EvaluationError: they are NaN or infinite, differ from call to call, depend on the other images of a batch,
            or are of another number of classes.
    """
    data = target.data
    rows = torch.arange(len(data), device=data.device)
    clean = target.logits(data.floats, rows)
    first = rows[: target.batch_size]
    again = target.logits(data.floats, first)
    if bool(((again - clean[: len(first)]).abs() > 1e-4 * clean[: len(first)].abs().amax().clamp_min(1.0)).any()):
        raise EvaluationError(
            "the model's outputs for the same images differ from call to call: wrap a randomised model in "
            "robustly.attacks.adaptive.ExpectationOverTransformation, which averages over its randomness"
        )
    bad = int((~clean.isfinite().all(1)).sum())
    if bad:
        raise EvaluationError(f"the model returns NaN or infinite logits for {bad} of {len(data)} clean images")
    if clean.shape[1] != data.num_classes:
        raise EvaluationError(f"the model has {clean.shape[1]} outputs, the data {data.num_classes} classes")
    _check_batches(target, clean[: len(first)])
    return clean


def _check_batches(target: EvaluationTarget, clean: Tensor) -> None:
    """Refuse models whose outputs for an image depend on the other images; warn if they do a little.

    Networks that quantise with the range of a batch, and half precision, do a little.

    Args:
        target: the model and the images.
        clean: logits of the first batch.
    """
    few = torch.arange(min(len(clean), 8) // 2, device=clean.device)
    if len(few) < 2:
        return
    size = max(float(clean.abs().amax()), 1e-30)
    difference = float((target.logits(target.data.floats, few) - clean[: len(few)]).abs().amax()) / size
    words = "the model's outputs for an image depend on the other images of the batch, so that verdicts do too: "
    if difference > 0.05:
        raise EvaluationError(
            f"{words}layers that use statistics of the batch (BatchNorm in training mode or without running "
            "statistics) need fixed ones"
        )
    half = any(one.dtype in (torch.float16, torch.bfloat16) for one in target.model.parameters())
    if difference > (0.03 if half else 1e-3):
        warnings.warn(f"{words}they differ by {100 * difference:.2g} % of the largest logit", stacklevel=4)
