"""Suites written in YAML: stages by name, each an attack with its settings and its plan."""

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from robustly.attacks import ATTACK_KINDS, ATTACKS, TITLES, Attack
from robustly.evaluation.suites import SUITES, suite_named
from robustly.evaluation.suites.suite import Suite
from robustly.evidence.provenance import Plan
from robustly.objectives import OBJECTIVES
from robustly.settings import SettingsError, build, changed, check_keys, choose

_LONGEST = 60
_ONLY_FROM_CODE = ("estimator", "diversity")


def suite_from(name: str, stages: Mapping[str, Mapping[str, Any]] | None, kind: str) -> Suite:
    """A built-in suite, or a new one composed of stages.

    Args:
        name: name of a built-in suite; with stages, a new name.
        stages: settings of each stage by name: `attack`, the name of a preset or kind; settings of that attack; and
            settings of its `Plan`, which selects the examples (`closest`, `at_least`, `sample`, `sample_share`,
            `sentinel`, `on_suspicion`). None for a built-in suite.
        kind: kind of the threat.

    Raises:
        SettingsError: an unknown suite, attack, key or objective, or a value of another type or out of range.
    """
    try:
        if stages is None:
            return suite_named(name, kind)
        if _plain(name) in {_plain(known) for known in SUITES}:
            raise SettingsError(f"{name!r} is the name of a known suite: a suite with stages needs another name")
        for given in (name, *stages):
            if not given.isascii() or not given.isprintable() or len(given) > _LONGEST:
                raise SettingsError(
                    f"names of suites and stages are at most {_LONGEST} printable ASCII characters, got {given!r}"
                )
        built = {stage: _stage(f"stages.{stage}", settings) for stage, settings in stages.items()}
        titles = {stage: _title(stage, settings, built[stage][0]) for stage, settings in stages.items()}
        return Suite(
            name,
            {stage: attack for stage, (attack, _) in built.items()},
            titles=titles,
            plans={stage: plan for stage, (_, plan) in built.items()},
            worst_case=True,
        )
    except SettingsError:
        raise
    except ValueError as error:
        raise SettingsError(str(error)) from None


def _plain(name: str) -> str:
    """A name without what readers overlook: case, `_`, `-` and spaces."""
    return re.sub(r"[\W_]", "", name.casefold())


def _title(stage: str, settings: Mapping[str, Any], attack: Attack) -> str:
    """The title of a preset as it is; of any other attack, the name of the stage with the kind of the attack."""
    preset = ATTACKS.get(str(settings["attack"]))
    return TITLES.get(settings["attack"], stage) if attack == preset else f"{stage} ({type(attack).__name__})"


def _stage(where: str, settings: Any) -> tuple[Attack, Plan]:
    if not isinstance(settings, Mapping) or not isinstance(settings.get("attack"), str):
        raise SettingsError(f"{where}: expected 'attack' and its settings, got {settings!r}")
    plan_keys = [item.name for item in fields(Plan)]
    plan = build(Plan, {key: value for key, value in settings.items() if key in plan_keys}, where)
    given = {key: value for key, value in settings.items() if key not in ("attack", *plan_keys)}
    chosen: Any = choose({**ATTACKS, **ATTACK_KINDS}, settings["attack"], f"{where}.attack")
    attack = chosen() if settings["attack"] in ATTACK_KINDS else chosen
    known = [item.name for item in fields(attack) if item.init and item.name not in _ONLY_FROM_CODE]
    check_keys(given, known, where)
    if "objective" in given:
        attack = replace(attack, objective=choose(OBJECTIVES, given.pop("objective"), f"{where}.objective"))
    return changed(attack, given, where, known), plan
