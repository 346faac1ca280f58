"""Suite for threats that are not Lp balls: gradients beside searches that use none."""

from robustly.attacks import Attack
from robustly.attacks.composite import Composite
from robustly.attacks.exhaustive import ExhaustiveSearch
from robustly.attacks.expected_patch import ExpectedPatch
from robustly.attacks.grid_search import GridSearch
from robustly.attacks.parameter_search import ParameterSearch
from robustly.attacks.pgd import PGD
from robustly.attacks.random_draws import RandomDraws
from robustly.evaluation.suites.suite import Suite
from robustly.objectives import margin
from robustly.threats import TRANSFORMATIONS
from robustly.threats.lp import NORMS

MOST_PARAMETERS = 4
"""Most parameters of a transformation that the suite searches by a grid."""
STAGE_TITLES = {
    "random_draws": "Random draws",
    "pgd": "PGD, 5 starts",
    "parameter_search": "Random search",
    "grid": "Grid",
    "composite": "Composite (CAA)",
    "exhaustive": "Every corruption",
    "expected_patch": "Patch in expectation (EOT)",
}


def semantic(kind: str) -> Suite:
    """Suite for threats that are not Lp balls: random draws, PGD with restarts, random search and a grid.

    Each attack runs on all examples, so that a report shows random draws beside gradient ascent: over an angle or a
    shift the objective has many local maxima, and draws and grids find more (Engstrom et al., ICML 2019). The grid
    is a stage for transformations of at most four parameters and for the affine family. Chains have none, because
    their kind does not name their parts; `GridSearch` is defined for chains of transformations. Chains in any order
    have the composite attack, which chooses orders. Physical patches have a search in expectation over conditions.
    Corruptions have no gradient: all of them are tried.

    Args:
        kind: kind of the threat.

    Raises:
        ValueError: an Lp ball.
    """
    if kind in NORMS:
        raise ValueError(
            f"the suite semantic is defined for threats that are not Lp balls, got {kind!r}: use the suite standard"
        )
    if kind == "corruption":
        return Suite("semantic", {"exhaustive": ExhaustiveSearch(5)}, titles=STAGE_TITLES, curve="exhaustive")
    attacks: dict[str, Attack] = {
        "random_draws": RandomDraws(100, precision="bfloat16"),
        "pgd": PGD(50, margin, restarts=5, precision="bfloat16"),
        "parameter_search": ParameterSearch(250, restarts=2, precision="bfloat16"),
    }
    if has_grid(kind):
        attacks["grid"] = GridSearch()
    if kind == "any_order":
        attacks["composite"] = Composite()
    if kind == "physical_patch":
        attacks["expected_patch"] = ExpectedPatch(precision="bfloat16")
    return Suite("semantic", attacks, titles=STAGE_TITLES, curve="pgd")


def has_grid(kind: str) -> bool:
    """Return True for kinds of threats with few enough parameters for a grid."""
    family = TRANSFORMATIONS.get(kind)
    return kind == "affine" or (family is not None and len(family.neutral) <= MOST_PARAMETERS)
