"""Every shipped recipe has valid settings. What its training ends with is tested with the golden values."""

import pytest

from robustly.cli.recipes import read_recipe, recipe_names, recipe_text
from robustly.experiments.configuration import build_config
from robustly.settings import SettingsError
from robustly.training.engine.job import check_networks
from robustly.training.inner.single_step import FreeInner


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


def row(name: str) -> tuple[str, str | None, str]:
    """Model, guide and inner objective of a recipe."""
    config = build_config(read_recipe(name))
    guide = config.networks.get("guide")
    objective = getattr(config.method.inner, "objective", type(config.method.inner).__name__)
    return config.model.name, None if guide is None else guide.model.name, objective


def test_every_row_of_the_tables_of_dynat_on_its_own_network_has_a_recipe() -> None:
    """Liu et al., arXiv 2408.13102: Tables 1 and 2 train WRN-34-10, the lower half of Table 3 ResNet-18."""
    wide, guided = ("wrn34_10", None), ("wrn34_10", "resnet18_lbgat")
    first = {
        **dict.fromkeys(("pgd_at_wrn", "mart_wrn", "at_awp", "gairat"), (*wide, "cross_entropy")),
        **dict.fromkeys(("lbgat0", "dynat", "dynat_awp_0", "dynat_awp_1"), (*guided, "kl")),
        "trades": (*wide, "kl"),
        "fat": (*wide, "cross_entropy"),
        "dynat_inner_awp": (*guided, "cross_entropy"),
    }
    second = {
        **dict.fromkeys(("pgd_at_wrn", "at_awp"), (*wide, "cross_entropy")),
        **dict.fromkeys(("lbgat6", "dynat", "dynat_awp_1"), (*guided, "kl")),
        "trades": (*wide, "kl"),
        "sat": (*wide, "CurriculumInner"),
        "dynat_inner_awp": (*guided, "cross_entropy"),
    }
    third = {
        "gairat_resnet18": ("resnet18", None, "cross_entropy"),
        "dynat_gairat_swapped": ("resnet18", "wrn34_10", "kl"),
        "dynat_inner_gairat_swapped": ("resnet18", "wrn34_10", "cross_entropy"),
    }
    assert {name: row(f"cifar10/{name}") for name in first} == first
    assert {name: row(f"cifar100/{name}") for name in second} == second
    assert {name: row(f"cifar10/{name}") for name in third} == third


@pytest.mark.parametrize("name", ["dynat_gairat", "dynat_inner_gairat"])
def test_a_swapped_recipe_has_the_method_of_the_other(name: str) -> None:
    for data in ("cifar10", "mnist5k"):
        here, swapped = (build_config(read_recipe(f"{data}/{name}{end}")) for end in ("", "_swapped"))
        assert here.method == swapped.method
        assert (here.optimizer, here.threat) == (swapped.optimizer, swapped.threat)
    narrow = build_config(read_recipe(f"mnist5k/{name}_swapped"))
    assert (narrow.model.width, narrow.networks["guide"].model.width) == (0.25, 0.5)
    assert build_config(read_recipe("mnist5k/gairat_narrow")).model == narrow.model


MODES = {
    "eval": "evaluation mode.",
    "train": "training mode.",
    "train_nostat": "training mode, without changes of its batch-norm statistics.",
}


@pytest.mark.parametrize("recipe", recipe_names())
def test_the_header_states_the_mode_of_the_attack(recipe: str) -> None:
    """Arms of one comparison should have the same one, which the settings of `mnist5k` leave to the default."""
    head = [line for line in recipe_text(recipe).splitlines() if line.startswith("#")]
    stated = [line for line in head if line.startswith("# The training attack runs with the model in ")]
    settings = {**read_recipe(recipe), "teacher": None, "standard_teacher": None}
    inner = build_config(settings).method.inner
    if inner is None:
        assert not stated
        return
    mode = "train" if isinstance(inner, FreeInner) else getattr(inner, "mode")  # noqa: B009 (not of every part)
    assert stated == [f"# The training attack runs with the model in {MODES[mode]}"]


@pytest.mark.parametrize("data", ["mnist5k", "cifar10", "cifar100"])
def test_the_control_and_the_guided_run_differ_from_dynat_as_they_say(data: str) -> None:
    dynat, control, guided = (
        build_config(read_recipe(f"{data}/{name}")).as_plain() for name in ("dynat", "at_kl", "dynat_guided")
    )
    differs = {key for key in dynat if dynat[key] != control[key]}
    assert differs == {"recipe", "guide", "method"}
    assert control["guide"] is None
    assert control["method"]["inner"] == dynat["method"]["inner"]
    assert control["method"]["inner"]["objective"] == "kl"
    assert (control["method"]["labels"], control["method"]["loss"]) == (None, {"name": "adversarial"})
    assert guided["guide"].pop("pretrain") > 0
    assert dynat["guide"].pop("pretrain") == 0
    assert guided["method"]["labels"].pop("warm_up") == 0
    dynat["method"]["labels"].pop("warm_up")
    assert {key for key in dynat if dynat[key] != guided[key]} == {"recipe"}


@pytest.mark.parametrize("data", ["mnist5k", "cifar10", "cifar100"])
def test_the_recipe_from_clean_training_is_pgd_at_but_for_the_clean_epochs(data: str) -> None:
    names = (f"{data}/{name}" for name in ("pgd_at", "pgd_at_from_clean"))
    plain, clean = (build_config(read_recipe(name)).as_plain() for name in names)
    assert clean["model"].pop("pretrain") > plain["model"].pop("pretrain") == 0
    assert clean["method"]["inner"].pop("mode") == "eval", "as in the search"
    plain["method"]["inner"].pop("mode")
    assert {key for key in plain if plain[key] != clean[key]} == {"recipe"}


WANTED = (
    *("standard", "pgd_at", "trades", "fast_at", "n_fgsm", "gradalign", "free_at", "alp", "mart", "fat", "sat"),
    *("h_sat", "lbgat0", "lbgat6"),
    *("gairat", "mail_at", "mail_trades", "mail_mart", "at_awp", "trades_awp", "gkl", "ikl", "kd_swa"),
    *("ard", "rslad", "iad", "iad2", "adaad", "trades_smoothed", "trades_awp_ema", "trades_extra"),
    *("fat_trades", "fat_mart", "gair_fat", "mail_mse"),
    *("dynat", "dynat_inner", "dynat_awp_0", "dynat_awp_1", "dynat_inner_awp", "dynat_gairat"),
    *("dynat_inner_gairat", "dynat_mail", "dynat_inner_mail", "dynat_swapped"),
    *("dynat_gairat_swapped", "dynat_inner_gairat_swapped", "at_kl", "at_kl_on_wrong", "dynat_guided"),
    *("pgd_at_from_clean", "lbgat0_ce_guided", "max", "avg", "stochastic_multi", "msd", "eat", "gat", "gat_madry"),
    *("tafd", "tafd_matched", "macer", "margin_cs"),
)
