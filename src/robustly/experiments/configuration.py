"""From YAML and command-line values to typed settings, and back.

A configuration is checked as a whole before any work starts. Parts of a method are chosen by name from explicit
tables; a name is never an import path, so that a configuration file cannot run code.
"""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from robustly.data import DataConfig
from robustly.evaluation import SUITES
from robustly.evaluation.suites.composed import suite_from
from robustly.experiments.networks import NetworkConfig, build_networks, plain_networks, with_weights
from robustly.models import ModelConfig
from robustly.randomness import derive_seed
from robustly.runtime import RuntimeConfig
from robustly.threats import parse_threat
from robustly.threats.lp import ThreatModel
from robustly.training import (
    INNER_MAXIMISERS,
    LABEL_SOURCES,
    LOSSES,
    PARAMETER_PARTS,
    WEIGHTS,
    DataLabels,
    Method,
    OptimizerConfig,
    ScheduleConfig,
    TrainingConfig,
)
from robustly.training.parts import CONVENTIONAL_NETWORKS

Settings = Mapping[str, Any]
T = TypeVar("T")


class ConfigurationError(ValueError):
    """A key or value that is not allowed; the message names both and says what is."""


@dataclass(frozen=True)
class EvaluationConfig:
    """How a run is evaluated.

    Args:
        suite: name of the suite.
        stages: the stages of a suite of one's own, by name; see `robustly.evaluation.suites.composed`.
        mode: "every" attack on every example, or "worst_case".
        count: how many test images, from the first; all without it.
        curve_count: how many of them draw the security curve.
        batch_size: images at a time; without it two or three are measured.
    """

    suite: str = "dynat"
    stages: dict[str, dict[str, Any]] | None = None
    mode: Literal["every", "worst_case"] = "every"
    count: int | None = None
    curve_count: int = 300
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.stages is None and self.suite not in SUITES:
            raise ValueError(f"unknown suite {self.suite!r}: allowed are {', '.join(SUITES)}")
        for name in ("count", "curve_count", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True)
class RunConfig:
    """The full settings of a run.

    Args:
        recipe: where they come from.
        seed: seed of every random number.
        threat: the threat model.
        data: the images.
        model: the network to train.
        networks: the networks beside it, by name.
        method: the five parts.
        method_settings: the same as plain values.
        optimizer: how parameters move.
        schedule: how the learning rate changes.
        training: how long.
        runtime: where.
        evaluation: with what.
    """

    recipe: str
    seed: int
    threat: ThreatModel
    data: DataConfig
    model: ModelConfig
    networks: dict[str, NetworkConfig]
    method: Method
    method_settings: dict[str, Any]
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    training: TrainingConfig
    runtime: RuntimeConfig
    evaluation: EvaluationConfig

    def as_plain(self) -> dict[str, Any]:
        """Every setting, defaults included, as plain values: what `config.yaml` holds."""
        sections = {
            name: _plain(asdict(getattr(self, name)))
            for name in ("data", "model", "optimizer", "schedule", "training", "runtime", "evaluation")
        }
        return {
            "recipe": self.recipe,
            "seed": self.seed,
            "threat": str(self.threat),
            "data": sections.pop("data"),
            "model": sections.pop("model"),
            **_plain(plain_networks(self.networks)),
            "method": self.method_settings,
            **sections,
        }

    @property
    def model_names(self) -> list[str]:
        """Names of all networks of the run."""
        return [self.model.name, *(network.model.name for network in self.networks.values())]

    @property
    def frozen_networks(self) -> list[str]:
        """Names of the networks beside the model that never learn."""
        return [name for name, network in self.networks.items() if network.frozen]

    def digest(self) -> str:
        """Hash of everything that the trained weights depend on."""
        plain = self.as_plain()
        relevant = {key: value for key, value in plain.items() if key not in ("recipe", "evaluation", "runtime")}
        relevant["precision"] = self.runtime.precision
        return f"{derive_seed(yaml.safe_dump(relevant, sort_keys=True)):016x}"


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """The same settings with files named from the root, so that the run is found from any folder."""

    def absolute(path: str) -> str:
        is_name = path == "mnist5k" or path.startswith("hf:")
        return path if is_name or not Path(path).exists() else str(Path(path).resolve())

    return replace(
        config,
        data=replace(
            config.data,
            source=absolute(config.data.source),
            extra_source=None if config.data.extra_source is None else absolute(config.data.extra_source),
        ),
        model=with_weights(NetworkConfig(config.model), absolute).model,
        networks={name: with_weights(network, absolute) for name, network in config.networks.items()},
    )


_SECTIONS: dict[str, type] = {
    "data": DataConfig,
    "model": ModelConfig,
    "optimizer": OptimizerConfig,
    "schedule": ScheduleConfig,
    "training": TrainingConfig,
    "runtime": RuntimeConfig,
    "evaluation": EvaluationConfig,
}
TOP_LEVEL = ("seed", "threat", *CONVENTIONAL_NETWORKS, "networks", "method", *_SECTIONS)
_PARTS: dict[str, Mapping[str, type]] = {
    "labels": LABEL_SOURCES,
    "inner": INNER_MAXIMISERS,
    "loss": LOSSES,
    "weights": WEIGHTS,
}


def build_config(settings: Settings) -> RunConfig:
    """Typed settings from plain ones.

    Raises:
        ConfigurationError: an unknown key or name, a value of another type or out of range.
    """
    _check_keys(settings, ("recipe", *TOP_LEVEL), "")
    built = {name: build_section(cls, settings.get(name) or {}, name) for name, cls in _SECTIONS.items()}
    try:
        networks = build_networks(settings, build_section)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    method, plain = _build_method(settings.get("method") or {})
    seed = settings.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ConfigurationError(f"seed: expected a whole number, got {seed!r}")
    try:
        threat = parse_threat(str(settings.get("threat", "linf:8/255")))
    except ValueError as error:
        raise ConfigurationError(f"threat: {error}") from None
    if not isinstance(threat, ThreatModel):
        raise ConfigurationError(f"threat: a run has an Lp threat, got {threat}")
    evaluation = built["evaluation"]
    try:
        suite_from(evaluation.suite, evaluation.stages, threat.kind)
    except ValueError as error:
        raise ConfigurationError(f"evaluation: {error}") from None
    return RunConfig(
        recipe=str(settings.get("recipe", "custom")),
        seed=seed,
        threat=threat,
        networks=networks,
        method=method,
        method_settings=plain,
        **built,
    )


def _build_method(settings: Settings) -> tuple[Method, dict[str, Any]]:
    """The five parts, and their settings with defaults filled in."""
    _check_keys(settings, (*_PARTS, "parameters"), "method")
    parts: dict[str, Any] = {}
    plain: dict[str, Any] = {}
    for slot, table in _PARTS.items():
        given = settings.get(slot)
        if given is None:
            parts[slot], plain[slot] = None, None
            continue
        named = {"name": given} if isinstance(given, str) else given
        if not isinstance(named, Mapping) or "name" not in named:
            raise ConfigurationError(f"method.{slot}: expected 'name' and settings, got {given!r}")
        parts[slot] = _build_part(table, str(named["name"]), named, f"method.{slot}")
        plain[slot] = {"name": str(named["name"]), **_plain(asdict(parts[slot]))}
    averaged = settings.get("parameters") or {}
    if not isinstance(averaged, Mapping):
        raise ConfigurationError(f"method.parameters: expected names with settings, got {averaged!r}")
    chain = {
        name: _build_part(PARAMETER_PARTS, name, given or {}, f"method.parameters.{name}")
        for name, given in averaged.items()
        if given is not None
    }
    plain["parameters"] = {name: _plain(asdict(part)) for name, part in chain.items()}
    try:
        method = Method(
            labels=parts["labels"] or DataLabels(),
            inner=parts["inner"],
            **({"loss": parts["loss"]} if parts["loss"] is not None else {}),
            weights=parts["weights"],
            parameters=tuple(chain.values()),
        )
    except ValueError as error:
        raise ConfigurationError(f"method: {error}") from None
    return method, plain


def _build_part(table: Mapping[str, type], name: str, settings: Any, where: str) -> Any:
    if name not in table:
        allowed = ", ".join(table) or "none yet"
        allowed += "" if table is PARAMETER_PARTS else ", or null for none"
        raise ConfigurationError(f"{where}: unknown name {name!r}{_nearest(name, table)}; allowed: {allowed}")
    rest = {key: value for key, value in settings.items() if key != "name"}
    return build_section(table[name], rest, where)


def build_section(cls: Callable[..., T], settings: Any, where: str) -> T:
    """One frozen dataclass from plain values, types checked by jsonargparse.

    Args:
        cls: the dataclass.
        settings: a mapping of its fields.
        where: the dotted key that messages name.

    Raises:
        ConfigurationError: as `build_config`.
    """
    if not isinstance(settings, Mapping):
        raise ConfigurationError(f"{where}: expected settings by name, got {settings!r}")
    names = [item.name for item in fields(cls)]  # type: ignore[arg-type]
    _check_keys(settings, names, where)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "section")
    try:
        section = parser.instantiate(parser.parse_object({"section": dict(settings)})).section
    except ArgumentError as error:
        raise ConfigurationError(_explain(str(error), where)) from None
    except ValueError as error:
        raise ConfigurationError(f"{where}: {error}") from None
    built: T = section
    return built


def _explain(message: str, where: str) -> str:
    """The parser's words on a value of another type, in one sentence."""
    found = re.search(r'key "section\.?([\w.]*)":(.*?)Got value: (.*)', message, re.DOTALL)
    if found is None:
        return f"{where}: {' '.join(message.replace('section', where).split())}"
    key, expected, value = found.groups()
    kind = re.sub(r"<class '(\w+)'>|typing\.", r"\1", " ".join(expected.split()))
    choices = re.search(r"Literal\[(.*?)\]", kind)
    kind = re.sub("Expected an? (?=[aeiou])", "expected an ", kind).replace("Expected a", "expected a")
    wanted = f"allowed: {choices[1]}" if choices else kind.strip().rstrip(".")
    return f"{where}.{key}: {wanted}, got {value.splitlines()[0]!r}"


def _check_keys(settings: Any, allowed: Sequence[str], where: str) -> None:
    if not isinstance(settings, Mapping):
        raise ConfigurationError(f"{where or 'a configuration'}: expected settings by name, got {settings!r}")
    for key in settings:
        if key not in allowed:
            path = f"{where}.{key}" if where else str(key)
            raise ConfigurationError(
                f"unknown key {path!r}{_nearest(str(key), allowed)}; allowed: {', '.join(allowed) or 'nothing'}"
            )


def _nearest(word: str, allowed: Sequence[str] | Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(word, list(allowed), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def _plain(value: Any) -> Any:
    """Tuples as lists, as YAML has them."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
