"""Built-in suites: a cheap screen, targets in the order of MALT, long runs on close examples, and a sentinel.

Threats that are not Lp balls have other stages: APGD, targets, random draws, and PGD with Adam.
"""

from dataclasses import replace

from robustly.attacks import Attack
from robustly.attacks.apgd import APGD, TargetedAPGD
from robustly.attacks.apgd_ascent import APGDStart
from robustly.attacks.core.search import Precision
from robustly.attacks.exhaustive import ExhaustiveSearch
from robustly.attacks.expected_patch import ExpectedPatch
from robustly.attacks.fab import FAB
from robustly.attacks.patch_search import PatchSearch
from robustly.attacks.pgd import PGD
from robustly.attacks.pma import PMA
from robustly.attacks.sigma_zero import SigmaZero
from robustly.attacks.smooth_pgd import SmoothPGD
from robustly.attacks.sparse_rs import SparseRS
from robustly.attacks.square import Square
from robustly.evaluation.suites.suite import Suite
from robustly.evidence.provenance import Plan
from robustly.objectives import cross_entropy, margin, probability_margin, scaled_cross_entropy
from robustly.threats.corruption import COLLECTIONS
from robustly.threats.lp import NORMS

STAGE_TITLES = {
    "screen": "APGD screen",
    "near_targets": "APGD-T, 3 nearest classes",
    "far_targets": "APGD-T, 6 more classes",
    "long_runs": "APGD-T, long, ODI starts",
    "pma": "PMA",
    "sentinel": "Square on a sample",
    "second_look": "FAB-T on a sample",
    "long_pma": "PMA, all survivors",
    "third_look": "FAB-T near the boundary",
    "square": "Square",
    "more_square": "Square, 5,000 queries",
    "fab_t": "FAB-T",
    "apgd_ce": "APGD-CE",
    "apgd_t": "APGD-T, all classes",
    "sigma_zero": "sigma-zero",
    "sparse_rs": "sparse-RS",
    "random_draws": "Random draws",
    "adam": "PGD with Adam",
    "stadv": "StAdv",
    "patch": "Patch search",
    "expected_patch": "Patch in expectation (EOT)",
    "exhaustive": "Every corruption",
    **{f"restarts_{name}": f"APGD, 10 starts, {name}" for name in ("ce", "margin", "pm")},
}


NEAR = Plan(closest=0.1, at_least=5)
WATCH = Plan(sample=200, sample_share=0.2, sentinel=True)


def quick(kind: str) -> Suite:
    """Suite for monitoring: a screen, the three nearest classes, long runs on the closest tenth; about 370 passes.

    Args:
        kind: kind of the threat.
    """
    if kind == "l0":
        return Suite("quick", {"sigma_zero": SigmaZero(steps=100)}, titles=STAGE_TITLES, worst_case=True)
    if kind in COLLECTIONS:
        return _exhaustive("quick", 1)
    if kind not in NORMS:
        return _any_threat("quick", kind, draws=10)
    attacks = _screen(kind) | {"long_runs": _long_runs(kind, "bfloat16")}
    return Suite("quick", attacks, titles=STAGE_TITLES, plans={"long_runs": NEAR}, worst_case=True)


def standard(kind: str) -> Suite:
    """The default suite: AutoAttack's verdict at about a fifteenth of its passes.

    It screens all examples, targets the classes that are nearest in the linearised model, and runs long attacks on
    the examples closest to the boundary. A gradient-free sentinel and FAB, which minimises the distance, follow. If
    one of them breaks an example, or a diagnostic fails, the stages marked `on_suspicion` run.

    Args:
        kind: kind of the threat.
    """
    if kind == "l0":
        return _sparse("standard", 300, 1000)
    if kind in COLLECTIONS:
        return _exhaustive("standard", 1)
    if kind not in NORMS:
        return _any_threat("standard", kind, draws=50, steps=50)
    sparse = kind == "l1"
    attacks = _screen(kind) | {
        "far_targets": _targeted(kind, steps=25, targets=2 if sparse else 6, first=3),
        "long_runs": _long_runs(kind, "full"),  # bfloat16 is too coarse near the boundary
        "pma": PMA(steps=50, precision="bfloat16"),
        "sentinel": Square(queries=500, precision="bfloat16"),
        "second_look": FAB(steps=30, targets=2, stop_inside=True),
        "more_square": Square(queries=5000, precision="bfloat16"),
        "fab_t": FAB(targets=9, stop_inside=True),
        **{
            f"restarts_{name}": APGD(
                steps=25, restarts=10, objective=objective, large_epsilon=sparse, precision="bfloat16"
            )
            for name, objective in (("ce", cross_entropy), ("margin", margin), ("pm", probability_margin))
        },
    }
    far, suspicious = Plan(closest=0.5, at_least=5), Plan(on_suspicion=True)
    plans = {"far_targets": far, "long_runs": NEAR, "pma": NEAR, "sentinel": WATCH, "second_look": WATCH}
    plans |= {name: suspicious for name in attacks if name.startswith(("more_", "fab_", "restarts_"))}
    return Suite("standard", attacks, titles=STAGE_TITLES, plans=plans, worst_case=True, curve="screen")


def strong(kind: str) -> Suite:
    """The stages of `standard`, followed by more on all unbroken examples; its verdict is never higher.

    The further stages are long runs at every class, PMA and Square, and FAB near the boundary.

    Args:
        kind: kind of the threat.
    """
    if kind == "l0":
        return _sparse("strong", 1000, 5000)
    if kind in COLLECTIONS:
        return _exhaustive("strong", 5)
    if kind not in NORMS:
        return _any_threat("strong", kind, draws=300, steps=100, restarts=5)
    base = standard(kind)
    last = {name for name, plan in base.plans.items() if plan.on_suspicion}
    more: dict[str, Attack] = {
        "apgd_ce": APGD(restarts=5 if kind == "l1" else 1, large_epsilon=kind == "l1", precision="bfloat16"),
        "apgd_t": _targeted(kind, steps=100, targets=9),
        "long_pma": PMA(steps=100, precision="bfloat16"),
        "third_look": FAB(steps=100, targets=3, stop_inside=True),
        "square": Square(queries=1000, precision="bfloat16"),
    }
    first = {name: attack for name, attack in base.attacks.items() if name not in last}
    attacks = first | more | {name: base.attacks[name] for name in base.attacks if name in last}
    plans = {**base.plans, "third_look": replace(NEAR, sentinel=True), "square": Plan(sentinel=True)}
    return Suite("strong", attacks, titles=STAGE_TITLES, plans=plans, worst_case=True, curve=base.curve)


def _screen(norm: str) -> dict[str, Attack]:
    return {
        "screen": APGD(steps=25, objective=scaled_cross_entropy, large_epsilon=norm == "l1", precision="bfloat16"),
        "near_targets": _targeted(norm, steps=40, targets=3),
    }


def _long_runs(norm: str, precision: Precision) -> TargetedAPGD:
    """Long targeted runs; with output-diversified starts under norms that support them."""
    start: APGDStart = "sphere" if norm == "l1" else "odi"
    return replace(_targeted(norm, steps=100, targets=3), start=start, precision=precision)


def _targeted(norm: str, *, steps: int, targets: int, first: int = 0) -> TargetedAPGD:
    return TargetedAPGD(
        steps=steps,
        targets=targets,
        first=first,
        ranking="malt",
        large_epsilon=norm == "l1",
        precision="bfloat16",
    )


def _sparse(name: str, steps: int, queries: int) -> Suite:
    """Stages for l0: the strongest minimum-norm attack, and random search."""
    attacks: dict[str, Attack] = {"sigma_zero": SigmaZero(steps=steps), "sparse_rs": SparseRS(queries=queries)}
    return Suite(name, attacks, titles=STAGE_TITLES, worst_case=True, curve="sigma_zero")


def _exhaustive(name: str, restarts: int) -> Suite:
    """The stage for corruptions, which have no gradient: all of them, each with several random draws."""
    attacks: dict[str, Attack] = {"exhaustive": ExhaustiveSearch(restarts)}
    return Suite(name, attacks, titles=STAGE_TITLES, worst_case=True, curve="exhaustive")


def _any_threat(name: str, kind: str, *, draws: int, steps: int = 0, restarts: int = 1) -> Suite:
    """Stages for any threat set: gradient ascent and random draws.

    Random draws are not a sentinel here. With few parameters, such as one angle, the objective has many local
    maxima, and draws beat gradients on models without masking too (Engstrom et al., ICML 2019).

    Args:
        name: name of the suite.
        kind: kind of the threat; flows and patches also have a search of their own.
        draws: random points per example.
        steps: steps of PGD with Adam and of PMA; 0 omits both.
        restarts: restarts of PGD with Adam.
    """
    apgd_t = TargetedAPGD(steps=40, targets=3, ranking="confidence", precision="bfloat16")
    attacks: dict[str, Attack] = {
        "screen": APGD(steps=25, objective=scaled_cross_entropy, precision="bfloat16"),
        "random_draws": PGD(0, restarts=draws, precision="bfloat16"),
        "near_targets": apgd_t,
    }
    if steps:
        attacks |= {
            "far_targets": replace(apgd_t, targets=6, first=3),
            "pma": PMA(steps=steps, precision="bfloat16"),
            "adam": PGD(steps, margin, update="adam", restarts=restarts, precision="bfloat16"),
        }
    if kind == "flow":
        attacks["stadv"] = SmoothPGD(steps or 25, restarts=restarts, precision="bfloat16")
    if kind == "patch":
        attacks["patch"] = PatchSearch(steps or 25, restarts=restarts, precision="bfloat16")
    if kind == "physical_patch":
        attacks["expected_patch"] = ExpectedPatch(steps or 25, precision="bfloat16")
    return Suite(name, attacks, titles=STAGE_TITLES, worst_case=True, curve="screen" if steps else None)
