"""Every shipped recipe has valid settings. What its training ends with is tested with the golden values."""

import pytest

from robustly.cli.recipes import read_recipe, recipe_names
from robustly.experiments.configuration import build_config
from robustly.settings import SettingsError
from robustly.training.engine.job import check_networks


@pytest.mark.parametrize("recipe", recipe_names())
def test_settings_are_valid_and_name_their_source(recipe: str) -> None:
    settings = read_recipe(recipe)
    for role in ("teacher", "standard_teacher"):
        if isinstance(network := settings.get(role), dict):
            assert "weights" not in network, "whose teacher that is says the user"
            settings[role] = {**network, "weights": "FILE"}
    config = build_config(settings)
    config.method.check_epochs(config.training.epochs)
    check_networks(config.method, {name: network.frozen for name, network in config.networks.items()})
    assert config.recipe == recipe


def test_a_step_in_units_of_the_images_is_refused_under_other_units() -> None:
    """Ten steps of 2/255 degrees would train on images that are not rotated."""
    settings = {**read_recipe("cifar10/pgd_at"), "threat": "rotation:30"}
    with pytest.raises(SettingsError, match=r"method\.inner\.step_size .*degrees.*relative_step_size"):
        build_config(settings)
    method = settings["method"]
    inner = {**method["inner"], "step_size": None, "relative_step_size": 0.25}
    assert build_config({**settings, "method": {**method, "inner": inner}}).threat.kind == "rotation"


def test_every_method_of_the_literature_is_there_for_both_data_sets() -> None:
    for method in WANTED:
        for data in ("mnist5k", "cifar10"):
            assert f"{data}/{method}" in recipe_names(), f"{data}/{method}"


WANTED = (
    *("standard", "pgd_at", "trades", "fast_at", "n_fgsm", "gradalign", "free_at", "alp", "mart", "fat", "sat"),
    *("h_sat", "lbgat0", "lbgat6"),
    *("gairat", "mail_at", "mail_trades", "mail_mart", "at_awp", "trades_awp", "gkl", "ikl", "kd_swa"),
    *("ard", "rslad", "iad", "iad2", "adaad", "trades_smoothed", "trades_awp_ema", "trades_extra"),
    *("fat_trades", "fat_mart", "gair_fat", "mail_mse"),
    *("dynat", "dynat_inner", "dynat_awp_0", "dynat_awp_1", "dynat_inner_awp", "dynat_gairat"),
    *("dynat_inner_gairat", "dynat_mail", "dynat_inner_mail", "dynat_swapped"),
)
