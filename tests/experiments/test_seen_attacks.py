"""Attacks seen in training: by search, objective and kind of threat, for every inner maximisation and recipe."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from robustly.attacks import ATTACKS
from robustly.attacks.apgd import APGD
from robustly.attacks.composite import Composite
from robustly.attacks.core.gradient_estimators import NES
from robustly.attacks.mim import MIM
from robustly.attacks.pgd import PGD
from robustly.cli.recipes import read_recipe
from robustly.evaluation.suites.suite import Suite
from robustly.experiments.configuration import RunConfig, build_config
from robustly.experiments.overrides import apply_overrides
from robustly.experiments.seen_attacks import ascent_objective, inner_objective, seen_attacks, seen_in_run
from robustly.objectives import OBJECTIVES, cross_entropy, margin
from robustly.training import INNER_MAXIMISERS, MixedInner

DYNAT = {name: ATTACKS[name] for name in ("fgsm", "pgd_20", "cw_20")}
EXPECTED = {
    "standard": ("selection", "selection", None),
    "fgsm_at": ("training", "training", None),
    "pgd_at": ("training", "training", None),
    "fast_at": ("training", "training", None),
    "free_at": ("training", "training", None),
    "n_fgsm": ("training", "training", None),
    "fat": ("training", "training", None),
    "sat": ("training", "training", None),
    "mart": ("training", "training", None),
    "dynat_inner": ("training", "training", None),
    "trades": ("selection", "selection", None),
    "fat_trades": ("selection", "selection", None),
    "dynat": ("selection", "selection", None),
    "gkl": ("selection", "selection", None),
    "adaad": ("selection", "selection", None),
    "rslad": ("selection", "selection", None),
}


def config(recipe: str, *words: str) -> RunConfig:
    settings = read_recipe(recipe)
    teachers = [
        word
        for name in ("teacher", "standard_teacher")
        if settings.get(name) is not None
        for word in (f"--{name}.weights", "teacher.safetensors")
    ]
    return build_config(apply_overrides(settings, [*teachers, *words]))


@pytest.mark.parametrize(("recipe", "expected"), EXPECTED.items())
def test_marks_of_a_recipe(recipe: str, expected: tuple[str | None, ...]) -> None:
    found = seen_in_run(config(f"mnist5k/{recipe}"), "linf", DYNAT)
    assert tuple(found.get(name) for name in DYNAT) == expected


def test_another_objective_marks_other_attacks() -> None:
    trained = config("mnist5k/pgd_at", "--method.inner.objective", "margin")
    assert seen_in_run(trained, "linf", DYNAT) == {"fgsm": "selection", "pgd_20": "selection", "cw_20": "training"}
    with_kl: Mapping[str, Any] = {"kl": PGD(objective=OBJECTIVES["kl"])}
    assert seen_in_run(config("mnist5k/trades"), "linf", with_kl) == {"kl": "training"}
    assert seen_in_run(config("mnist5k/rslad"), "linf", with_kl) == {}


def test_another_kind_of_threat_is_new_to_the_network() -> None:
    assert seen_in_run(config("mnist5k/pgd_at"), "l2", DYNAT) == {}
    in_l2 = config("mnist5k/pgd_at", "--threat", "l2:1", "--method.inner.step_size", "null")
    assert seen_in_run(in_l2, "l2", DYNAT)["pgd_20"] == "training"


@pytest.mark.parametrize("recipe", ["max", "avg", "stochastic_multi", "eat", "msd"])
def test_a_network_has_seen_the_attacks_of_every_threat_of_its_training(recipe: str) -> None:
    trained = config(f"mnist5k/{recipe}", "--threats", '["linf:0.3", "l1:10"]')
    expected = {"fgsm": "training", "pgd_20": "training"}
    assert [seen_in_run(trained, kind, DYNAT) for kind in ("linf", "l1", "l2")] == [expected, expected, {}]


def test_a_network_trained_without_an_attack_has_seen_that_of_the_first_threat_only() -> None:
    trained = config("mnist5k/standard", "--threats", '["linf:0.3", "l1:10"]')
    assert seen_in_run(trained, "linf", DYNAT) == {"fgsm": "selection", "pgd_20": "selection"}
    assert seen_in_run(trained, "l1", DYNAT) == {}


def test_composite_training_has_seen_the_composite_attack() -> None:
    attacks: Mapping[str, Any] = {
        "pgd": PGD(),
        "caa": Composite(steps=2, order="fixed"),
        "cw": PGD(objective=margin),
    }
    attacks |= {"caa_margin": Composite(objective=margin)}
    trained = config("mnist5k/gat")
    assert seen_in_run(trained, "any_order", attacks) == {"pgd": "selection", "caa": "training"}
    assert seen_in_run(trained, "linf", attacks) == {}
    other = config("mnist5k/pgd_at", "--threat", "rotation:10&linf:0.1")
    assert seen_in_run(other, "any_order", attacks) == {"pgd": "training"}
    in_a_ball = config("mnist5k/gat", "--threat", "linf:0.1")
    assert seen_in_run(in_a_ball, "linf", attacks) == {"pgd": "training"}


def test_steepest_ascent_alone_is_the_search_of_training() -> None:
    for same in (PGD(steps=3, restarts=4, start="none"), PGD(relative_step_size=0.1), PGD(precision="bfloat16")):
        assert ascent_objective(same) == "cross_entropy"
    assert ascent_objective(PGD(objective=margin)) == "margin"
    for other in (
        PGD(update="adam"),
        PGD(update="normalised"),
        PGD(estimator=NES(samples=2)),
        PGD(objective=lambda logits, goal: 2 * cross_entropy(logits, goal)),
        APGD(),
        MIM(),
    ):
        assert ascent_objective(other) is None


def test_every_inner_maximisation_is_known() -> None:
    """A new one has to be put into `inner_objective` and into this table."""
    assert {name: inner_objective(part()) for name, part in INNER_MAXIMISERS.items()} == {
        "pgd": "cross_entropy",
        "mixed": "cross_entropy",
        "adaad": None,
        "gkl": None,
        "n_fgsm": "cross_entropy",
        "free": "cross_entropy",
        "friendly": "cross_entropy",
        "curriculum": "cross_entropy",
        **dict.fromkeys(("max", "avg", "stochastic_multi", "eat", "msd"), "cross_entropy"),
        "composite": "cross_entropy",
    }
    assert inner_objective(None) is None
    assert inner_objective(MixedInner(kl=1.0)) == "kl"
    assert inner_objective(MixedInner(kl=1.0, kl_on="wrong")) == "cross_entropy"


def test_a_network_from_elsewhere_is_unknown(tmp_path: Path) -> None:
    suite = Suite("s", DYNAT)
    settings = config("mnist5k/pgd_at")
    assert seen_attacks(tmp_path, settings, "linf", suite) is None
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert seen_attacks(tmp_path, settings, "linf", suite) == {"fgsm": "training", "pgd_20": "training"}
