"""YAML files of users, with and without a base recipe; wrong and repeated keys are refused."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from robustly.cli.recipes import read_recipe, recipe_names
from robustly.experiments.configuration import build_config
from robustly.experiments.overrides import apply_overrides, overlay
from robustly.settings import SettingsError

GUIDE = Path(__file__).parents[2] / "docs" / "training.md"
BASES = [name for name in recipe_names() if name.startswith("mnist5k/") and "teacher" not in read_recipe(name)]


def read(folder: Path, text: str) -> dict[str, object]:
    path = folder / "mine.yaml"
    path.write_text(text)
    return read_recipe(str(path))


def test_a_file_that_starts_from_a_recipe_changes_what_it_names(tmp_path: Path) -> None:
    text = """
base: mnist5k/dynat_inner_awp
method: {weights: {name: mail, burn_in: 3}, parameters: {ema: {decay: 0.9}, awp: {gamma: 0.01}}}
training: {epochs: 6}
"""
    found = build_config(read(tmp_path, text)).as_plain()
    words = "--method.weights.name mail --method.weights.burn_in 3 --method.parameters.ema.decay 0.9"
    words += " --method.parameters.awp.gamma 0.01 --training.epochs 6"
    expected = build_config(apply_overrides(read_recipe("mnist5k/dynat_inner_awp"), words.split())).as_plain()
    assert found == expected | {"recipe": "mine"}
    assert found["method"]["parameters"]["awp"]["proxy"] == "trades", "the rest stays"


def test_another_name_clears_and_null_leaves_out(tmp_path: Path) -> None:
    text = """
base: mnist5k/trades_awp_ema
model: {name: resnet18, width: 0.25}
method: {inner: {name: friendly, taus: [0], boundaries: []}, loss: mart, parameters: {awp: {proxy: own}, ema: null}}
"""
    plain = build_config(read(tmp_path, text)).as_plain()
    assert plain["method"]["inner"]["objective"] == "cross_entropy", "not the kl of what was there before"
    assert plain["method"]["loss"] == {"name": "mart", "beta": 5.0, "published_constants": False}
    assert plain["method"]["parameters"].keys() == {"awp"}
    assert plain["model"]["dropout"] is None
    without = apply_overrides(read_recipe("mnist5k/trades_awp_ema"), ["--method.parameters.awp", "null"])
    assert build_config(without).as_plain()["method"]["parameters"].keys() == {"ema"}
    weighted = overlay(read_recipe("mnist5k/mail_at"), {"method": {"weights": None}})
    assert build_config(weighted).method.weights is None


def test_a_part_by_its_name_alone_takes_settings(tmp_path: Path) -> None:
    """`loss: adversarial` in the recipe, and settings of another loss in the file."""
    assert read_recipe("mnist5k/pgd_at")["method"]["loss"] == "adversarial"  # type: ignore[index]
    plain = build_config(read(tmp_path, "base: mnist5k/pgd_at\nmethod: {loss: {name: mixture, ratio: 0.2}}"))
    assert plain.as_plain()["method"]["loss"] == {"name": "mixture", "ratio": 0.2}


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(BASES), st.sampled_from(BASES))
@pytest.mark.slow
def test_laying_a_recipe_over_itself_changes_nothing(one: str, other: str) -> None:
    whole = read_recipe(one)
    assert overlay(whole, {}) == whole
    assert build_config(overlay(whole, whole)) == build_config(whole)
    twice = overlay(overlay(whole, read_recipe(other)), read_recipe(other))
    assert twice == overlay(whole, read_recipe(other))


def test_the_whole_configuration_of_a_run_is_a_recipe(tmp_path: Path) -> None:
    plain = build_config(read_recipe("mnist5k/dynat")).as_plain()
    assert build_config(read(tmp_path, yaml.safe_dump(plain))).as_plain() == plain


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("recipe: mnist5k/trades\ntraining: {epochs: 2}", "to start from a recipe write 'base: NAME'"),
        (
            "base: mnist5k/trade",
            "base: expected the name of a shipped recipe (see `robustly recipes`), got 'mnist5k/trade'",
        ),
        ("base: [mnist5k/trades]", "base: expected the name of a shipped recipe"),
        ("base: mnist5k/trades\nrecipe: mine", "write 'base: NAME'"),
        ("base: mnist5k/trades\nseed: 1\nseed: 2", "the key 'seed' is given twice, the second time in line 3"),
        ("method: {loss: mart, inner: {name: pgd}, loss: trades}", "the key 'loss' is given twice"),
        ("base: mnist5k/trades\ntraining: {epochs: {of: 3}}", "epochs"),
        ("base: mnist5k/trades\nmethods: {loss: mart}", "unknown key 'methods', did you mean 'method'?"),
    ],
)
def test_mistakes_are_refused(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=re.escape(said)):
        build_config(read(tmp_path, text))


def test_the_files_of_the_guide_compose(tmp_path: Path) -> None:
    text = GUIDE.read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        config = build_config(read(tmp_path, block))
        config.method.check_epochs(config.training.epochs)
