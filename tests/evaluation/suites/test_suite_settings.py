"""Suites composed in settings, and messages on wrong ones."""

import pytest

from robustly.attacks import APGD, PGD, TargetedAPGD
from robustly.evaluation import Plan
from robustly.evaluation.suites.composed import suite_from
from robustly.experiments.configuration import build_config
from robustly.objectives import margin, scaled_cross_entropy
from robustly.settings import SettingsError

STAGES = {
    "screen": {"attack": "apgd", "steps": 7, "objective": "scaled_cross_entropy", "precision": "bfloat16"},
    "targets": {"attack": "apgd_t", "targets": 2, "ranking": "malt", "closest": 0.5, "at_least": 10},
    "papers": {"attack": "cw_20", "restarts": 3, "sample": 50, "sentinel": True},
    "more": {"attack": "pgd", "on_suspicion": True},
}


def test_stages_become_attacks_with_their_settings_and_plans() -> None:
    suite = suite_from("mine", STAGES, "linf")
    assert list(suite.attacks) == list(STAGES)
    assert suite.attacks["screen"] == APGD(7, scaled_cross_entropy, precision="bfloat16")
    assert suite.attacks["targets"] == TargetedAPGD(targets=2, ranking="malt")
    assert suite.attacks["papers"] == PGD(20, margin, relative_step_size=0.25, restarts=3)
    assert suite.plan("targets") == Plan(closest=0.5, at_least=10)
    assert suite.plan("papers") == Plan(sample=50, sentinel=True)
    assert suite.plan("more") == Plan(on_suspicion=True)
    assert suite.worst_case


@pytest.mark.parametrize("name", ["quick", "standard", "strong", "aa_standard", "dynat"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_known_suites_are_defined_for_the_usual_norms(name: str, norm: str) -> None:
    suite = suite_from(name, None, norm)
    assert all(norm in getattr(attack, "norms", (norm,)) for attack in suite.attacks.values())


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ({"a": {"attack": "nothing"}}, "stages.a.attack: .*'nothing'.*allowed: fgsm"),
        ({"a": {"steps": 3}}, "stages.a: expected 'attack' and its settings"),
        (
            {"a": {"attack": "pgd", "stepz": 3}},
            r"stages.a.stepz', did you mean 'steps'\?; allowed: steps, objective",
        ),
        ({"a": {"attack": "pgd", "objective": "os.system"}}, "stages.a.objective: unknown name 'os.system'"),
        ({"a": {"attack": "pgd", "steps": -1}}, "stages.a: .*steps must be at least 0"),
        ({"a": {"attack": "pgd", "steps": "many"}}, "stages.a.steps: .*whole number.*many"),
        ({"a": {"attack": "pgd", "closest": 2}}, "stages.a: .*closest is a share"),
        ({"a": {"attack": "pgd", "estimator": "os.system"}}, "unknown key 'stages.a.estimator'"),
        ({"a b": {"attack": "pgd"}}, "names in a suite are plain words"),
        ({}, "is empty"),
    ],
)
def test_a_stage_that_makes_no_sense_is_named(stages: dict, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        suite_from("mine", stages, "linf")


def test_a_known_name_cannot_be_given_to_another_suite() -> None:
    with pytest.raises(SettingsError, match="'standard' is the name of a known suite"):
        suite_from("standard", STAGES, "linf")


@pytest.mark.parametrize(("name", "stage"), [("st\u0430ndard", "one"), ("mine", "\u0430pgd_t"), ("m" * 61, "one")])
def test_names_that_look_like_others_are_refused(name: str, stage: str) -> None:
    """Cyrillic letters look like Latin ones."""
    with pytest.raises(SettingsError, match="printable ASCII"):
        suite_from(name, {stage: {"attack": "pgd_10"}}, "linf")


def test_a_configuration_is_refused_before_any_work() -> None:
    assert build_config({"evaluation": {"suite": "mine", "stages": STAGES}}).evaluation.stages == STAGES
    with pytest.raises(SettingsError, match=r"evaluation: stages\.a\.attack: .*'x'"):
        build_config({"evaluation": {"suite": "mine", "stages": {"a": {"attack": "x"}}}})
    with pytest.raises(SettingsError, match="unknown suite or attack 'none'"):
        build_config({"evaluation": {"suite": "none"}})
    with pytest.raises(SettingsError, match=r"version standard .*linf, l2, l1\b"):
        build_config({"evaluation": {"suite": "aa_standard"}, "threat": "l0:10"})
