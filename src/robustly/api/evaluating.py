"""Evaluation of any model on any images, by one function."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from robustly.api.fitting import Model, fit
from robustly.api.progress import evaluation_progress
from robustly.api.result import Result
from robustly.attacks import Attack
from robustly.data import as_image_data
from robustly.evaluation import PROTOCOLS, EvaluationTarget, Suite
from robustly.evaluation import evaluate as run_evaluation
from robustly.evaluation.diagnostics import diagnose as run_diagnostics
from robustly.evaluation.suites import as_suite
from robustly.evaluation.target import Mode, Progress
from robustly.evidence import Finding
from robustly.threats import Threat, ThreatError, parse_threat

DEFAULT = "linf:8/255"
"""Threat of an evaluation that names none."""


def evaluate(
    model: Model,
    data: object,
    threat: Threat | str = DEFAULT,
    suite: Suite | Attack | str | Sequence[Attack | str] = "standard",
    *,
    classes: Sequence[str] | None = None,
    count: int | None = None,
    round_to_8_bits: bool = False,
    device: torch.device | str | None = None,
    mode: Mode = "every",
    seed: int = 0,
    batch_size: int | None = None,
    curve: Sequence[float | str] | str | None = None,
    curve_count: int | None = 500,
    checkpoint: str | Path | None = None,
    progress: bool | Progress = True,
) -> Result:
    """Attack a model on labelled images, and return the result: numbers, rows, adversarial images.

    Args:
        model: a network or function from images in [0, 1] to logits; see `robustly.models.as_classifier`. One that
            expects normalised images is wrapped first: `robustly.wrap(model, mean=..., std=...)`.
        data: `(images, labels)` as tensors or arrays, a torch `Dataset` or `DataLoader`, a data set of Hugging
            Face, `ImageData`, or a path; see `robustly.data.as_image_data`.
        threat: the allowed perturbations, as a value or text such as "linf:8/255", "l2:0.5", "rotation:30".
        suite: name of a suite ("quick", "standard", "strong", ...) or attack, a suite, an attack, or several.
            Suites of several threats, such as "unforeseen", give the attacks for this threat.
        classes: class names in the order of the model's outputs, where the data have other or fewer ones.
        count: number of examples, from the first; None for all.
        round_to_8_bits: True rounds images to multiples of 1/255; otherwise other values are refused.
        device: where to run; None for the device of the model. The model is not moved.
        mode: "every" runs every attack on every correctly classified example, "worst_case" on unbroken ones only.
        seed: seed of every random number.
        batch_size: images per batch; None measures two or three sizes.
        curve: "off", "on", sizes of the threat or shares of its size (["50%", "100%"]); None takes the curve of the
            suite.
        curve_count: number of examples of the security curve; None for all.
        checkpoint: folder of finished attacks, so that a killed evaluation continues; None keeps them in memory.
        progress: True shows a bar in terminals and notebooks, and a line every half minute elsewhere; or a callback
            with (name, done, total).

    Raises:
        ValueError: a model, data, threat or suite that is invalid or does not fit the others; the sentence states
            which and why. `AdapterError`, `EvaluationError`, `ThreatError` and others are kinds of it.
    """
    parsed = parsed_threat(threat)
    attacks = as_suite(suite, parsed)
    if isinstance(suite, str) and suite in PROTOCOLS and threat == DEFAULT:
        # the caller may have named no threat, and expect those of the suite
        warnings.warn(
            f"the suite {suite} has several threats, and this is its evaluation under {DEFAULT} alone: "
            f"robustly.evaluation.PROTOCOLS[{suite!r}].threats(shape) lists them, and robustly evaluate RUN "
            f"--suite {suite} evaluates all",
            stacklevel=2,
        )
    with torch.inference_mode(False):  # gradients are refused in it
        images = as_image_data(data, classes=classes, round_to_8_bits=round_to_8_bits, limit=count)
        adapted, images = fit(model, images, device)
        with evaluation_progress(Console(stderr=True, quiet=progress is not True)) as shown:
            evidence = run_evaluation(
                adapted,
                images,
                parsed,
                attacks,
                mode=mode,
                seed=seed,
                batch_size=batch_size,
                curve=curve,
                curve_count=curve_count,
                checkpoint=None if checkpoint is None else Path(checkpoint),
                progress=shown if isinstance(progress, bool) else progress,
            )
        return Result.of(evidence, adapted, images, attacks)


def curve(
    model: Model,
    data: object,
    threat: Threat | str,
    radii: Sequence[float | str] | str,
    attack: Attack | str = "apgd",
    *,
    classes: Sequence[str] | None = None,
    count: int | None = None,
    round_to_8_bits: bool = False,
    device: torch.device | str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool | Progress = True,
) -> Result:
    """Accuracy under one attack at several sizes of a threat.

    Args:
        radii: sizes of the threat, in its unit, such as [1 / 255, 2 / 255] or "1/255, 2/255".
        attack: the attack of every size; of a minimum-norm attack, one run gives all sizes.

    The other arguments are those of `evaluate`. The result also has the evaluation at the size of the threat;
    `result.summary.metrics.security_curve` has the points, and `result.plot()` draws them.

    Raises:
        ValueError: as `evaluate`.
    """
    return evaluate(
        model,
        data,
        threat,
        attack,
        classes=classes,
        count=count,
        round_to_8_bits=round_to_8_bits,
        device=device,
        seed=seed,
        batch_size=batch_size,
        curve=radii,
        curve_count=None,
        progress=progress,
    )


def diagnose(
    model: Model,
    data: object,
    threat: Threat | str = "linf:8/255",
    *,
    classes: Sequence[str] | None = None,
    count: int | None = 200,
    round_to_8_bits: bool = False,
    device: torch.device | str | None = None,
    seed: int = 0,
    batch_size: int = 250,
) -> list[Finding]:
    """Test whether gradient masking inflates the robust accuracy of a model.

    Arguments as for `evaluate`; `docs/diagnostics.md` lists the tests.

    Raises:
        ValueError: as `evaluate`.
    """
    parsed = parsed_threat(threat)
    with torch.inference_mode(False):  # gradients are refused in it
        images = as_image_data(data, classes=classes, round_to_8_bits=round_to_8_bits, limit=count)
        adapted, images = fit(model, images, device)
        return run_diagnostics(EvaluationTarget(adapted, images, parsed, seed, batch_size), count=len(images))


def parsed_threat(given: object) -> Threat:
    """A threat from a threat or its text.

    Raises:
        ThreatError: an unknown or invalid threat.
    """
    if isinstance(given, str):
        return parse_threat(given)
    if not isinstance(given, Threat):
        raise ThreatError(f"the threat is {given!r}: give a text such as 'linf:8/255', or a threat")
    return given
