"""Run diagnostics for gradient masking, and derive their consequences.

The tests are those of Carlini et al., "On evaluating adversarial robustness" (arXiv 1902.06705), Athalye, Carlini
and Wagner (ICML 2018, sec. 3.1), Pintor et al. ("Indicators of attack failure", NeurIPS 2022), and those of
AutoAttack (Croce and Hein, ICML 2020, released code). `docs/diagnostics.md` has the table.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np
from torch import Tensor

from robustly.evaluation.diagnostics.attack_checks import ATTACKING, attempted
from robustly.evaluation.diagnostics.forced_routes import FORCED_ROUTES, forced_routes_break_no_more, has_domains
from robustly.evaluation.diagnostics.model_checks import (
    blocked_gradient,
    constant_output,
    dynamic,
    eval_mode,
    linearity,
    nan_logits,
    quantised_input,
    randomized,
    softmax_output,
    vanishing_gradients,
    zero_gradient,
)
from robustly.evaluation.diagnostics.probe import Budget, Probe
from robustly.evaluation.parts import Arrays, Task, Work, as_bytes, from_bytes
from robustly.evaluation.target import EvaluationTarget
from robustly.evidence import Finding

__all__ = [
    "ALL",
    "CHEAP",
    "MASKING",
    "Budget",
    "cheap_findings",
    "diagnose",
    "masking_suspected",
]

Test = Callable[[Probe], Finding]

_FLAGS: dict[str, Test] = {
    "nan_logits": nan_logits,
    "constant_output": constant_output,
    "randomized": randomized,
    "eval_mode": eval_mode,
    "softmax_output": softmax_output,
    "dynamic": dynamic,
    "blocked_gradient": blocked_gradient,
    "zero_gradient": zero_gradient,
    "quantised_input": quantised_input,
}
DIAGNOSTIC = "diagnostic"
"""Kind of the tasks whose parts are tests."""
QUICK = Budget(steps=10)
"""Budget of `cheap_findings`: ten steps break a network that resists a single step only."""
_OF_D11 = ("randomized", "dynamic", "quantised_input")


def together(probe: Probe) -> Finding:
    """D11: properties that need an adaptive attack: randomness, test-time optimisation, quantisation."""
    found = [name for name in _OF_D11 if _FLAGS[name](probe).passed is False]
    words = f"The model needs adaptive attacks: {', '.join(found)}." if found else "None of these was found."
    title = "no randomness, no test-time optimisation, no quantisation"
    return Finding("D11", title, not found, float(len(found)), "0 flags", words)


_WITHOUT_ATTACKS: dict[str, Test] = _FLAGS | {"D6": vanishing_gradients, "D11": together, "D12": linearity}
_OVERFITTING = "catastrophic_overfitting"
ALL: tuple[str, ...] = (*_FLAGS, _OVERFITTING, *(f"D{number}" for number in range(1, 13)))
CHEAP: tuple[str, ...] = tuple(name for name in ALL if name in _WITHOUT_ATTACKS or name == _OVERFITTING)
MASKING: tuple[str, ...] = (
    *("D1", "D2", "D3", "D4", "D5", "D6", "D7", "D10"),
    *("randomized", "dynamic", "blocked_gradient", "zero_gradient", "quantised_input", _OVERFITTING),
)


def diagnose(
    target: EvaluationTarget, *, count: int = 200, tests: Sequence[str] = ALL, budget: Budget | None = None
) -> list[Finding]:
    """Test whether gradient attacks on a model miss adversarial examples.

    With all tests, a network with threat domains (TaFD) is also tested by `forced_routes`, the last finding.

    Randomised models are allowed, unlike in an evaluation. Some tests are undecided for them.

    Args:
        target: the model, the data, the threat.
        count: number of images, from the first; at least 1.
        tests: ids from `ALL`; findings have the same order.
        budget: budget of the expensive tests.

    Raises:
        ValueError: an unknown test, or fewer than one image.
    """
    for name in tests:
        if name not in ALL:
            raise ValueError(f"there is no diagnostic {name!r}: there are {', '.join(ALL)}")
    if count < 1:
        raise ValueError(f"diagnostics need at least 1 image, got {count}")
    if isinstance(target.threat.extent, Tensor):
        raise ValueError("diagnostics have one epsilon for all images, not one per image")
    if tuple(tests) == ALL and has_domains(target.model):
        tests = (*tests, FORCED_ROUTES)
    parts = target.crew.share(
        Task(DIAGNOSTIC, extent=target.threat.extent_text),
        [{"test": as_bytes(name), "count": np.array([count])} for name in tests],
        test_work(target, count, budget or Budget()),
    )
    return [Finding(**from_bytes(part["finding"])) for part in parts]


def test_work(target: EvaluationTarget, count: int, budget: Budget) -> Work:
    """The work of a process on tests, of which each is a part.

    Args:
        target: the model, the data, the threat.
        count: number of images, from the first.
        budget: budget of the expensive tests.
    """
    probe = Probe(target, count, budget)

    def work(part: Arrays) -> Arrays:
        name = from_bytes(part["test"])
        if name == FORCED_ROUTES:
            finding = attempted(name, forced_routes_break_no_more, probe)
        elif name in ATTACKING:
            finding = attempted(name, ATTACKING[name], probe)
        else:
            finding = _WITHOUT_ATTACKS[name](probe)
        return {"finding": as_bytes(asdict(finding))}

    return work


def cheap_findings(target: EvaluationTarget) -> list[Finding]:
    """Run the cheap tests, at most 40 passes for each of the first images that are classified correctly.

    A quarter of the images is tested, at least 50 and at most 200, so that the tests of a small job stay a small
    part of it. `benchmarks/diagnostics_matrix.py` measures which defects 50 images show.
    """
    return diagnose(target, count=_cheap_count(target), tests=CHEAP, budget=QUICK)


def cheap_work(target: EvaluationTarget) -> Work:
    """The work of a process on the tests of `cheap_findings`."""
    return test_work(target, _cheap_count(target), QUICK)


def _cheap_count(target: EvaluationTarget) -> int:
    return min(200, max(50, len(target.data) // 4))


def masking_suspected(findings: Sequence[Finding]) -> list[str]:
    """Reasons why robust accuracy is only an upper bound: the sentences of failed findings in `MASKING`.

    D1, D2, D4 and D5 fail if a weaker search breaks more than a stronger one. D3 fails if PGD does not break
    examples without a bound, and `forced_routes` if attacks on branches break more. D6, D7, D10 and the flags on
    gradients fail if gradients are missing or wrong. The other flags in `MASKING` mark models that need adaptive
    attacks.

    The other findings are not included. D8 and D9 recommend a larger budget, and D12 means a curved landscape.
    `softmax_output` is serious only if D6 fails. `eval_mode` concerns the caller, because evaluations switch to
    evaluation mode; if it fails, `randomized` is caused by dropout and is not included. `nan_logits` count as
    broken, and D11 repeats other flags.
    """
    failed = {finding.id for finding in findings if finding.passed is False}
    counted = {*MASKING, FORCED_ROUTES} - ({"randomized"} if "eval_mode" in failed else set())
    return [finding.words for finding in findings if finding.id in failed & counted]
