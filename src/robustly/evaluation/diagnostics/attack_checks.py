"""Diagnostics that attack the model (Carlini et al. 2019)."""

from collections.abc import Callable
from itertools import pairwise

import torch

from robustly.attacks.core.contract import Attack, AttackError, frozen
from robustly.attacks.core.model_access import logits_of
from robustly.attacks.pgd import PGD
from robustly.attacks.sparse_rs import SparseRS
from robustly.attacks.square import Square
from robustly.evaluation.diagnostics.model_checks import LEAST_COSINE, NO_GRADIENT
from robustly.evaluation.diagnostics.overfitting import catastrophic_overfitting
from robustly.evaluation.diagnostics.probe import Probe
from robustly.evaluation.diagnostics.significance import TOLERATED, Excess, most_significant, tolerated_among
from robustly.evidence import Finding
from robustly.objectives import (
    cross_entropy,
    difference_of_logits_ratio,
    margin,
    probability_margin,
)
from robustly.randomness import KeyedGenerator, derive_seed
from robustly.threats import Threat, ThreatModel
from robustly.threats.contract import has_no_gradient

FINDING_TITLES = {
    "catastrophic_overfitting": "robustness is not to one step of length epsilon only",
    "D1": "PGD breaks no fewer images than FGSM",
    "D2": "a search by queries breaks no further images",
    "D3": "without a bound, PGD breaks all images",
    "D4": "accuracy falls with epsilon",
    "D5": "random points break no further images",
    "forced_routes": "forced routes break no further images",
    "D7": "gradients agree with finite differences",
    "D8": "the attack has converged",
    "D9": "one start is enough",
    "D10": "cross-entropy breaks about as many images as other objectives",
}
FAR_BELOW = 0.1  # share of images that an objective alone may break, beside cross-entropy
_OF_ALL = f"not significantly above {100 * TOLERATED:.3g} % of all images"
FINITE_STEP = 0.01  # change of each value in finite differences, as a fraction of the box


def single_step(probe: Probe) -> Finding:
    """D1: FGSM must not break images that PGD does not break."""
    fast, slow = probe.broken_by_fgsm, probe.broken_by_pgd
    found = Excess(int((fast & ~slow).sum()), probe.total, TOLERATED, opposite=int((slow & ~fast).sum()))
    words = f"FGSM breaks {int(fast.sum())} of {probe.total} images, PGD-{probe.budget.steps} {int(slow.sum())}; "
    words += f"{found.hits} only FGSM {found.words}."
    if not found.passed:
        words += " One step breaks more than many: the steps are wrong, or the gradient is misleading."
    return _finding("D1", found.passed, found.share, found.threshold, words)


def black_box(probe: Probe) -> Finding:
    """D2: a search without gradients must not break images that the suite's gradient attacks do not break."""
    rows = probe.unbroken
    attack, name = _by_queries(probe.target.threat, probe.budget.queries)
    fooled = int(probe.attack(attack, "queries", rows)[0].sum())
    found = Excess(fooled, len(rows), tolerated_among(len(rows), probe.total, TOLERATED))
    words = (
        f"{name} with {probe.budget.queries} queries breaks {fooled} of {len(rows)} images that resist gradients "
    )
    words += f"{found.words}."
    if not found.passed:
        words += " Gradients are masked: robust accuracy under gradient attacks is too high."
    return _finding("D2", found.passed, fooled / probe.total, _OF_ALL, words)


def _by_queries(threat: Threat, queries: int) -> tuple[Attack, str]:
    """The strongest search without gradients that is defined for a threat."""
    candidates: tuple[tuple[Attack, str], ...] = (
        (Square(queries=queries), "Square"),
        (SparseRS(queries=queries), "sparse-RS"),
        (PGD(0, restarts=queries), "random search"),
    )
    return next((attack, name) for attack, name in candidates if attack.needs.accept(threat))


def unbounded(probe: Probe) -> Finding:
    """D3: PGD without a bound must break the model."""
    threat = probe.target.threat
    if not isinstance(threat, ThreatModel) or threat.mask is not None:
        words = f"{threat} does not reach every image, even without a bound: the test is not defined."
        return _finding("D3", None, None, "", words)
    low, high = threat.box
    size = probe.x[:1].numel() if len(probe.x) else 1
    pixels = probe.x.shape[-1] * probe.x.shape[-2] if probe.x.ndim == 4 else size
    whole = {"linf": 1.0, "l2": size**0.5, "l1": float(size)}
    wide = pixels if threat.norm == "l0" else (high - low) * whole[threat.norm]
    threat = ThreatModel(threat.norm, wide, (low, high))
    broken, _ = probe.attack(PGD(probe.budget.unbounded_steps), "unbounded", probe.correct, threat)
    chance = 1 / probe.logits.shape[1]
    found = Excess(int((~broken).sum()), probe.total, 0.5 * chance)
    words = f"PGD without a bound leaves {100 * found.share:.1f} % correct (chance is {100 * chance:.3g} %) "
    words += f"{found.words}."
    if not found.passed:
        words += " Every image can become any other: the unbroken images were not attacked properly."
    return _finding("D3", found.passed, found.share, found.threshold, words)


def monotone(probe: Probe) -> Finding:
    """D4: a larger epsilon must not leave images unbroken that a smaller one breaks."""
    threat = probe.target.threat
    half = float(threat.extent) / 2
    smaller = threat.with_extent(float(int(half))) if threat.kind == "l0" else threat.scaled(0.5)
    broken = []
    for at in (smaller, threat, threat.scaled(2.0)):
        broken.append(
            probe.broken_by_pgd if at == threat else probe.attack(probe.pgd(), "pgd", probe.correct, at)[0]
        )
    rises = [
        Excess(int((less & ~more).sum()), probe.total, TOLERATED, opposite=int((more & ~less).sum()), tests=2)
        for less, more in pairwise(broken)
    ]
    found = most_significant(rises)
    counts = ", ".join(str(int((~mask).sum())) for mask in broken)
    words = f"At half, once and twice epsilon {counts} of {probe.total} are unbroken; {found.hits} fall at the "
    words += f"smaller of two only {found.words}."
    if not found.passed:
        words += " A larger epsilon leaves more unbroken: the search is too weak for it."
    return _finding("D4", found.passed, found.share, found.threshold, words)


def random_search(probe: Probe) -> Finding:
    """D5: random points of the threat set must not break images that gradient attacks do not break."""
    rows, points = probe.unbroken[: probe.budget.few], probe.budget.points
    fooled = sum(_fooled_by_chance(probe, int(row), points) for row in rows)
    found = Excess(fooled, len(rows), tolerated_among(len(probe.unbroken), probe.total, TOLERATED))
    words = f"{points} random points of the threat set break {fooled} of {len(rows)} that resist gradients "
    words += f"{found.words}."
    if not found.passed:
        words += " Adversarial examples are common, but the gradient does not point to them."
    return _finding("D5", found.passed, float(fooled), _OF_ALL, words)


def _fooled_by_chance(probe: Probe, row: int, points: int) -> bool:
    data, size = probe.target.data, max(probe.target.batch_size, 250)
    seed = derive_seed(probe.target.seed, "diagnostics", "chance", int(data.ids[row]))
    one = torch.tensor([row], device=data.device)
    numbers = torch.arange(points, device=data.device)
    for first in range(0, points, size):
        part = numbers[first : first + size]
        x = data.floats(one).expand(len(part), -1, -1, -1)
        allowed = probe.target.threat.around(x)
        near = allowed.apply(allowed.random_start(KeyedGenerator(seed, part)))
        with probe.seeded("chance"), frozen(probe.target.model), torch.no_grad():
            given = logits_of(probe.target.model, near)
        if bool((given.argmax(1) != data.labels[row]).any()):
            return True
    return False


def agreement(probe: Probe) -> Finding:
    """D7: the gradient of the margin against central differences along random directions.

    Directions u have independent signs. The cosine between the predicted derivatives <g, u> and the measured ones
    estimates the cosine between g and the true gradient. An estimated gradient would be biased with few directions
    (a cosine of at most sqrt(directions / dimensions)).
    """
    threshold = "cosine not significantly below 0.5 for more than half of the images"
    x = probe.x[: probe.budget.few]
    rows = probe.correct[: len(x)]
    low, high = probe.target.threat.box
    gradient, here, _ = probe.gradients(x, rows, margin)
    predicted, measured = [], []
    seed = derive_seed(probe.target.seed, "diagnostics", "directions")
    generator = KeyedGenerator(seed, probe.target.data.ids[rows])
    for turn in range(probe.budget.directions):
        signs = torch.where(generator.fold(turn).uniform(*x.shape[1:]) < 0.5, -1.0, 1.0).to(x)
        ahead = (x + FINITE_STEP * (high - low) * signs).clamp(low, high)
        behind = (x - FINITE_STEP * (high - low) * signs).clamp(low, high)
        predicted.append((gradient * (ahead - behind)).flatten(1).sum(1).nan_to_num(0.0))
        measured.append(probe.values(ahead, rows, margin) - probe.values(behind, rows, margin))
    foretold, seen = torch.stack(predicted, 1).double(), torch.stack(measured, 1).double()
    floor = 1e-5 * here.double().abs().clamp_min(1e-12)  # the resolution of float32
    known = seen.abs().amax(1) > floor
    if not bool(known.any()):
        words = "Neither the gradient nor the model changes within one hundredth of the box."
        return _finding("D7", None, None, threshold, words)
    scale = foretold.norm(dim=1) * seen.norm(dim=1)
    cosine = (foretold * seen).sum(1) / torch.where(scale > 0, scale, 1.0)
    value = float(cosine[known].median())
    found = Excess(int((cosine[known] < LEAST_COSINE).sum()), int(known.sum()), 0.5)
    words = (
        f"The cosine of the gradient and finite differences is {value:.2f} (median of {found.count} images); it is "
        f"below {LEAST_COSINE} for {found.hits} {found.words}."
    )
    if not found.passed:
        words += " Autograd does not differentiate the function that the model computes: use BPDA or estimators."
    return _finding("D7", found.passed, value, threshold, words)


def more_steps(probe: Probe) -> Finding:
    """D8: the loss must rise with the steps, and the accuracy must have stopped falling."""
    threshold = (
        "loss lower at the end than halfway for 10 % of images, last quarter 0.5 %, or not significantly more"
    )
    steps = probe.budget.steps
    losses = []
    for length in (steps // 2, steps):
        _, x_adv = probe.attack(probe.pgd(length, keep="last"), "pgd", probe.correct)
        losses.append(probe.values(x_adv, probe.correct, cross_entropy))
    fallen = losses[1] < losses[0] - (0.01 * losses[0].abs()).clamp_min(1e-4)
    early = probe.attack(probe.pgd(steps - steps // 4), "pgd", probe.correct)[0]
    lower = Excess(int(fallen.sum()), len(fallen), 0.1, tests=2)
    late = Excess(int((probe.broken_by_pgd & ~early).sum()), probe.total, 0.005, tests=2)
    found = most_significant([lower, late])
    words = (
        f"After {steps} steps the loss is lower than after {steps // 2} for {100 * lower.share:.1f} % of images; "
        f"the last quarter of the steps broke {late.hits} more {found.words}."
    )
    if not found.passed:
        words += " The number is too high: use more or smaller steps."
    return _finding("D8", found.passed, lower.share, threshold, words)


def more_restarts(probe: Probe) -> Finding:
    """D9: further random starts must break few images."""
    rows, restarts = probe.correct[~probe.broken_by_pgd], probe.budget.restarts
    more = int(probe.attack(probe.pgd(restarts=restarts - 1), "restarts", rows)[0].sum()) if restarts > 1 else 0
    found = Excess(more, probe.total, TOLERATED)
    words = f"{restarts} starts instead of one break {more} more of {probe.total} images {found.words}."
    if not found.passed:
        words += " The landscape is rough: raise steps and restarts."
    return _finding("D9", found.passed, found.share, found.threshold, words)


def objectives(probe: Probe) -> Finding:
    """D10: cross-entropy must not break far fewer images than the best of the other objectives.

    Only cross-entropy is compared. Margins fail on unmasked networks too, where the nearest class lies behind
    another one, and the suites use several objectives.
    """
    usual = probe.broken_by_pgd
    others = {"margin": margin, "DLR": difference_of_logits_ratio, "probability margin": probability_margin}
    broken = {
        name: probe.attack(probe.pgd(objective=objective), "pgd", probe.correct)[0]
        for name, objective in others.items()
    }
    tests = {}
    for name, mask in broken.items():
        alone, opposite = int((mask & ~usual).sum()), int((usual & ~mask).sum())
        tests[name] = Excess(alone, probe.total, FAR_BELOW, opposite, tests=len(others))
    found = most_significant(list(tests.values()))
    counts = ", ".join(f"{name} {int(mask.sum())}" for name, mask in ({"cross-entropy": usual} | broken).items())
    words = f"Broken by PGD of {probe.total} images: {counts}; {found.hits} not by cross-entropy {found.words}."
    if not found.passed:
        best = min(tests, key=lambda name: tests[name].p_value)
        words += f" Cross-entropy has useless gradients: attack with {best}, and see D6."
    return _finding("D10", found.passed, found.share, found.threshold, words)


def attempted(name: str, test: Callable[[Probe], Finding], probe: Probe) -> Finding:
    """Run a test that attacks; the finding is undecided if that is not possible."""
    reason = _undecided(probe)
    if reason is None:
        try:
            return test(probe)
        except AttackError as error:
            reason = f"An attack raised an error: {error}."
    return _finding(name, None, None, "", reason)


def _undecided(probe: Probe) -> str | None:
    if len(probe.correct) == 0:
        return "The model misclassifies all images: there is nothing to test."
    if probe.varies:
        return (
            "The model's outputs for the same image differ from call to call, so that success is random: diagnose "
            "ExpectationOverTransformation(model)."
        )
    if float(probe.target.threat.extent) == 0:
        return "Epsilon is 0: there is nothing to search."
    if has_no_gradient(probe.target.threat):
        return NO_GRADIENT
    return None


def _finding(name: str, passed: bool | None, value: float | None, threshold: str, words: str) -> Finding:
    return Finding(name, FINDING_TITLES[name], passed, value, threshold, words)


ATTACKING: dict[str, Callable[[Probe], Finding]] = {
    "catastrophic_overfitting": catastrophic_overfitting,
    "D1": single_step,
    "D2": black_box,
    "D3": unbounded,
    "D4": monotone,
    "D5": random_search,
    "D7": agreement,
    "D8": more_steps,
    "D9": more_restarts,
    "D10": objectives,
}
