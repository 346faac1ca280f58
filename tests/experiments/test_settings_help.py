from dataclasses import dataclass, fields

import pytest

from robustly.cli import main
from robustly.cli.recipes import read_recipe, recipe_names
from robustly.experiments.configuration import PART_TABLES, SECTION_TYPES, build_config
from robustly.experiments.networks import NetworkConfig
from robustly.experiments.settings_help import arguments_of, help_text, section_settings, settings_of
from robustly.training import PARAMETER_PARTS

CLASSES = [
    *SECTION_TYPES.values(),
    *(part for table in PART_TABLES.values() for part in table.values()),
    *PARAMETER_PARTS.values(),
    NetworkConfig,
]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_setting_has_a_meaning(cls: type) -> None:
    assert [item.name for item in fields(cls) if item.init and item.name not in arguments_of(cls)] == []


@dataclass(frozen=True)
class Example:
    """An example.

    Args:
        first: one line, or None.
        second: two
            lines: with a colon.

    Raises:
        ValueError: never.
    """

    first: int | None = None
    second: float = 0.5


def test_meanings_are_read_from_docstrings() -> None:
    assert arguments_of(Example) == {"first": "One line, or null.", "second": "Two lines: with a colon."}
    first, second = section_settings("a.b", cls=Example)
    assert (first.key, first.value, first.allowed) == ("a.b.first", "null", "a whole number or null")
    assert (second.key, second.value, second.allowed) == ("a.b.second", "0.5", "a number")


def test_text_is_wrapped() -> None:
    text = help_text(section_settings("evaluation"), 70)
    assert max(map(len, text.splitlines())) <= 70
    assert "  --evaluation.curve_count 300  (a whole number)\n" in text


def leaves(plain: dict[str, object], above: str = "") -> set[str]:
    found: set[str] = set()
    for key, value in plain.items():
        found |= leaves(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}"}
    return found


@pytest.mark.parametrize("recipe", ["mnist5k/dynat", "mnist5k/trades_awp_ema", "mnist5k/iad", "mnist5k/kd_swa"])
def test_every_key_of_a_run_is_listed_with_its_value(recipe: str) -> None:
    plain = read_recipe(recipe) | {"networks": {"other": {"name": "small_cnn"}}}
    for name in ("teacher", "standard_teacher"):
        if isinstance(plain.get(name), dict):
            plain[name] = {**plain[name], "weights": "w.safetensors"}  # type: ignore[dict-item]
    config = build_config(plain)
    settings = {one.key: one for one in settings_of(config)}
    absent = {"recipe", "guide", "teacher", "standard_teacher", "method.labels", "method.inner", "method.weights"}
    missing = leaves(config.as_plain()) - absent - settings.keys()
    assert missing == set()
    assert settings["threat"].value == config.threat_texts[0]
    assert settings["training.epochs"].value == str(config.training.epochs)


def test_the_command_lists_the_values_of_its_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", recipe_names()[-1], "--training.epochs", "7", "--method.inner", "n_fgsm", "--help"]
    with pytest.raises(SystemExit) as exit_:
        main(words)
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: robustly train")
    assert "--training.epochs 7  (" in out
    assert "--method.inner.name n_fgsm" in out
    assert "--method.inner.max_steps" not in out


def test_a_wrong_recipe_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "mnist5k/tradse", "--help"]) == 2
    assert "did you mean 'mnist5k/trades" in capsys.readouterr().err


def test_help_of_evaluate_lists_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    out = capsys.readouterr().out
    for item in fields(SECTION_TYPES["evaluation"]):
        assert f"--evaluation.{item.name} " in out
    assert "one of quick, standard" in out
