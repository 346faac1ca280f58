"""Settings with several threats: keys, command line, digests, and refusals."""

from pathlib import Path

import pytest
import yaml

from robustly.cli.arguments import split_overrides
from robustly.cli.recipes import read_recipe
from robustly.data import DataConfig
from robustly.experiments.configuration import RunConfig, build_config
from robustly.experiments.overrides import apply_overrides, overlay
from robustly.experiments.run_folder import build_job
from robustly.experiments.settings_help import settings_of
from robustly.settings import SettingsError


def config(recipe: str, *words: str) -> RunConfig:
    _, overrides = split_overrides(["train", recipe, *words])
    return build_config(apply_overrides(read_recipe(recipe), overrides))


def texts(found: RunConfig) -> list[str]:
    return [str(threat) for threat in found.threats]


def test_threats_of_a_command_line_end_where_other_words_begin() -> None:
    words, overrides = split_overrides(
        ["evaluate", "--threats", "linf:8/255", "hue:0.5+linf:4/255", "runs/a", "--seed", "1", "--keep"]
    )
    assert words == ["evaluate", "runs/a", "--keep"]
    assert overrides == ["--threats", '["linf:8/255", "hue:0.5+linf:4/255"]', "--seed", "1"]
    assert split_overrides(["train", "--threats", "[l2:1, l1:2]"])[1] == ["--threats", "[l2:1, l1:2]"]
    assert split_overrides(["train", "--threats=l2:1", "l1:2"])[1] == ["--threats", '["l2:1", "l1:2"]']


def test_one_key_takes_the_place_of_the_other() -> None:
    assert texts(config("mnist5k/max")) == ["linf:0.3", "l2:2", "l1:10"]
    assert texts(config("mnist5k/max", "--threats", "l2:1", "linf:0.1")) == ["l2:1", "linf:0.1"]
    one = config("mnist5k/max", "--threat", "l2:1")
    assert (texts(one), one.as_plain()["threat"], "threats" in one.as_plain()) == (["l2:1"], "l2:1", False)
    several = config("mnist5k/pgd_at", "--threats", "l2:1", "linf:0.1")
    assert several.as_plain()["threats"] == ["l2:1", "linf:0.1"]
    assert "threat" not in several.as_plain()
    assert str(several.threat) == "l2:1"
    assert texts(build_config(overlay(read_recipe("mnist5k/max"), {"threat": "l1:3"}))) == ["l1:3"]
    assert texts(several.for_threat(1)) == ["linf:0.1"]


def test_a_list_of_one_is_one_threat_with_the_same_digest() -> None:
    one, listed = config("mnist5k/pgd_at", "--threat", "l2:1"), config("mnist5k/pgd_at", "--threats", "l2:1")
    assert listed == one
    assert listed.digest() == one.digest()
    several = [config("mnist5k/max", "--threats", *names) for names in (("l2:1", "l1:2"), ("l1:2", "l2:1"))]
    assert len({one.digest() for one in (*several, one)}) == 3


def test_the_whole_configuration_is_read_again(tmp_path: Path) -> None:
    plain = config("mnist5k/eat").as_plain()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(plain))
    assert build_config(read_recipe(str(tmp_path / "config.yaml"))).as_plain() == plain
    del plain["threats"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(plain))
    with pytest.raises(SettingsError, match="the key 'recipe' is allowed only in the complete"):
        read_recipe(str(tmp_path / "config.yaml"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--threats", "linf:0.1", "linf:1/10"], r"threats: linf:0\.1 is named twice"),
        (["--threats", "linf:0.1", "l2:1", "--threat", "l1:1"], "the command line: give threat .* or threats"),
        (["--threats", "linf:0.1", "l9:1"], "threats: unknown threat 'l9'"),
        (["--threats"], "threats: name 1 to 16 threats, got 0"),
        (["--threats", "[3, 4]"], "threats: expected a list"),
        (["--threats", "linf:0.1", "rotation:9", "--evaluation.curve", "100"], "evaluation: "),
    ],
)
def test_wrong_threats_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        config("mnist5k/max", *words)


def test_both_keys_in_one_file_are_refused(tmp_path: Path) -> None:
    both = {"threat": "linf:0.1", "threats": ["l2:1"]}
    with pytest.raises(SettingsError, match="the settings: give threat"):
        build_config(both)
    with pytest.raises(SettingsError, match="the file: give threat"):
        overlay(read_recipe("mnist5k/max"), both)


def test_a_training_attack_under_one_threat_refuses_several() -> None:
    with pytest.raises(
        SettingsError, match=r"'pgd' attacks under one threat.*linf:0\.3, l2:2.*max, avg, stoch.*, msd"
    ):
        build_job(config("mnist5k/pgd_at", "--threats", "linf:0.3", "l2:2"), lambda name: False)
    with pytest.raises(ValueError, match=r"msd is defined for Lp threats.*rotation:30"):
        build_job(config("mnist5k/msd", "--threats", "linf:0.3", "rotation:30"), lambda name: False)


def test_a_step_in_units_of_the_images_is_refused_under_any_other_unit() -> None:
    with pytest.raises(SettingsError, match=r"step_size.*rotation:30"):
        config("cifar10/pgd_at", "--threats", "linf:0.1", "rotation:30")


def test_the_help_lists_the_threats() -> None:
    found = {one.key: one.value for one in settings_of(config("mnist5k/max"))}
    assert found["threats"] == "linf:0.3 l2:2 l1:10"
    assert "threat" not in found
    assert config("mnist5k/max").data == DataConfig(source="mnist5k", validation=500, test=1000)
