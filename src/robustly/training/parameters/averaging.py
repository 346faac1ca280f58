"""Averages of the weights, over steps (EMA) and over epochs (SWA, moving average)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from robustly.attacks.core.model_access import batch_norms
from robustly.models.modes import modes_kept
from robustly.training.modes import frozen_parts, with_state
from robustly.training.parts import Composition, EpochEnd, Part, averages_weights, begins_too_late
from robustly.training.step import Step

_COUNT = "#epochs"  # a key that is not a name in state dicts


@dataclass(frozen=True)
class ExponentialAverage(Part):
    """Exponential moving average of the weights; validation, selection and release use the average.

    After step t (counted from the end of the warm-up) average <- d average + (1 - d) weights with
    d = min(decay, (1 + t) / (10 + t)); d = 0 during the warm-up. The average starts from the weights after the
    first step. Batch-norm buffers are copied, not averaged (Gowal et al., arXiv 2010.03593, and the released code
    of Wang et al., ICML 2023), unless `buffers` is "average".

    Args:
        decay: upper bound of d, in [0, 1).
        warm_up: share of the run's steps at the start with d = 0, in [0, 1].
        buffers: "copy" takes running statistics of the last step, "average" averages them like weights; counters
            are always copied.
    """

    decay: float = 0.995
    warm_up: float = 0.025
    buffers: Literal["copy", "average"] = "copy"

    def __post_init__(self) -> None:
        if not (0 <= self.decay < 1 and 0 <= self.warm_up <= 1):
            raise ValueError(f"decay must lie in [0, 1) and warm_up in [0, 1], got {self.decay} and {self.warm_up}")

    def decay_at(self, count: int, total: int) -> float:
        """The factor d after step `count` (from 0) of `total`."""
        since = count - int(self.warm_up * total)
        return 0.0 if since < 0 else growing_decay(self.decay, since)

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        """Move the average towards the weights."""
        moment, replays = step.moment, step.replays
        total = moment.epochs * moment.steps_per_epoch * replays
        decay = self.decay_at(moment.count * replays + step.replay, total)
        move_average(step.remember(self), step.model, decay, buffers=self.buffers == "average")

    def evaluation_state(self, memory: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """Return the average, once there is one."""
        return memory or None


def growing_decay(decay: float, count: int) -> float:
    """Share of an average that is kept after step `count` (from 0): small at first, at most `decay`."""
    return min(decay, (1 + count) / (10 + count))


@torch.no_grad()
def move_average(average: dict[str, Tensor], model: nn.Module, decay: float, *, buffers: bool = False) -> None:
    """Move an average of a network's weights: average <- decay average + (1 - decay) weights.

    Values that the average does not have yet are copied.

    Args:
        average: the average by names of the state dict; changed in place.
        model: the network.
        decay: share of the average that is kept, in [0, 1].
        buffers: whether floating-point buffers are averaged, too; else they are copied, as counters always are.
    """
    trained = _names(model, parameters=True)
    for name, value in model.state_dict().items():
        averaged = name in trained or (buffers and value.is_floating_point())
        if name in average and averaged:
            average[name].lerp_(value, 1 - decay)
        else:
            average[name] = value.detach().clone()


@dataclass(frozen=True)
class WeightAverage(Part):
    """SWA: average <- average + (weights - average) / (n + 1) after each epoch from `start` on.

    Validation, selection and release use the average, whose batch-norm statistics are estimated again after every
    epoch: the mean over one pass of the training images, weighted by batch size. Izmailov et al., "Averaging
    weights leads to wider optima and better generalization", UAI 2018, algorithm 1; against robust overfitting,
    Chen et al., ICLR 2021.

    Args:
        start: finished epochs before the first one whose weights are averaged; 55 of 200 in Chen et al.

    Raises:
        ValueError: a negative start.
    """

    start: int = 55

    def __post_init__(self) -> None:
        if self.start < 0:
            raise ValueError(f"start must be at least 0, got {self.start}")

    def check(self, method: Composition) -> str | None:
        """Refuse a second average: only one can be released."""
        return _another_average(self, method)

    def check_epochs(self, epochs: int) -> str | None:
        """Refuse a start after the end of the run."""
        return begins_too_late("start", self.start, epochs, "nothing would be averaged")

    @torch.no_grad()
    def after_epoch(self, end: EpochEnd) -> None:
        """Add the epoch's weights to the average."""
        if end.epoch < self.start:
            return
        memory = end.remember(self)
        count = memory.get(_COUNT, torch.tensor(0)) + 1
        trained = _names(end.model, parameters=True)
        for name, value in end.model.state_dict().items():
            if name in memory and name in trained:
                memory[name] = memory[name] + (value - memory[name]) / count.to(value.device)
            else:
                memory[name] = value.detach().clone()
        memory[_COUNT] = count
        if batch_norms(end.model):
            with with_state(end.model, _weights(memory)):  # in place, because not every network can be copied
                estimate_statistics(end.model, end)
                buffers = _names(end.model, parameters=False)
                for name, value in end.model.state_dict().items():
                    if name in buffers:
                        memory[name] = value.detach().clone()

    def evaluation_state(self, memory: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """Return the average, once there is one."""
        return _weights(memory) if memory else None


@dataclass(frozen=True)
class EpochAverage(Part):
    """average <- decay average + (1 - decay) state after each epoch, from the first epoch's state on.

    All floating-point values are averaged, batch-norm statistics included; counters are those of the last epoch.
    Validation, selection and release use the average. The script of Cui et al. (DKL, arXiv 2305.13948) does the
    same with the checkpoints of a finished run.

    Args:
        decay: in [0, 1); 0.9 there.

    Raises:
        ValueError: a decay out of range.
    """

    decay: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {self.decay}")

    def check(self, method: Composition) -> str | None:
        """Refuse a second average: only one can be released."""
        return _another_average(self, method)

    @torch.no_grad()
    def after_epoch(self, end: EpochEnd) -> None:
        """Add the epoch's state to the average."""
        memory = end.remember(self)
        for name, value in end.model.state_dict().items():
            if name in memory and value.is_floating_point():
                memory[name] = memory[name].lerp(value, 1 - self.decay)
            else:
                memory[name] = value.detach().clone()

    def evaluation_state(self, memory: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """Return the average, once there is one."""
        return memory or None


def _another_average(part: Part, method: Composition) -> str | None:
    """Error message if another part of a method has weights to release, else None."""
    for other in method.parameters:
        if averages_weights(other) and other is not part:
            return f"the method already has an average to release, {type(other).__name__}"
    return None


def _names(network: nn.Module, *, parameters: bool) -> set[str]:
    """Names of the parameters, or of the buffers, in a network's state dict, which may differ from its modules'."""
    state = network.state_dict(keep_vars=True)
    return {name for name, value in state.items() if isinstance(value, nn.Parameter) == parameters}


def _weights(memory: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in memory.items() if name != _COUNT}


@torch.no_grad()
def estimate_statistics(network: nn.Module, end: EpochEnd) -> None:
    """Set batch-norm statistics to their means over the batches of an epoch and over all processes.

    Args:
        network: changed in place; modules other than batch normalisations run in evaluation mode, and so do parts
            that are not trained.
        end: source of the images.
    """
    still = {module for part in frozen_parts(network) for module in part.modules()}
    norms = [norm for norm in batch_norms(network) if norm.running_mean is not None and norm not in still]
    momenta = [norm.momentum for norm in norms]
    with modes_kept(network), end.whole_weights(network):
        network.eval()
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
        seen = 0
        for x in end.images():
            if len(x) == 0:
                continue
            seen += len(x)
            for norm in norms:
                norm.momentum = len(x) / seen
            network(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        for statistic in (norm.running_mean, norm.running_var):
            assert statistic is not None
            share = torch.tensor(float(seen), device=statistic.device)
            statistic.copy_(end.global_mean(statistic * share) / end.global_mean(share))
