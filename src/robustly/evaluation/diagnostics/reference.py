"""The gradient attacks of the default suite, beside which diagnostics measure searches of another kind."""

from robustly.attacks.core.contract import Attack
from robustly.attacks.pgd import PGD
from robustly.attacks.sparse_rs import SparseRS
from robustly.attacks.square import Square
from robustly.evaluation.suites.builtin import standard
from robustly.evaluation.suites.suite import in_full_precision
from robustly.threats import NORMS


def reference_attacks(kind: str) -> dict[str, Attack]:
    """The gradient attacks of `standard` in full precision, by the names of their stages.

    A weaker reference leaves images unbroken that the suite breaks, and a search by queries finds those on
    unmasked networks too.

    Args:
        kind: kind of the threat.
    """
    suite = in_full_precision(standard(kind))
    plans = {name: suite.plan(name) for name in suite.attacks}
    return {
        name: attack
        for name, attack in suite.attacks.items()
        if not (plans[name].sentinel or plans[name].on_suspicion or _without_gradients(attack))
    }


def search_by_queries(kind: str) -> str:
    """Name of the attack that needs no gradients under threats of a kind, in words for advice."""
    if kind == "l0":
        return "sparse-RS"
    return "Square" if kind in NORMS else "random draws and the search by queries (parameter_search)"


def _without_gradients(attack: Attack) -> bool:
    return isinstance(attack, Square | SparseRS) or (isinstance(attack, PGD) and attack.steps == 0)
