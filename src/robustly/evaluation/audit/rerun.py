"""Attack and certify again what an evaluation says stood, or was proved."""

import math
import secrets
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from robustly.attacks import Attack
from robustly.evaluation.audit.check import Check
from robustly.evaluation.confirmation import broken_by
from robustly.evaluation.evidence import CURVE, Evidence
from robustly.evaluation.suites.suite import Suite
from robustly.evaluation.target import EvaluationTarget, no_progress, run_certificate
from robustly.randomness import shuffled

_RERUN_PASSES = 300  # attacks that cost more passes per image are run again on fewer
_RERUN_SHARE = 0.02  # of the examples attacked again, the share that rounding may let fall


def again(evidence: Evidence, target: EvaluationTarget, suite: Suite, count: int) -> Iterator[Check]:
    """Attack some standing examples again, all that are said to have had no answer, and certify all again.

    Which ones is drawn anew in every audit, so that nobody can hide rows where it does not look.
    """
    table = evidence.table
    for name, attack in suite.attacks.items():
        if f"{name}.tried" not in table:
            continue  # the suite differs, which has its own check
        unbroken = table[f"{name}.tried"] & ~table[f"{name}.broken"]
        passes = (table[f"{name}.forwards"] + table[f"{name}.backwards"])[unbroken].double()
        affordable = math.ceil(
            count * min(1.0, _RERUN_PASSES / float(passes.mean().nan_to_num(1.0).clamp_min(1.0)))
        )
        fallen, tried = _attacked_again(target, attack, name, _drawn(unbroken, affordable))
        yield Check(
            f"{name}: {tried} of {int(unbroken.sum())} standing examples attacked again",
            f"{fallen} fell" if fallen > max(1, math.floor(_RERUN_SHARE * tried)) else "",
        )
        invalid = table[f"{name}.invalid"].nonzero()[:, 0]
        if len(invalid):
            fallen, tried = _attacked_again(target, attack, name, invalid)
            yield Check(
                f"{name}: {tried} examples without answer attacked again",
                "" if fallen == tried else "some have one",
            )
    curve = suite.attacks.get(suite.curve or "")
    if evidence.summary["security_curve"] is not None and curve is not None:
        distance = table[f"{CURVE}.distance"]
        worst = 0
        for radius in evidence.summary["security_curve"]["epsilon"][1:]:
            there = replace(target, threat=target.threat.with_epsilon(radius))
            sample = _drawn(distance > radius + 1e-6, max(1, count // 4))
            fallen, tried = _attacked_again(there, curve, suite.curve or "", sample)
            worst = max(worst, fallen - max(1, math.floor(_RERUN_SHARE * tried)))
        yield Check(
            "security curve: standing examples attacked again",
            "more fell than rounding explains" if worst > 0 else "",
        )
    for name, certificate in suite.certificates.items():
        if f"certificate.{name}.radius" not in table:
            continue
        found = run_certificate(target, certificate, name, no_progress)
        radius, prediction = found.radius.cpu(), found.prediction.cpu()
        stated = table[f"certificate.{name}.radius"]
        wrong = ~torch.isclose(stated, radius, rtol=1e-4, atol=1e-6) | (
            table[f"certificate.{name}.prediction"] != prediction
        )
        yield Check(f"certificate {name}", f"{int(wrong.sum())} do not come out again" if wrong.any() else "")


def _drawn(mask: Tensor, count: int) -> Tensor:
    """Up to `count` rows of a mask, by a fresh draw from the operating system."""
    rows = mask.nonzero()[:, 0]
    return rows[shuffled(len(rows), secrets.randbits(62))[:count]].sort().values


def _attacked_again(target: EvaluationTarget, attack: Attack, name: str, sample: Tensor) -> tuple[int, int]:
    """How many of some rows an attack breaks, and how many there were."""
    return int(broken_by(target, attack, sample.to(target.data.images.device), name).sum()), len(sample)
