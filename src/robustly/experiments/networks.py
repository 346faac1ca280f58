"""Settings of the networks beside the model: guide, teachers, and others under the key `networks`."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from robustly.models import ModelConfig
from robustly.settings import SettingsError, build, check, check_keys
from robustly.training import MethodError, OptimizerConfig
from robustly.training.engine.epochs_alone import check_pretrain
from robustly.training.engine.job import check_kind, network_key
from robustly.training.parts import CONVENTIONAL_NETWORKS, Kind


@dataclass(frozen=True)
class NetworkConfig:
    """A network beside the model.

    Args:
        model: architecture and initial weights.
        frozen: whether its parameters stay fixed; a frozen network needs weights.
        optimizer: settings of an optimiser of its own; None trains it with the model's.
        pretrain: epochs in which the run trains it alone with clean cross-entropy before its own first epoch; 0 for
            none, at most the epochs of the run.
    """

    model: ModelConfig
    frozen: bool = False
    optimizer: OptimizerConfig | None = None
    pretrain: int = 0

    def as_plain(self) -> dict[str, Any]:
        """Every setting as plain values, as recipes write them under `networks`."""
        optimizer = None if self.optimizer is None else asdict(self.optimizer)
        return {**asdict(self.model), "frozen": self.frozen, "optimizer": optimizer, "pretrain": self.pretrain}


def build_networks(settings: Mapping[str, Any]) -> dict[str, NetworkConfig]:
    """Networks beside the model from the settings of a run.

    Args:
        settings: the whole settings; `guide`, `teacher`, `standard_teacher` and `networks` are used.

    Raises:
        SettingsError: an unknown key, a value of another type, a name given twice, a frozen network without
            weights, epochs before the run that are not possible.
    """
    networks: dict[str, NetworkConfig] = {}
    for name, kind in CONVENTIONAL_NETWORKS.items():
        if settings.get(name) is not None:
            networks[name] = _build_network(settings[name], name, kind)
    others = check(dict[str, Any] | None, settings.get("networks"), "networks") or {}
    for name, given in others.items():
        if given is None:
            continue
        if name in networks:
            raise SettingsError(
                f"the network {name!r} is given twice: remove one of {name!r} and 'networks.{name}'"
            )
        networks[name] = _build_network(given, f"networks.{name}")
    for name, network in networks.items():
        key = network_key(name) if settings.get(name) is not None else f"networks.{name}"
        try:
            check_kind(name, network.frozen)
        except MethodError as error:
            raise SettingsError(f"{key}: {error}") from None
        try:
            check_pretrain(network.pretrain, network.frozen, key=key)
        except MethodError as error:
            raise SettingsError(str(error)) from None
        if network.frozen and network.model.weights is None:
            raise SettingsError(f"{key}: a frozen network is trained beforehand: set {key}.weights to its file")
        if network.frozen and network.optimizer is not None:
            raise SettingsError(f"{key}: a frozen network has no optimizer: remove it, or set frozen to false")
    return networks


def _build_network(given: Any, key: str, kind: Kind | None = None) -> NetworkConfig:
    """A network; the kind of one with a conventional name is fixed, and it has no optimiser of its own there."""
    own = ("pretrain",) if kind else ("frozen", "optimizer", "pretrain")
    settings = check_keys(given, [*(item.name for item in fields(ModelConfig)), *own], key)
    optimizer = settings.get("optimizer")
    return NetworkConfig(
        build(ModelConfig, {name: value for name, value in settings.items() if name not in own}, key),
        frozen=kind == "frozen" if kind else check(bool, settings.get("frozen", False), f"{key}.frozen"),
        optimizer=None if optimizer is None else build(OptimizerConfig, optimizer, f"{key}.optimizer"),
        pretrain=check(int, settings.get("pretrain", 0), f"{key}.pretrain"),
    )


def build_model_settings(given: Any) -> tuple[ModelConfig, int]:
    """Settings of the model, and its epochs before the run (`model.pretrain`).

    Raises:
        SettingsError: an unknown key, or a value of another type.
    """
    settings = check_keys(given, [*(item.name for item in fields(ModelConfig)), "pretrain"], "model")
    own = {name: value for name, value in settings.items() if name != "pretrain"}
    return build(ModelConfig, own, "model"), check(int, settings.get("pretrain", 0), "model.pretrain")


def plain_networks(networks: Mapping[str, NetworkConfig]) -> dict[str, Any]:
    """Settings of the networks as plain values, under the top-level keys of a recipe."""
    plain: dict[str, Any] = {}
    for name in CONVENTIONAL_NETWORKS:
        network = networks.get(name)
        plain[name] = None
        if network is not None and network.optimizer is None:
            plain[name] = asdict(network.model) | ({} if network.frozen else {"pretrain": network.pretrain})
    others = {name: network.as_plain() for name, network in networks.items() if plain.get(name) is None}
    return {**plain, "networks": others}


def with_weights(network: NetworkConfig, absolute: Callable[[str], str]) -> NetworkConfig:
    """The same network with an absolute path of its weights."""
    weights = network.model.weights
    if weights is None:
        return network
    return replace(network, model=replace(network.model, weights=absolute(weights)))
