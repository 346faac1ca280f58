"""Attacks and proofs for any model on any images, by one function."""

from collections.abc import Sequence
from pathlib import Path

import torch

from robustly.api.evaluating import evaluate, parsed_threat
from robustly.api.fitting import Model
from robustly.api.result import Result
from robustly.attacks import Attack
from robustly.certification.certificates import BoundCertificate
from robustly.certification.problem import Method
from robustly.evaluation import Suite
from robustly.evaluation.suites import as_suite
from robustly.evaluation.suites.certified import with_certificate
from robustly.evaluation.target import Progress
from robustly.threats import Threat


def certify(
    model: Model,
    data: object,
    threat: Threat | str = "linf:8/255",
    method: Method = "auto",
    *,
    count: int | None = None,
    seconds: float | None = None,
    suite: Suite | Attack | str | Sequence[Attack | str] = "quick",
    halvings: int = BoundCertificate.halvings,
    classes: Sequence[str] | None = None,
    round_to_8_bits: bool = False,
    device: torch.device | str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    checkpoint: str | Path | None = None,
    progress: bool | Progress = True,
) -> Result:
    """Attack a model and prove the rest: each image is falsified, verified or open, as `result.interval` counts.

    A proof speaks of real arithmetic over the stored weights: no input in the threat set changes the prediction.

    Args:
        model: as for `evaluate`; its operations must be among those that can be bounded (docs/operations.md).
        data: as for `evaluate`.
        threat: an Lp ball (linf, l2, l1 or l0), as a value or text such as "linf:0.1".
        method: "ibp", "crown", "alpha_crown", "auto" (all of these, then branch and bound) or "bab".
        count: number of images, from the first; None for all.
        seconds: time for the branch and bound of all images together; None for no limit. The bounds before it
            always run.
        suite: attacks that run before the proofs, as for `evaluate`.
        halvings: steps of the bisection that finds the certified radius of each image; 0 for none.
        checkpoint: folder of finished attacks and proofs, so that a killed call continues; None for none.

    The other arguments are those of `evaluate`. `result.proofs` has a row for each image: verdict, certified
    radius, bound, stage and reason.

    Raises:
        ValueError: as `evaluate`; an operation that cannot be bounded, or a threat that is not an Lp ball.
    """
    certificate = BoundCertificate(method, halvings=halvings, seconds=seconds)
    attacks = with_certificate(as_suite(suite, parsed_threat(threat)), certificate)
    return evaluate(
        model,
        data,
        threat,
        attacks,
        classes=classes,
        count=count,
        round_to_8_bits=round_to_8_bits,
        device=device,
        seed=seed,
        batch_size=batch_size,
        checkpoint=checkpoint,
        progress=progress,
    )
