"""Optimisers and learning-rate schedules."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from robustly.sharding import sharded_optimizer_state
from robustly.training.engine.checkpoint_content import unfitting_state
from robustly.training.engine.depth import rate_scales


@dataclass(frozen=True)
class OptimizerConfig:
    """Settings of an optimiser.

    Args:
        name: "sgd" or "adamw".
        learning_rate: peak learning rate, positive; the schedule scales it.
        momentum: SGD's momentum, in [0, 1).
        nesterov: whether SGD uses Nesterov momentum.
        weight_decay: at least 0.
        decay_norms: whether weight decay also applies to vectors (biases, normalisation), as in most
            adversarial-training code.
        clip_norm: largest norm of the whole gradient; None for no limit.
        layer_decay: factor of the learning rate from one block of a network to the one before it, in (0, 1]; the
            head has the whole rate. 1 gives all blocks the same. See `robustly.training.engine.depth`.

    Raises:
        ValueError: a setting is out of range, or this optimiser does not have it.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    decay_norms: bool = True
    clip_norm: float | None = None
    layer_decay: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be a positive number, got {self.learning_rate}")
        if not (self.weight_decay >= 0 and 0 <= self.momentum < 1):
            raise ValueError(
                f"weight_decay must be at least 0 and momentum in [0, 1), got {self.weight_decay}, {self.momentum}"
            )
        if self.nesterov and (self.name != "sgd" or self.momentum == 0):
            raise ValueError("nesterov needs name 'sgd' and a positive momentum")
        if self.name != "sgd" and self.momentum != OptimizerConfig.momentum:
            raise ValueError(f"momentum has no effect with {self.name!r}: set name to 'sgd' or leave momentum out")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be positive, got {self.clip_norm}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must lie in (0, 1], got {self.layer_decay}")


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning-rate schedule, evaluated at every step; times are fractional epochs.

    Args:
        name: "constant"; "piecewise" (factors between boundaries); "cosine" (1 to `floor`); "one_cycle"
            (linear 0 to 1 at `peak` and back to 0); or "one_cycle_cosine" (PyTorch's OneCycleLR called once per
            epoch: cosine from 1/25 to 1 at `peak` and to 4e-6, constant within an epoch).
        boundaries: epochs at which a piecewise schedule changes, ascending.
        factors: factors of the learning rate before, between and after the boundaries, one more than boundaries.
        peak: time of the highest rate of a one-cycle schedule, as a share of the run.
        floor: last factor of a cosine schedule, in [0, 1].
        warm_up: epochs of linear growth from 0 at the start, on top of any schedule.

    Raises:
        ValueError: a setting is out of range, or this schedule does not have it.
    """

    name: Literal["constant", "piecewise", "cosine", "one_cycle", "one_cycle_cosine"] = "constant"
    boundaries: tuple[float, ...] = ()
    factors: tuple[float, ...] = (1.0,)
    peak: float = 0.5
    floor: float = 0.0
    warm_up: float = 0.0

    def __post_init__(self) -> None:
        if len(self.factors) != len(self.boundaries) + 1:
            raise ValueError(
                f"factors must be one more than boundaries, got {len(self.factors)} and {len(self.boundaries)}"
            )
        if any(later <= earlier for earlier, later in pairwise(self.boundaries)):
            raise ValueError(f"boundaries must ascend, got {list(self.boundaries)}")
        if not (0 < self.peak < 1 and 0 <= self.floor <= 1 and self.warm_up >= 0):
            raise ValueError("peak must lie in (0, 1), floor in [0, 1] and warm_up be at least 0")
        used = {
            "boundaries": (self.boundaries != (), self.name == "piecewise"),
            "peak": (self.peak != ScheduleConfig.peak, self.name.startswith("one_cycle")),
            "floor": (self.floor != ScheduleConfig.floor, self.name == "cosine"),
        }
        for setting, (given, counts) in used.items():
            if given and not counts:
                raise ValueError(
                    f"{setting} has no effect on the schedule {self.name!r}: set name to the schedule that uses it"
                )


def rate_factor(schedule: ScheduleConfig, time: float, epochs: float) -> float:
    """Factor of the learning rate at a time in [0, epochs]."""
    if schedule.name == "piecewise":
        factor = schedule.factors[sum(time >= boundary for boundary in schedule.boundaries)]
    elif schedule.name == "cosine":
        factor = schedule.floor + (1 - schedule.floor) * 0.5 * (1 + math.cos(math.pi * time / epochs))
    elif schedule.name == "one_cycle":
        share = time / epochs
        factor = share / schedule.peak if share < schedule.peak else (1 - share) / (1 - schedule.peak)
    elif schedule.name == "one_cycle_cosine":
        factor = _one_cycle_by_epoch(min(math.floor(time), epochs - 1), schedule.peak * epochs - 1, epochs - 1)
    else:
        factor = 1.0
    return factor * (min(1.0, time / schedule.warm_up) if schedule.warm_up > 0 else 1.0)


def _one_cycle_by_epoch(epoch: float, highest: float, last: float) -> float:
    if epoch < highest:
        start, end, share = 1 / 25, 1.0, epoch / highest
    else:
        start, end, share = 1.0, 1 / 25e4, (epoch - highest) / (last - highest)
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))


def build_optimizer(config: OptimizerConfig, networks: Iterable[nn.Module], head: str | None = None) -> Optimizer:
    """One optimiser over several networks; vectors are a separate group, which may have no decay.

    Args:
        config: its settings. With `layer_decay`, every block has groups of its own.
        networks: the networks; a parameter that two of them share comes once.
        head: name of the head of the first network, for `layer_decay`; None for the last linear layer.

    Raises:
        MethodError: `layer_decay` for a network without a head.
    """
    networks = list(networks)
    parameters = dict.fromkeys(p for network in networks for p in network.parameters() if p.requires_grad)
    scales: dict[nn.Parameter, float] = {}
    if config.layer_decay < 1:
        for place, network in enumerate(networks):
            scales = rate_scales(network, config.layer_decay, head if place == 0 else None) | scales
    vector_decay = config.weight_decay if config.decay_norms else 0.0
    groups: list[dict[str, Any]] = []
    for scale in sorted(set(scales.values())) or [1.0]:
        chosen = [p for p in parameters if scales.get(p, 1.0) == scale]
        extra = {"rate_scale": scale} if scales else {}
        groups += [
            {"params": [p for p in chosen if p.ndim > 1], "weight_decay": config.weight_decay, **extra},
            {"params": [p for p in chosen if p.ndim <= 1], "weight_decay": vector_decay, **extra},
        ]
    groups = [group for group in groups if group["params"]]
    if config.name == "adamw":
        return AdamW(groups, lr=config.learning_rate)
    return SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.nesterov)


class Optimizers:
    """The optimisers of a run: "model" for the model and most networks, others by the name of their network.

    Args:
        configs: settings by the optimisers' names.
        optimizers: the optimisers, in the same order.
    """

    def __init__(self, configs: Mapping[str, OptimizerConfig], optimizers: Sequence[Optimizer]) -> None:
        self._configs = configs
        self._optimizers = dict(zip(configs, optimizers, strict=True))

    def set_rates(self, factor: float) -> float:
        """Set all learning rates by the schedule's factor; returns the rate of the model's head."""
        for name, optimizer in self._optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self._configs[name].learning_rate * factor * group.get("rate_scale", 1.0)
        return self._configs["model"].learning_rate * factor

    def zero_grad(self) -> None:
        """Free the gradients of all networks."""
        for optimizer in self._optimizers.values():
            optimizer.zero_grad(set_to_none=True)

    def step(self, clip: Callable[[Optimizer, float], None]) -> None:
        """Take a step with every optimiser.

        Args:
            clip: limits the norm of the gradient of an optimiser's parameters.
        """
        for name, optimizer in self._optimizers.items():
            limit = self._configs[name].clip_norm
            if limit is not None:
                clip(optimizer, limit)
        for optimizer in self._optimizers.values():
            optimizer.step()

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """State dicts by the optimisers' names."""
        return {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()}

    def load_state_dict(self, states: Mapping[str, dict[str, Any]]) -> None:
        """Restore the state of every optimiser.

        Raises:
            KeyError: the state of an optimiser is missing.
            ValueError: a state is of other parameters.
        """
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(sharded_optimizer_state(optimizer, states[name]))
            if unfitting_state(optimizer):
                raise ValueError(f"the state of the optimiser of the {name} has tensors of other shapes")
