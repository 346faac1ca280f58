"""Plain values to frozen dataclasses: what is taken, what is refused, and what the refusal names."""

import math
import re
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, get_type_hints

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from robustly.attacks import ATTACK_KINDS, ATTACKS
from robustly.evaluation import Plan
from robustly.evaluation.suites.composed import suite_from
from robustly.experiments import configuration
from robustly.experiments.configuration import build_config
from robustly.settings import Ratio, SettingsError, build, changed, check, choose, plain_values
from robustly.training import INNER_MAXIMISERS, LABEL_SOURCES, LOSSES, PARAMETER_PARTS, WEIGHTS


@dataclass(frozen=True)
class Every:
    """A field of every kind."""

    count: int
    size: float = 1.0
    ratio: Ratio = 0.5
    flag: bool = False
    name: str = "a"
    kind: Literal["fast", "slow"] = "fast"
    limit: int | None = None
    shape: tuple[int, int] | None = None
    means: tuple[Ratio, ...] = ()
    stages: dict[str, dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"count must be at least 0, got {self.count}")


def made(**settings: Any) -> Every:
    return build(Every, {"count": 1, **settings}, "part")


def test_lists_become_tuples_and_whole_numbers_and_text_become_floats() -> None:
    nested = {"a": {"b": [1]}}
    found = made(size=3, ratio="8/255", shape=[2, 3], means=[1, "125.3/255", "1e-3"], stages=nested)
    assert found == Every(1, 3.0, 8 / 255, shape=(2, 3), means=(1.0, 125.3 / 255, 1e-3), stages=nested)
    assert type(found.size) is float
    assert made(size=yaml.safe_load("1e-3")).size == 1e-3  # YAML reads text here: it wants 1.0e-3
    assert made(limit=None).limit is None
    assert build(Every, {"count": 1}, "part") == Every(1)


REFUSED = [
    ({"size": "x"}, ["part.size", "a number", "'x'"]),
    ({"size": True}, ["part.size", "a number", "True"]),
    ({"size": "8/255"}, ["part.size", "a number", "'8/255'"]),
    ({"size": math.nan}, ["part.size", "a number", "nan"]),
    ({"size": 10**400}, ["part.size", "a number"]),
    ({"ratio": "8/0"}, ["part.ratio", "quotient", "'8/0'"]),
    ({"ratio": "8/2/2"}, ["part.ratio", "quotient"]),
    ({"count": 1.0}, ["part.count", "a whole number", "1.0"]),
    ({"count": True}, ["part.count", "a whole number", "True"]),
    ({"count": "3"}, ["part.count", "a whole number", "'3'"]),
    ({"count": -1}, ["part", "count", "at least 0", "-1"]),
    ({"flag": 1}, ["part.flag", "true or false", "1"]),
    ({"flag": "yes"}, ["part.flag", "true or false", "'yes'"]),
    ({"name": 5}, ["part.name", "text", "5"]),
    ({"name": None}, ["part.name", "text", "None"]),
    ({"kind": "fats"}, ["part.kind", "'fast', 'slow'", "'fats'", "did you mean 'fast'?"]),
    ({"kind": ["fast"]}, ["part.kind", "'fast', 'slow'"]),
    ({"limit": "many"}, ["part.limit", "a whole number or null", "'many'"]),
    ({"shape": [1]}, ["part.shape", "a list of 2 items", "whole number", "[1]"]),
    ({"shape": 3}, ["part.shape", "list", "3"]),
    ({"means": [0.1, None]}, ["part.means", "list", "number", "[0.1, None]"]),
    ({"stages": {1: {}}}, ["part.stages", "settings by name"]),
    ({"stages": {"a": 3}}, ["part.stages", "settings by name"]),
    ({"siz": 3}, ["part.siz", "did you mean 'size'?", "count, size, ratio"]),
]


@pytest.mark.parametrize(("settings", "named"), REFUSED, ids=[str(settings)[:40] for settings, _ in REFUSED])
def test_a_refusal_is_one_sentence_that_names_the_key_what_is_allowed_and_what_was_given(
    settings: dict[str, Any], named: list[str]
) -> None:
    with pytest.raises(SettingsError) as caught:
        made(**settings)
    message = str(caught.value)
    assert "\n" not in message
    assert [part for part in named if part not in message] == []


def test_missing_keys_and_what_is_not_a_mapping_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"part\.count is missing.*whole number"):
        build(Every, None, "part")
    for wrong in ([], 0, False, "count"):
        with pytest.raises(SettingsError, match=r"^part: .*settings by name"):
            build(Every, wrong, "part")


def test_a_copy_changes_allowed_fields_only() -> None:
    assert changed(Every(1), {"size": "2"}, "part", ["size"]) == Every(1, 2.0)
    with pytest.raises(SettingsError, match=r"part\.count"):
        changed(Every(1), {"count": 2}, "part", ["size"])


def test_a_name_is_looked_up_in_the_table_only() -> None:
    assert choose({"a": 1}, "a", "part") == 1
    for name in ("os.system", ["a"], None, 3):
        with pytest.raises(SettingsError, match=re.escape(f"part: unknown name {name!r}")):
            choose({"a": 1}, name, "part")


def test_an_annotation_that_settings_cannot_have_is_a_mistake_of_the_author() -> None:
    with pytest.raises(TypeError, match="cannot have the type"):
        check(set[int], {1}, "part.x")


PARTS = [LABEL_SOURCES, INNER_MAXIMISERS, LOSSES, WEIGHTS, PARAMETER_PARTS]
CLASSES = [*configuration.SECTION_TYPES.values(), *(part for table in PARTS for part in table.values()), Plan]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_the_fields_of_every_part_can_be_checked_and_take_their_defaults(cls: Any) -> None:
    hints = get_type_hints(cls, include_extras=True)
    for item in fields(cls):
        with pytest.raises(SettingsError, match=f"part.{item.name}: expected"):
            check(hints[item.name], object(), f"part.{item.name}")
    assert build(cls, plain_values({item.name: getattr(cls(), item.name) for item in fields(cls)}), "part") == cls()


@pytest.mark.parametrize("kind", [*ATTACKS, *ATTACK_KINDS])
def test_the_settings_of_every_attack_take_their_defaults(kind: str) -> None:
    attack: Any = ATTACKS[kind] if kind in ATTACKS else ATTACK_KINDS[kind]()
    assert is_dataclass(attack)
    from_code = ("objective", "estimator", "diversity")
    settings = {item.name: getattr(attack, item.name) for item in fields(attack) if item.name not in from_code}
    suite = suite_from("mine", {"a": {"attack": kind, **plain_values(settings)}}, "linf")
    assert suite.attacks["a"] == attack


def test_a_run_names_the_dotted_key() -> None:
    for settings, named in (
        (
            {"method": {"loss": {"name": "trades", "beta": "x"}}},
            r"^method\.loss\.beta: expected a number, got 'x'$",
        ),
        ({"method": {"loss": {"name": "trades", "beat": 1}}}, r"method\.loss\.beat.*did you mean 'beta'"),
        ({"method": {"parameters": {"emma": {}}}}, r"method\.parameters\.emma.*did you mean 'ema'"),
        ({"training": []}, r"^training: "),
        ({"seed": True}, r"^seed: .*whole number.*True"),
    ):
        with pytest.raises(SettingsError, match=named):
            build_config(settings)
    found = build_config({"model": {"mean": ["125.3/255"], "std": [0.3]}, "optimizer": {"learning_rate": "1e-3"}})
    assert found.model.mean == (125.3 / 255,)
    assert found.optimizer.learning_rate == 1e-3


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


@given(st.recursive(PLAIN, st.lists), st.sampled_from(fields(Every)))
@pytest.mark.slow
def test_any_value_is_taken_or_refused_by_name(value: Any, field: Any) -> None:
    message = field.name
    try:
        made(**{field.name: value})
    except SettingsError as error:
        message = str(error)
    assert field.name in message
