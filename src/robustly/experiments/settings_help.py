"""Every setting with its value, its type and its meaning, from the docstrings of the dataclasses."""

import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

from robustly.evaluation import SUITES
from robustly.experiments.configuration import PART_TABLES, SECTION_TYPES, RunConfig
from robustly.experiments.networks import NetworkConfig
from robustly.models import MODELS, ModelConfig
from robustly.models.layers import ACTIVATIONS
from robustly.settings import value_words
from robustly.training import PARAMETER_PARTS

_NAMES: dict[str, Iterable[str]] = {
    "model.name": (*MODELS, "package.module:factory", "timm:NAME", "hf:FOLDER"),
    "model.activation": (*ACTIVATIONS, "null"),
    "evaluation.suite": SUITES,
}
"""Names that a key of the type text may have."""
_ENTRY = re.compile(r"    (\w+): (.*)")
_DEEP = " " * 6
_NONE = re.compile(r"\bNone\b")


@dataclass(frozen=True)
class Setting:
    """A key of the configuration.

    Args:
        key: the dotted key, as it follows `--` on a command line.
        value: its value in words of YAML; the default if nothing else is given.
        allowed: the values that it may have.
        meaning: one or two sentences, with the range of a number where it has one.
    """

    key: str
    value: str
    allowed: str
    meaning: str


def settings_of(config: RunConfig) -> list[Setting]:
    """All settings of a run with their values, in the order of a recipe."""
    plain = config.as_plain()
    found = [
        Setting("seed", str(config.seed), "a whole number", "Seed of all random numbers of the run."),
        _threat_setting(config),
    ]
    for name, cls in SECTION_TYPES.items():
        if name == "optimizer":
            found += [*_networks(config, plain), *_method(config.method_settings)]
        found += section_settings(name, plain[name], cls)
        if name == "model":
            meaning = arguments_of(RunConfig)["pretrain"]
            found.append(Setting("model.pretrain", str(config.pretrain), "a whole number", meaning))
    return found


def _threat_setting(config: RunConfig) -> Setting:
    if len(config.threats) == 1:
        return Setting(
            "threat", config.threat_texts[0], "KIND:SIZE, such as linf:8/255", "The allowed perturbations."
        )
    return Setting("threats", " ".join(config.threat_texts), "several KIND:SIZE", "The allowed perturbations.")


def section_settings(
    section: str, values: Mapping[str, Any] | None = None, cls: type | None = None
) -> list[Setting]:
    """The settings of one dataclass.

    Args:
        section: the part of the key in front, such as "evaluation" or "method.loss".
        values: plain values; None for the defaults.
        cls: the dataclass; None for that of the section.
    """
    kind = cls or SECTION_TYPES[section]
    hints = get_type_hints(kind, include_extras=True)
    meanings = arguments_of(kind)
    own = [item for item in fields(kind) if item.init]
    return [
        Setting(
            f"{section}.{item.name}",
            _shown(item.default if values is None else values[item.name]),
            _allowed(f"{section}.{item.name}", hints[item.name]),
            meanings.get(item.name, ""),
        )
        for item in own
    ]


def arguments_of(cls: type) -> dict[str, str]:
    """Meanings of the fields of a dataclass by name, from the section `Args:` of its docstring."""
    lines = inspect.cleandoc(cls.__doc__ or "").splitlines()
    found: dict[str, str] = {}
    name = ""
    for line in lines[lines.index("Args:") + 1 :] if "Args:" in lines else ():
        entry = _ENTRY.fullmatch(line)
        if line and not line.startswith(" "):
            break
        if entry:
            name = entry[1]
            found[name] = entry[2]
        elif line.strip():
            found[name] += f" {line.strip()}"
    return {name: _NONE.sub("null", text[:1].upper() + text[1:]) for name, text in found.items()}


def help_text(settings: Sequence[Setting], width: int) -> str:
    """Settings as text: a line with the key, its value and the allowed ones, then the meaning.

    Args:
        settings: the settings.
        width: longest line, in characters; at least 40.
    """
    width = max(width, 40)
    lines: list[str] = []
    for one in settings:
        lines += textwrap.wrap(
            f"--{one.key} {one.value}  ({one.allowed})",
            width,
            initial_indent="  ",
            subsequent_indent=_DEEP,
            break_on_hyphens=False,
        )
        lines += textwrap.wrap(one.meaning, width, initial_indent=_DEEP, subsequent_indent=_DEEP)
    return "\n".join(lines)


def _allowed(key: str, hint: Any) -> str:
    return f"one of {', '.join(_NAMES[key])}" if key in _NAMES else value_words(hint)


def _networks(config: RunConfig, plain: Mapping[str, Any]) -> Iterator[Setting]:
    """Settings of the networks beside the model; those of the key `networks` may have an optimiser of their own."""
    for name in config.networks:
        is_direct = plain.get(name) is not None
        key, values = (name, plain[name]) if is_direct else (f"networks.{name}", plain["networks"][name])
        for item in fields(ModelConfig):
            yield Setting(f"{key}.{item.name}", _shown(values[item.name]), f"as --model.{item.name}", "")
        meanings = arguments_of(NetworkConfig)
        if "pretrain" in values:
            yield Setting(f"{key}.pretrain", _shown(values["pretrain"]), "a whole number", meanings["pretrain"])
        if not is_direct:
            yield Setting(f"{key}.frozen", _shown(values["frozen"]), "true or false", meanings["frozen"])
            yield Setting(
                f"{key}.optimizer",
                "null" if values["optimizer"] is None else "...",
                "settings as those of --optimizer, or null",
                meanings["optimizer"],
            )


def _method(method: Mapping[str, Any]) -> Iterator[Setting]:
    """Settings of the five parts that a run has, and the names of those that it could have."""
    for slot, table in PART_TABLES.items():
        part = method[slot]
        choice = f"one of {', '.join(table)}, or null for none"
        yield Setting(
            f"method.{slot}.name", "null" if part is None else part["name"], choice, "Each has its own settings."
        )
        if part is not None:
            yield from section_settings(f"method.{slot}", part, table[part["name"]])
    for name, values in (method["parameters"] or {}).items():
        yield from section_settings(f"method.parameters.{name}", values, PARAMETER_PARTS[name])
    absent = [name for name in PARAMETER_PARTS if name not in (method["parameters"] or {})]
    if absent:
        yield Setting(
            "method.parameters.NAME", "null", f"NAME is {', '.join(absent)}", "Each has its own settings."
        )


def _shown(value: Any) -> str:
    """A value as a command line gives it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_shown, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)
