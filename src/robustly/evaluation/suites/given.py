"""Suites as users give them: by name, as one attack, or as a list of attacks."""

import re
from collections.abc import Sequence

from robustly.attacks import ATTACK_KINDS, ATTACKS, TITLES, Attack
from robustly.evaluation.suites.certified import split_certificates, with_certificates
from robustly.evaluation.suites.named import SUITES, suite_named
from robustly.evaluation.suites.suite import Suite, ThreatOrKind
from robustly.settings import SettingsError, nearest

OWN = "own attacks"
"""Name of a suite of attacks that are given as values."""
_MEANT = {"autoattack": ", did you mean 'aa_standard'?", "aa": ", did you mean 'aa_standard'?"}


def as_suite(given: Suite | str | Attack | Sequence[Attack | str], threat: ThreatOrKind) -> Suite:
    """A suite from any form in which one may be given.

    Args:
        given: a suite; the name of one ("standard") or names of attacks, separated by commas ("pgd_20,square"),
            with certificates behind it or without ("quick+certify"); an attack; or a list of attacks and names of
            attacks. A list becomes one stage per attack; the mode of the evaluation selects its examples.
        threat: the threat, or its kind.

    Raises:
        SettingsError: an unknown name, an attack given twice, an empty list, or another kind of value.
        ValueError: a kind of threat for which the suite is not defined.
    """
    if isinstance(given, Suite):
        return given
    if isinstance(given, str):
        return _from_text(given, threat)
    if isinstance(given, Attack):
        return _listed(OWN, {_name_of(given): given})
    if not isinstance(given, Sequence) or not all(isinstance(one, str | Attack) for one in given):
        raise SettingsError(
            "a suite is the name of one, names of attacks separated by commas, an attack, or a list of attacks, "
            f"got {str(given)[:60]}"
        )
    if not given:
        raise SettingsError("the list of attacks is empty: name at least one")
    if all(isinstance(one, str) for one in given):
        return as_suite(",".join(map(str, given)), threat)
    attacks: dict[str, Attack] = {}
    for one in given:
        name, attack = (one, _attack(one)) if isinstance(one, str) else (_name_of(one), one)
        turns = [name, *(f"{name}_{turn}" for turn in range(2, len(given) + 1))]
        attacks[next(free for free in turns if free not in attacks)] = attack
    return _listed(OWN, attacks)


def _from_text(given: str, threat: ThreatOrKind) -> Suite:
    given, proofs = split_certificates(given)
    if given in SUITES:
        return with_certificates(suite_named(given, threat), proofs)
    names = attack_names(given)
    return with_certificates(_listed(",".join(names), {name: _attack(name) for name in names}), proofs)


def check_suite_name(given: str) -> None:
    """Refuse a text that is neither a suite nor a list of attacks.

    Raises:
        SettingsError: an unknown name, or an attack given twice.
    """
    given, _ = split_certificates(given)
    if given not in SUITES:
        attack_names(given)


def attack_names(given: str) -> list[str]:
    """The names of attacks in a text that separates them by commas.

    Raises:
        SettingsError: an unknown name, or an attack given twice.
    """
    names, known = [name.strip() for name in given.split(",")], {**ATTACKS, **ATTACK_KINDS}
    for name in names:
        if name in SUITES:
            raise SettingsError(f"{name!r} is a suite and cannot be listed beside attacks: give it alone")
        if name not in known:
            plain = re.sub(r"[\W_]", "", name.casefold())
            near = _MEANT.get(plain) or nearest(name.lower(), [*SUITES, *known])
            raise SettingsError(
                f"unknown suite or attack {name!r}{near}; suites: {', '.join(SUITES)}; attacks: {', '.join(known)}"
            )
        if names.count(name) > 1:
            raise SettingsError(f"the attack {name!r} is given twice: stages give an attack several settings")
    return names


def _attack(name: str) -> Attack:
    [name] = attack_names(name)
    return ATTACKS[name] if name in ATTACKS else ATTACK_KINDS[name]()


def _name_of(attack: Attack) -> str:
    kinds = {kind: name for name, kind in ATTACK_KINDS.items()}
    return kinds.get(type(attack), type(attack).__name__)


def _listed(name: str, attacks: dict[str, Attack]) -> Suite:
    titles = {key: TITLES.get(key, type(attack).__name__) for key, attack in attacks.items()}
    return Suite(name, attacks, titles=titles)
