"""Shortened recipes keep every beginning at its share of the run."""

import pytest

from robustly.cli.recipes import read_recipe, recipe_names
from robustly.experiments.configuration import build_config
from robustly.experiments.overrides import apply_overrides
from robustly.experiments.shortening import shortened


def test_epochs_at_which_parts_begin_stand_at_the_same_share_of_the_run() -> None:
    recipe = {
        "method": {
            "labels": {"name": "guide", "warm_up": 1},
            "inner": {"name": "friendly", "boundaries": [30, 60], "steps": 10, "step_size": 0.007},
            "weights": {"name": "gairat", "burn_in": 60},
            "parameters": {"awp": {"warm_up": 0}, "swa": {"start": 50}},
        },
        "model": {"name": "resnet18", "pretrain": 60},
        "guide": {"name": "resnet18", "pretrain": 20},
        "training": {"epochs": 100, "epsilon_ramp": 25},
    }
    assert shortened(recipe, 10, 5) == {
        "training.epochs": "10",
        "training.epsilon_ramp": "2.5",
        "method.labels.warm_up": "1",
        "method.inner.steps": "5",
        "method.inner.step_size": "null",
        "method.inner.relative_step_size": "0.5",
        "method.inner.boundaries": "[3, 6]",
        "method.weights.burn_in": "6",
        "method.parameters.awp.warm_up": "1",
        "method.parameters.swa.start": "5",
        "model.pretrain": "6",
        "guide.pretrain": "2",
    }


def test_few_attack_steps_stay_as_they_are() -> None:
    recipe = {"method": {"inner": {"name": "pgd", "steps": 3, "step_size": 0.1}}, "training": {"epochs": 4}}
    assert shortened(recipe, 2, 5) == {"training.epochs": "2"}
    assert shortened(recipe, 2) == {"training.epochs": "2"}


@pytest.mark.parametrize("name", [name for name in recipe_names() if "extra" not in name])
def test_every_shipped_recipe_can_be_shortened(name: str) -> None:
    recipe = read_recipe(name)
    words = [f"--{key}={value}" for key, value in shortened(recipe, 6, 5).items()]
    frozen = [role for role in ("teacher", "standard_teacher") if recipe.get(role)]
    words += [f"--{role}.weights=file.safetensors" for role in frozen]
    config = build_config(apply_overrides(recipe, words))
    assert config.training.epochs == 6
    config.method.check_epochs(6)
