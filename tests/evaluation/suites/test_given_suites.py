"""Suites given by names of attacks, as attacks, and as lists; gradient-free estimators and transfer in stages."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from robustly.attacks import ATTACKS, FAB, MIM, NES, PGD, SPSA, Square, Transfer
from robustly.attacks.core.contract import AttackError
from robustly.evaluation.suites import as_suite, suite_named
from robustly.evaluation.suites.composed import suite_from, with_surrogates
from robustly.evaluation.suites.suite import settings
from robustly.experiments.configuration import EvaluationConfig, build_config
from robustly.models import weights_hash
from robustly.settings import SettingsError


def test_names_with_commas_become_stages() -> None:
    suite = as_suite("pgd_20, square,spsa", "linf")
    assert suite.name == "pgd_20,square,spsa"
    assert suite.attacks == {"pgd_20": ATTACKS["pgd_20"], "square": Square(), "spsa": ATTACKS["spsa"]}
    assert suite.title("spsa") == "SPSA"
    assert not suite.worst_case
    assert suite_from(suite.name, None, "linf") == suite, "an audit rebuilds it from its name"


def test_one_name_is_a_suite_of_one_stage_and_names_of_suites_stay() -> None:
    assert list(as_suite("fab", "l2").attacks) == ["fab"]
    assert as_suite("quick", "linf") == suite_named("quick", "linf")
    suite = suite_named("dynat", "linf")
    assert as_suite(suite, "linf") is suite


def test_attacks_and_lists_of_attacks_and_names() -> None:
    assert as_suite(PGD(7), "linf").attacks == {"pgd": PGD(7)}
    suite = as_suite([PGD(3), "pgd_10", PGD(5), FAB(steps=4)], "linf")
    assert suite.attacks == {"pgd": PGD(3), "pgd_10": ATTACKS["pgd_10"], "pgd_2": PGD(5), "fab": FAB(steps=4)}
    assert as_suite(["pgd_10", "fab"], "linf").name == "pgd_10,fab"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("pgd_20,sqare", r"unknown suite or attack 'sqare', did you mean 'square'\?; suites: quick"),
        ("standart", "unknown suite or attack 'standart', did you mean 'standard'"),
        ("pgd_20,standard", "'standard' is a suite and cannot be listed"),
        ("pgd,pgd", "'pgd' is given twice"),
        ("", "unknown suite or attack"),
        ([], "is empty"),
    ],
)
def test_other_values_are_named(given: object, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        as_suite(given, "linf")  # type: ignore[arg-type]


def test_the_command_line_takes_the_same_names() -> None:
    assert EvaluationConfig(suite="pgd_20,nes").suite == "pgd_20,nes"
    with pytest.raises(SettingsError, match="did you mean 'spsa'"):
        EvaluationConfig(suite="spas")


def test_estimators_have_their_samples_in_stages() -> None:
    stages = {"a": {"attack": "nes", "samples": 3, "steps": 2}, "b": {"attack": "spsa", "sigma": 0.5, "samples": 4}}
    suite = suite_from("mine", stages, "linf")
    assert suite.attacks["a"] == replace(ATTACKS["nes"], steps=2, estimator=NES(3))
    assert suite.attacks["b"] == replace(ATTACKS["spsa"], estimator=SPSA(4, 0.5))
    with pytest.raises(SettingsError, match="samples must be at least 1"):
        suite_from("mine", {"a": {"attack": "nes", "samples": 0}}, "linf")
    with pytest.raises(SettingsError, match=r"unknown key 'stages\.a\.samplez'"):
        suite_from("mine", {"a": {"attack": "nes", "samplez": 1}}, "linf")
    with pytest.raises(SettingsError, match=r"unknown key 'stages\.a\.samples'"):
        suite_from("mine", {"a": {"attack": "pgd", "samples": 1}}, "linf")


def test_a_transfer_names_its_surrogates_until_they_are_loaded() -> None:
    stages = {"t": {"attack": "transfer", "surrogate": ["a", "b"], "craft": "pgd", "steps": 3}}
    suite = suite_from("mine", stages, "linf")
    attack = suite.attacks["t"]
    assert isinstance(attack, Transfer)
    assert attack.attack == PGD(3)
    with pytest.raises(AttackError, match="surrogate a is named, but not loaded"):
        attack.surrogates[0](torch.zeros(1))
    networks = {"a": nn.Linear(2, 3), "b": nn.Linear(2, 3)}
    loaded = with_surrogates(suite, lambda stage, source: networks[source]).attacks["t"]
    assert isinstance(loaded, Transfer)
    assert [weights_hash(one) for one in networks.values()] == [
        part["weights_sha256"] for part in settings(loaded)["surrogates"]
    ]


def test_a_transfer_crafts_with_mim_and_diversity_and_needs_a_surrogate() -> None:
    (attack,) = suite_from("mine", {"t": {"attack": "transfer", "surrogate": "a"}}, "linf").attacks.values()
    assert isinstance(attack, Transfer)
    assert isinstance(attack.attack, MIM)
    assert attack.attack.diversity is not None
    with pytest.raises(SettingsError, match=r"stages\.t\.surrogate: expected a run folder"):
        suite_from("mine", {"t": {"attack": "transfer"}}, "linf")
    with pytest.raises(SettingsError, match="do not transfer"):
        suite_from("mine", {"t": {"attack": "transfer", "surrogate": "a", "craft": "fab"}}, "linf")


def test_surrogates_are_named_from_the_root(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from robustly.experiments.configuration import with_absolute_paths

    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    stages = {"t": {"attack": "transfer", "surrogate": "other"}}
    config = with_absolute_paths(build_config({"evaluation": {"suite": "mine", "stages": stages}}))
    assert config.evaluation.stages == {"t": {"attack": "transfer", "surrogate": str(tmp_path / "other")}}


@pytest.mark.parametrize(
    ("given", "hint"),
    [("PGD_20", "did you mean 'pgd_20'"), ("AutoAttack", "did you mean 'aa_standard'"), ([], "is empty")],
)
def test_usual_slips_get_a_hint(given, hint):
    with pytest.raises(SettingsError, match=hint):
        as_suite(given, "linf")
