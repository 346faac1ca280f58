"""The tables of built-in suites and protocols."""

from collections.abc import Callable
from functools import partial

from robustly.evaluation.suites.autoattack import autoattack
from robustly.evaluation.suites.builtin import quick, standard, strong
from robustly.evaluation.suites.protocol import Protocol
from robustly.evaluation.suites.semantic import semantic
from robustly.evaluation.suites.suite import Suite, ThreatOrKind, kind_of, presets
from robustly.evaluation.suites.tafd import TAFD_V10, TAFD_V20
from robustly.evaluation.suites.unforeseen import UNFORESEEN

SuiteOf = Callable[[ThreatOrKind], Suite]


def _by_kind(suite: Callable[[str], Suite]) -> SuiteOf:
    """A suite that depends on the kind of the threat alone."""
    return lambda threat: suite(kind_of(threat))


PROTOCOLS: dict[str, Protocol] = {one.name: one for one in (TAFD_V10, TAFD_V20, UNFORESEEN)}
"""Evaluations under several threats. Their suites have attacks for each of their threats."""
SUITES: dict[str, SuiteOf] = {
    "quick": _by_kind(quick),
    "standard": _by_kind(standard),
    "strong": _by_kind(strong),
    "semantic": semantic,
    **{name: protocol.suite for name, protocol in PROTOCOLS.items()},
    "aa_standard": _by_kind(partial(autoattack, "standard")),
    "aa_plus": _by_kind(partial(autoattack, "plus")),
    "aa_rand": _by_kind(partial(autoattack, "rand")),
    "dynat": partial(presets, "dynat", ("pgd_10", "pgd_20", "pgd_50", "cw_20"), "pgd_20"),
    "dynat_100": partial(presets, "dynat_100", ("pgd_10", "pgd_20", "pgd_50", "pgd_100", "cw_20"), "pgd_20"),
    "single_step": partial(presets, "single_step", ("fgsm", "r_fgsm", "pgd_20"), "pgd_20"),
}


def suite_named(name: str, threat: ThreatOrKind) -> Suite:
    """The suite of a name for a threat, or for its kind ("linf", "rotation", "chain").

    Raises:
        ValueError: an unknown name, or a kind of threat for which the suite is not defined.
    """
    if name not in SUITES:
        raise ValueError(f"unknown suite {name!r}: allowed are {', '.join(SUITES)}")
    return SUITES[name](threat)
