from dataclasses import replace

import pytest

from robustly.cli.recipes import read_recipe
from robustly.data import DataConfig
from robustly.experiments.configuration import RunConfig, build_config
from robustly.settings import SettingsError

DIGESTS = {"mnist5k/trades": "683bdbe35a182ead", "cifar10/dynat": "39f0dfea2b369755"}
"""Hashes that version 0.1.0 wrote before fine-tuning, `data.classes` and `model.weights_key` were added."""


def as_then(recipe: str) -> RunConfig:
    settings = read_recipe(recipe)
    return build_config({**settings, "data": {**settings.get("data", {}), "subset": "first", "validation": 500}})


@pytest.mark.parametrize("recipe", DIGESTS)
def test_settings_that_were_added_do_not_change_the_hash_of_a_run(recipe):
    config = as_then(recipe)
    assert config.digest() == DIGESTS[recipe]
    named = replace(config, data=replace(config.data, classes="names.txt"))
    keyed = replace(config, model=replace(config.model, weights_key="ema"))
    decayed = replace(config, optimizer=replace(config.optimizer, layer_decay=0.5))
    assert len({one.digest() for one in (config, named, keyed, decayed)}) == 4


def test_compiled_passes_round_otherwise_and_are_part_of_the_hash():
    config = as_then("mnist5k/trades")
    compiled, graphs = (
        replace(config, runtime=replace(config.runtime, **{name: True})).digest() for name in ("compile", "graphs")
    )
    assert graphs == config.digest() != compiled


def test_the_assignment_of_threats_to_domains_does_not_change_the_hash_of_earlier_runs():
    settings = read_recipe("mnist5k/tafd")
    assert build_config(settings).digest() == "5763230456e644b7"
    loss = {**settings["method"]["loss"], "assignment": "random"}
    other = build_config({**settings, "method": {**settings["method"], "loss": loss}})
    assert other.digest() != "5763230456e644b7"
    with pytest.raises(SettingsError, match="spectra"):
        build_config({**settings, "method": {**settings["method"], "loss": {**loss, "assignment": "fixed"}}})


def test_the_text_of_data_settings_has_the_added_one_once():
    assert repr(DataConfig()).count(", classes=None") == 1
