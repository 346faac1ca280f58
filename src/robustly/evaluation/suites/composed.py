"""Suites as a user writes them in YAML: stages by name, each an attack with its settings and who sees it."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from robustly.attacks import ATTACK_KINDS, ATTACKS, TITLES, Attack
from robustly.evaluation import SUITES, Plan, Suite, suite_named
from robustly.objectives import OBJECTIVES

_NOT_SETTINGS = ("objective", "estimator", "diversity")  # chosen by name, or from code only


class SuiteSettingsError(ValueError):
    """A stage that is not one; the message names it and says what is allowed."""


def suite_from(name: str, stages: Mapping[str, Mapping[str, Any]] | None, norm: str) -> Suite:
    """A known suite, or one composed of stages.

    Args:
        name: its name; with stages, one of the user's own.
        stages: by name: `attack`, a known preset or kind; the settings of that kind; and, as `Plan` has them, who
            sees it: `closest`, `at_least`, `sample`, `sentinel`, `on_suspicion`. None for a known suite.
        norm: the threat's norm.

    Raises:
        SuiteSettingsError: an unknown suite, attack, setting or objective, or a value out of range.
    """
    try:
        if stages is None:
            return suite_named(name, norm)
        if name in SUITES:
            raise SuiteSettingsError(f"{name!r} is a known suite: give one with stages of its own another name")
        built = {stage: _stage(f"stages.{stage}", settings) for stage, settings in stages.items()}
        titles = {stage: TITLES.get(str(settings["attack"]), stage) for stage, settings in stages.items()}
        return Suite(
            name,
            {stage: attack for stage, (attack, _) in built.items()},
            titles=titles,
            plans={stage: plan for stage, (_, plan) in built.items()},
            worst_case=True,
        )
    except SuiteSettingsError:
        raise
    except ValueError as error:
        raise SuiteSettingsError(str(error)) from None


def _stage(where: str, settings: Mapping[str, Any]) -> tuple[Attack, Plan]:
    if not isinstance(settings, Mapping) or not isinstance(settings.get("attack"), str):
        raise SuiteSettingsError(f"{where}: expected 'attack' and its settings, got {settings!r}")
    plan_keys = {item.name for item in fields(Plan)}
    given = {key: value for key, value in settings.items() if key != "attack" and key not in plan_keys}
    plan = _built(Plan, {key: value for key, value in settings.items() if key in plan_keys}, where)
    return _attack(where, settings["attack"], given), plan


def _attack(where: str, kind: str, given: dict[str, Any]) -> Attack:
    if kind not in ATTACKS and kind not in ATTACK_KINDS:
        allowed = ", ".join([*ATTACKS, *ATTACK_KINDS])
        raise SuiteSettingsError(f"{where}: unknown attack {kind!r}; allowed: {allowed}")
    base: Any = ATTACKS[kind] if kind in ATTACKS else ATTACK_KINDS[kind]()
    known = [item.name for item in fields(base) if item.init and item.name not in _NOT_SETTINGS[1:]]
    for key in given:
        if key not in known:
            raise SuiteSettingsError(f"{where}: {kind} has no setting {key!r}; allowed: {', '.join(known)}")
    if "objective" in given:
        if given["objective"] not in OBJECTIVES:
            raise SuiteSettingsError(
                f"{where}.objective: unknown name {given['objective']!r}; allowed: {', '.join(OBJECTIVES)}"
            )
        base = replace(base, objective=OBJECTIVES[given["objective"]])
    rest = {key: value for key, value in given.items() if key != "objective"}
    typed = _built(type(base), {**_plain_settings(base), **rest}, where)
    attack: Attack = replace(base, **{key: getattr(typed, key) for key in rest})
    return attack


def _plain_settings(base: Any) -> dict[str, Any]:
    return {item.name: getattr(base, item.name) for item in fields(base) if item.name not in _NOT_SETTINGS}


def _built(cls: Any, settings: dict[str, Any], where: str) -> Any:
    """A dataclass from plain values, types checked."""
    assert is_dataclass(cls)
    skip = {name for name in _NOT_SETTINGS if name in {item.name for item in fields(cls)}}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "stage", skip=skip)
    try:
        return parser.instantiate(parser.parse_object({"stage": settings})).stage
    except (ArgumentError, ValueError) as error:
        raise SuiteSettingsError(f"{where}: {' '.join(str(error).split())}") from None
