"""Suites written in YAML: stages by name, each an attack with its settings and its plan."""

import re
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from torch import nn

from robustly.attacks import ATTACK_KINDS, ATTACKS, TITLES, Attack
from robustly.attacks.core.gradient_estimators import NES, SPSA
from robustly.attacks.mim import MIM, InputDiversity
from robustly.attacks.transfer import Transfer, Unloaded
from robustly.certification.certificates import BoundCertificate
from robustly.evaluation.suites.certified import certificate_of, split_certificates, with_certificates
from robustly.evaluation.suites.given import as_suite
from robustly.evaluation.suites.named import SUITES
from robustly.evaluation.suites.suite import Suite, ThreatOrKind
from robustly.evidence.provenance import Plan
from robustly.objectives import OBJECTIVES
from robustly.settings import SettingsError, build, changed, check_keys, choose

_LONGEST = 60
_TRANSFER = "transfer"
_ONLY_FROM_CODE = ("estimator", "diversity")


def suite_from(name: str, stages: Mapping[str, Mapping[str, Any]] | None, threat: ThreatOrKind) -> Suite:
    """A built-in suite, attacks by their names, or a new suite composed of stages.

    Args:
        name: name of a built-in suite, or names of attacks separated by commas; with stages, a new name. Either may
            be followed by certificates ("quick+certify").
        stages: settings of each stage by name: `attack`, the name of a preset or kind; settings of that attack; and
            settings of its `Plan`, which selects the examples (`closest`, `at_least`, `sample`, `sample_share`,
            `sentinel`, `on_suspicion`). `nes` and `spsa` also have `samples` and `sigma`. `transfer` has
            `surrogate`, a run folder or file of weights or a list of them, and `craft`, the name of the attack that
            the other settings are of ("mim" with random resizing without it). A stage with `certificate` in place
            of `attack` is a proof of the images that the attacks leave; see `certificate_of`. None for a suite
            without stages.
        threat: the threat, or its kind.

    Raises:
        SettingsError: an unknown suite, attack, key or objective, or a value of another type or out of range.
    """
    try:
        if stages is None:
            return as_suite(name, threat)
        if _plain(name) in {_plain(known) for known in SUITES}:
            raise SettingsError(f"{name!r} is the name of a known suite: a suite with stages needs another name")
        for given in (name, *stages):
            if not given.isascii() or not given.isprintable() or len(given) > _LONGEST:
                raise SettingsError(
                    f"names of suites and stages are at most {_LONGEST} printable ASCII characters, got {given!r}"
                )
        name, proofs = split_certificates(name)
        attacks = {stage: settings for stage, settings in stages.items() if not _is_proof(settings)}
        built = {stage: _stage(f"stages.{stage}", settings) for stage, settings in attacks.items()}
        titles = {stage: _title(stage, settings, built[stage][0]) for stage, settings in attacks.items()}
        suite = Suite(
            name,
            {stage: attack for stage, (attack, _) in built.items()},
            titles=titles,
            plans={stage: plan for stage, (_, plan) in built.items()},
            worst_case=True,
            certificates={
                stage: _proof(f"stages.{stage}", settings)
                for stage, settings in stages.items()
                if stage not in attacks
            },
        )
        return with_certificates(suite, proofs)
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


def _is_proof(settings: Any) -> bool:
    return isinstance(settings, Mapping) and "certificate" in settings


def _proof(where: str, settings: Mapping[str, Any]) -> BoundCertificate:
    check_keys(settings, ["certificate"], where)
    return certificate_of(f"{where}.certificate", settings["certificate"])


def _stage(where: str, settings: Any) -> tuple[Attack, Plan]:
    if not isinstance(settings, Mapping) or not isinstance(settings.get("attack"), str):
        raise SettingsError(f"{where}: expected 'attack' and its settings, or 'certificate', got {settings!r}")
    plan_keys = [item.name for item in fields(Plan)]
    plan = build(Plan, {key: value for key, value in settings.items() if key in plan_keys}, where)
    given = {key: value for key, value in settings.items() if key not in ("attack", *plan_keys)}
    table: dict[str, Any] = {**ATTACKS, **ATTACK_KINDS, _TRANSFER: Transfer}
    choose(table, settings["attack"], f"{where}.attack")
    if settings["attack"] == _TRANSFER:
        return _transfer(where, given), plan
    return _attack(where, settings["attack"], given), plan


def _transfer(where: str, given: dict[str, Any]) -> Transfer:
    """A transfer from surrogates that are loaded later, by `with_surrogates`."""
    rest = {key: value for key, value in given.items() if key not in ("surrogate", "craft")}
    sources = given.get("surrogate")
    sources = [sources] if isinstance(sources, str) else sources
    if not isinstance(sources, list | tuple) or not sources or not all(isinstance(one, str) for one in sources):
        raise SettingsError(
            f"{where}.surrogate: expected a run folder or a file of weights, or a list of them, got {sources!r}"
        )
    craft = given.get("craft")
    attack = _attack(where, craft, rest) if craft is not None else _attack(where, "mim", rest)
    if craft is None and isinstance(attack, MIM):
        attack = replace(attack, diversity=InputDiversity())
    return Transfer(attack, tuple(Unloaded(one) for one in sources))


def with_surrogates(suite: Suite, load: Callable[[str, str], nn.Module]) -> Suite:
    """The suite with its surrogates loaded.

    Args:
        suite: a suite of `suite_from`.
        load: from the name of a stage and a source to the network.
    """

    def loaded(stage: str, attack: Attack) -> Attack:
        if not isinstance(attack, Transfer):
            return attack
        networks = [load(stage, one.source) if isinstance(one, Unloaded) else one for one in attack.surrogates]
        return replace(attack, surrogates=tuple(networks))

    return replace(suite, attacks={stage: loaded(stage, attack) for stage, attack in suite.attacks.items()})


def _attack(where: str, name: Any, given: dict[str, Any]) -> Attack:
    """An attack by its name, with settings."""
    chosen: Any = choose({**ATTACKS, **ATTACK_KINDS}, name, f"{where}.attack")
    attack = chosen() if name in ATTACK_KINDS else chosen
    known = [item.name for item in fields(attack) if item.init and item.name not in _ONLY_FROM_CODE]
    estimator = getattr(attack, "estimator", None)
    if isinstance(estimator, NES | SPSA):
        own = {key: given.pop(key) for key in ("samples", "sigma") if key in given}
        attack = replace(attack, estimator=changed(estimator, own, where, ("samples", "sigma")))
        check_keys(given, [*known, "samples", "sigma"], where)
    check_keys(given, known, where)
    if "objective" in given:
        attack = replace(attack, objective=choose(OBJECTIVES, given.pop("objective"), f"{where}.objective"))
    made: Attack = changed(attack, given, where, known)
    return made
