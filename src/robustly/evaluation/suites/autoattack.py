"""AutoAttack as published, stage by stage (Croce and Hein, ICML 2020 and 2021)."""

from collections.abc import Mapping
from typing import Literal, get_args

from robustly.attacks import Attack
from robustly.attacks.apgd import APGD, TargetedAPGD
from robustly.attacks.core.gradient_estimators import Averaged
from robustly.attacks.core.search import Precision
from robustly.attacks.fab import FAB
from robustly.attacks.square import Square
from robustly.evaluation.suites.suite import Suite
from robustly.objectives import difference_of_logits_ratio

Version = Literal["standard", "plus", "rand"]
NORMS = ("linf", "l2", "l1")
STAGE_TITLES = {
    "apgd_ce": "APGD-CE",
    "apgd_dlr": "APGD-DLR",
    "apgd_t": "APGD-T",
    "fab": "FAB",
    "fab_t": "FAB-T",
    "square": "Square",
}
RAND_DRAWS = 20


def autoattack(version: Version, norm: str, precision: Precision = "bfloat16") -> Suite:
    """The attacks of a version of AutoAttack, in its order and with its budgets, each on the unbroken examples.

    The protocol is the published one except for random numbers, which are keyed by example, so that verdicts do not
    depend on the batch size. The searches of APGD and Square run in `precision`; successes are confirmed in full
    precision.

    Args:
        version: "standard" (APGD-CE, APGD-T, FAB-T, Square), "plus" (restarts, and the untargeted forms before), or
            "rand" (APGD-CE and APGD-DLR with gradients averaged over 20 draws, for randomised models).
        norm: "linf", "l2" or "l1".
        precision: precision of the searches; see `PGD`.

    Raises:
        ValueError: an unknown version, or a norm for which it is not defined.
    """
    if version not in get_args(Version):
        raise ValueError(f"AutoAttack's versions are {', '.join(get_args(Version))}, got {version!r}")
    allowed = NORMS if version != "plus" else NORMS[:2]
    if norm not in allowed:
        raise ValueError(
            f"AutoAttack's version {version} is defined for {', '.join(allowed)}, got {norm!r}: "
            "use the suite standard"
        )
    attacks = {"standard": _standard, "plus": _plus, "rand": _rand}[version](norm, precision)
    return Suite(f"aa_{version}", attacks, titles=STAGE_TITLES, worst_case=True)


def _standard(norm: str, precision: Precision) -> Mapping[str, Attack]:
    sparse = norm == "l1"
    return {
        "apgd_ce": APGD(restarts=5 if sparse else 1, large_epsilon=sparse, precision=precision),
        "apgd_t": TargetedAPGD(targets=5 if sparse else 9, large_epsilon=sparse, precision=precision),
        "fab_t": FAB(targets=9, stop_inside=True),
        "square": Square(queries=5000, precision=precision),
    }


def _plus(norm: str, precision: Precision) -> Mapping[str, Attack]:
    return {
        "apgd_ce": APGD(restarts=5, precision=precision),
        "apgd_dlr": APGD(restarts=5, objective=difference_of_logits_ratio, precision=precision),
        "fab": FAB(restarts=5, stop_inside=True),
        "square": Square(queries=5000, precision=precision),
        "apgd_t": TargetedAPGD(targets=9, precision=precision),
        "fab_t": FAB(targets=9, stop_inside=True),
    }


def _rand(norm: str, precision: Precision) -> Mapping[str, Attack]:
    sparse, averaged = norm == "l1", Averaged(RAND_DRAWS)
    return {
        "apgd_ce": APGD(large_epsilon=sparse, estimator=averaged, precision=precision),
        "apgd_dlr": APGD(
            objective=difference_of_logits_ratio, large_epsilon=sparse, estimator=averaged, precision=precision
        ),
    }
