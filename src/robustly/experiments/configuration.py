"""The typed settings of a run from plain ones, and back.

All settings are checked before any work starts. Parts of a method are chosen by name from explicit tables; a name
is never an import path, so a configuration file cannot run code.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from robustly.data import HUB, DataConfig
from robustly.evaluation.curve import OFF, ON, with_curve
from robustly.evaluation.suites import check_suite_name
from robustly.evaluation.suites.composed import suite_from
from robustly.evidence.domain_names import with_sources
from robustly.experiments.keys import ALLOWED, Settings, refuse_both_threats
from robustly.experiments.networks import (
    NetworkConfig,
    build_model_settings,
    build_networks,
    plain_networks,
    with_weights,
)
from robustly.models import ModelConfig, weights_file
from robustly.randomness import derive_seed
from robustly.runtime import RuntimeConfig
from robustly.settings import SettingsError, build, check, check_keys, choose, plain_values
from robustly.threats import Threat, ThreatModel, map_mask_files, parse_threats
from robustly.training import (
    INNER_MAXIMISERS,
    LABEL_SOURCES,
    LOSSES,
    PARAMETER_PARTS,
    WEIGHTS,
    DataLabels,
    GuideLabels,
    Method,
    MethodError,
    OptimizerConfig,
    ScheduleConfig,
    TafdLoss,
    TrainingConfig,
)
from robustly.training.engine.epochs_alone import check_model_pretrain, check_pretrain
from robustly.training.engine.job import network_key


@dataclass(frozen=True)
class EvaluationConfig:
    """Settings of the evaluation of a run.

    Args:
        suite: name of the suite, or names of attacks separated by commas ("pgd_20,square").
        stages: the stages of a suite of one's own, by name; see `robustly.evaluation.suites.composed`.
        mode: "every" attack on every example, or "worst_case".
        count: how many test images, from the first; all without it.
        curve_count: how many of them draw the security curve.
        batch_size: images at a time; without it two or three are measured.
        curve: "off", "on", sizes of the threat ("1/255, 2/255") or shares of its size ("50%, 100%"); without it the
            curve of the suite.
    """

    suite: str = "dynat"
    stages: dict[str, dict[str, Any]] | None = None
    mode: Literal["every", "worst_case"] = "every"
    count: int | None = None
    curve_count: int = 300
    batch_size: int | None = None
    curve: bool | str | float | tuple[str | float, ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.curve, bool):  # YAML reads the words off and on as false and true
            object.__setattr__(self, "curve", ON if self.curve else OFF)
        if self.stages is None:
            check_suite_name(self.suite)
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
        threats: the allowed perturbations, at least one; the first is that of validation and of what needs one.
        threat_texts: their text forms, in which a mask is named by its file.
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
        pretrain: epochs in which the run trains the model alone with clean cross-entropy before its own first
            epoch; 0 for none. They may be more than the epochs of the run.
    """

    recipe: str
    seed: int
    threats: tuple[Threat, ...]
    threat_texts: tuple[str, ...]
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
    pretrain: int = 0

    def as_plain(self) -> dict[str, Any]:
        """Every setting, defaults included, as plain values: what `config.yaml` holds."""
        sections = {
            name: plain_values(asdict(getattr(self, name)))
            for name in ("data", "model", "optimizer", "schedule", "training", "runtime", "evaluation")
        }
        return {
            "recipe": self.recipe,
            "seed": self.seed,
            **({"threat": self.threat_texts[0]} if len(self.threats) == 1 else {"threats": [*self.threat_texts]}),
            "data": sections.pop("data"),
            "model": {**sections.pop("model"), "pretrain": self.pretrain},
            **plain_values(plain_networks(self.networks)),
            "method": self.method_settings,
            **sections,
        }

    @property
    def threat(self) -> Threat:
        """The first threat."""
        return self.threats[0]

    @property
    def threats_text(self) -> str:
        """All threats, separated by commas."""
        return ", ".join(map(str, self.threats))

    def for_threat(self, number: int) -> "RunConfig":
        """The same settings with one of the threats, by its number from 0."""
        return replace(self, threats=(self.threats[number],), threat_texts=(self.threat_texts[number],))

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
        relevant = _without_added(relevant)
        if relevant["data"]["classes"] is None:  # another setting that a later version added
            del relevant["data"]["classes"]
        del relevant["data"]["expected_classes"]  # a check, on which no weights depend
        del relevant["data"]["in_memory"]  # nor on the place of the images
        for name in ("checkpoint_every", "recompute_activations"):  # nor on the way of the computation
            del relevant["training"][name]
        relevant["precision"] = self.runtime.precision
        if self.runtime.compile:  # rounds otherwise; earlier runs have no such key
            relevant["compile"] = True
        texts = [str(threat) for threat in self.threats]  # a mask by its content
        relevant |= {"threat": texts[0]} if len(texts) == 1 else {"threats": texts}
        return f"{derive_seed(yaml.safe_dump(relevant, sort_keys=True)):016x}"


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """The same settings with files named from the root, so that the run is found from any folder."""

    def absolute(path: str) -> str:
        is_name = path == "mnist5k" or path.startswith(HUB)
        return path if is_name or not Path(path).exists() else str(Path(path).resolve())

    def source(path: str) -> str:
        file, colon, severity = path.rpartition(":")
        return f"{absolute(file)}:{severity}" if colon and file.endswith(".npy") else absolute(path)

    def file_of_weights(path: str) -> str:
        given = Path(path).expanduser()
        return str(weights_file(given).resolve()) if given.exists() else path

    def with_files(network: NetworkConfig) -> NetworkConfig:
        kind, _, path = network.model.name.partition(":")
        place = Path(path).expanduser()
        if kind in ("hf", "torchscript") and place.exists():
            network = replace(network, model=replace(network.model, name=f"{kind}:{place.resolve()}"))
        return with_weights(network, file_of_weights)

    return replace(
        config,
        threat_texts=tuple(map_mask_files(text, absolute) for text in config.threat_texts),
        data=replace(
            config.data,
            source=source(config.data.source),
            domains=with_sources(config.data.named_domains, source) or None,
            extra_source=None if config.data.extra_source is None else source(config.data.extra_source),
            classes=None if config.data.classes is None else absolute(config.data.classes),
        ),
        model=with_files(NetworkConfig(config.model)).model,
        networks={name: with_files(network) for name, network in config.networks.items()},
        evaluation=replace(config.evaluation, stages=_with_surrogates(config.evaluation.stages, absolute)),
    )


def _with_surrogates(
    stages: dict[str, dict[str, Any]] | None, absolute: Callable[[str], str]
) -> dict[str, dict[str, Any]] | None:
    """Stages whose surrogates are named from the root."""
    if stages is None:
        return None

    def named(value: Any) -> Any:
        return [absolute(one) for one in value] if isinstance(value, list) else absolute(value)

    return {
        stage: {key: named(value) if key == "surrogate" else value for key, value in settings.items()}
        for stage, settings in stages.items()
    }


def _without_added(value: Any) -> Any:
    """Settings without those of `_ADDED` at their defaults, so that runs begun before have the same hash."""
    if not isinstance(value, Mapping):
        return value
    kept = {key: item for key, item in value.items() if key not in _ADDED or item != _ADDED[key]}
    return {key: _without_added(item) for key, item in kept.items()}


SECTION_TYPES: dict[str, type] = {
    "data": DataConfig,
    "model": ModelConfig,
    "optimizer": OptimizerConfig,
    "schedule": ScheduleConfig,
    "training": TrainingConfig,
    "runtime": RuntimeConfig,
    "evaluation": EvaluationConfig,
}
_ADDED: dict[str, Any] = {
    "layer_decay": OptimizerConfig.layer_decay,
    "head_epochs": 0,
    "head": None,
    "weights_key": None,
    "pretrain": 0,
    "measure_train": 0,
    "accumulate": 1,
    "sync_batch_norm": False,
    "confidence": GuideLabels.confidence,
    "domains": None,
    "leave_out": None,
    "ablation": None,
    "assignment": TafdLoss.assignment,
}
"""Settings that a later version added, and their defaults."""
PART_TABLES: dict[str, Mapping[str, type]] = {
    "labels": LABEL_SOURCES,
    "inner": INNER_MAXIMISERS,
    "loss": LOSSES,
    "weights": WEIGHTS,
}


def build_config(settings: Settings) -> RunConfig:
    """Typed settings from plain ones.

    Raises:
        SettingsError: an unknown key or name, or a value of another type or out of range.
    """
    check_keys(settings, ("recipe", *ALLOWED), "")
    built: dict[str, Any] = {
        name: build(cls, settings.get(name), name) for name, cls in SECTION_TYPES.items() if name != "model"
    }
    built["model"], built["pretrain"] = build_model_settings(settings.get("model"))
    networks = build_networks(settings)
    for name, network in networks.items():
        try:
            check_pretrain(network.pretrain, network.frozen, built["training"].epochs, network_key(name))
        except MethodError as error:
            raise SettingsError(str(error)) from None
    method, plain = _build_method(settings.get("method"))
    try:
        check_model_pretrain(built["pretrain"], method, built["training"].head_epochs)
    except MethodError as error:
        raise SettingsError(str(error)) from None
    seed = check(int, settings.get("seed", 0), "seed")
    threats, texts = _threats_in(settings)
    evaluation = built["evaluation"]
    for threat in threats:
        _check_step_size(plain["inner"] or {}, threat)
        try:
            with_curve(suite_from(evaluation.suite, evaluation.stages, threat), evaluation.curve, threat)
        except ValueError as error:
            raise SettingsError(f"evaluation: {error}") from None
    return RunConfig(
        recipe=check(str, settings.get("recipe", "custom"), "recipe"),
        seed=seed,
        threats=threats,
        threat_texts=texts,
        networks=networks,
        method=method,
        method_settings=plain,
        **built,
    )


def _threats_in(settings: Settings) -> tuple[tuple[Threat, ...], tuple[str, ...]]:
    """The threats of plain settings, and their text forms.

    Raises:
        SettingsError: both `threat` and `threats`, or a threat that cannot be parsed.
    """
    refuse_both_threats(settings, "the settings")
    if "threats" in settings:
        key, given = "threats", check(tuple[str, ...], settings["threats"], "threats")
    else:
        key, given = "threat", (check(str, settings.get("threat", "linf:8/255"), "threat"),)
    try:
        threats = parse_threats(given)
    except ValueError as error:
        raise SettingsError(f"{key}: {error}") from None
    texts = (text if threat.arrays else str(threat) for text, threat in zip(given, threats, strict=True))
    return threats, tuple(texts)


def _check_step_size(inner: Mapping[str, Any], threat: Threat) -> None:
    """Refuse a step size in units of the images under a threat of another unit, where it would be far too short.

    Raises:
        SettingsError: such a step size.
    """
    if inner.get("step_size") is not None and not isinstance(threat, ThreatModel):
        raise SettingsError(
            f"method.inner.step_size is in units of the images, the size of {threat} in {threat.unit}: set it to "
            "null and method.inner.relative_step_size, a share of the threat's size, instead"
        )


def _build_method(given_parts: Any) -> tuple[Method, dict[str, Any]]:
    """The five parts, and their settings with defaults filled in."""
    settings = check_keys(given_parts, (*PART_TABLES, "parameters"), "method")
    parts: dict[str, Any] = {}
    plain: dict[str, Any] = {}
    for slot, table in PART_TABLES.items():
        given = settings.get(slot)
        if given is None:
            parts[slot], plain[slot] = None, None
            continue
        named = {"name": given} if isinstance(given, str) else given
        if not isinstance(named, Mapping) or "name" not in named:
            raise SettingsError(f"method.{slot}: expected 'name' and settings, got {given!r}")
        part = choose(table, named["name"], f"method.{slot}", ", or null for none")
        rest = {key: value for key, value in named.items() if key != "name"}
        parts[slot] = build(part, rest, f"method.{slot}")
        plain[slot] = {"name": named["name"], **plain_values(asdict(parts[slot]))}
    chain: dict[str, Any] = {
        name: build(PARAMETER_PARTS[name], given, f"method.parameters.{name}")
        for name, given in check_keys(settings.get("parameters"), PARAMETER_PARTS, "method.parameters").items()
        if given is not None
    }
    plain["parameters"] = {name: plain_values(asdict(part)) for name, part in chain.items()}
    try:
        method = Method(
            labels=parts["labels"] or DataLabels(),
            inner=parts["inner"],
            **({"loss": parts["loss"]} if parts["loss"] is not None else {}),
            weights=parts["weights"],
            parameters=tuple(chain.values()),
        )
    except ValueError as error:
        raise SettingsError(f"method: {error}") from None
    return method, plain
