"""The table of built-in suites."""

from collections.abc import Callable
from functools import partial

from robustly.evaluation.suites.autoattack import autoattack
from robustly.evaluation.suites.builtin import quick, standard, strong
from robustly.evaluation.suites.semantic import semantic
from robustly.evaluation.suites.suite import Suite, presets

SUITES: dict[str, Callable[[str], Suite]] = {
    "quick": quick,
    "standard": standard,
    "strong": strong,
    "semantic": semantic,
    "aa_standard": partial(autoattack, "standard"),
    "aa_plus": partial(autoattack, "plus"),
    "aa_rand": partial(autoattack, "rand"),
    "dynat": lambda kind: presets("dynat", ("pgd_10", "pgd_20", "pgd_50", "cw_20"), "pgd_20"),
    "dynat_100": lambda kind: presets("dynat_100", ("pgd_10", "pgd_20", "pgd_50", "pgd_100", "cw_20"), "pgd_20"),
    "single_step": lambda kind: presets("single_step", ("fgsm", "r_fgsm", "pgd_20"), "pgd_20"),
}


def suite_named(name: str, kind: str) -> Suite:
    """The suite of a name for a kind of threat ("linf", "rotation", "chain").

    Raises:
        ValueError: an unknown name, or a kind of threat for which the suite is not defined.
    """
    if name not in SUITES:
        raise ValueError(f"unknown suite {name!r}: allowed are {', '.join(SUITES)}")
    return SUITES[name](kind)
