"""Averages over epochs: the mean of the weights after every late one (SWA), and a moving average."""

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from robustly.training.batch_norms import batch_norms
from robustly.training.parameters import EpochEnd, ParameterPart
from robustly.training.step import outlasts

if TYPE_CHECKING:
    from robustly.training.method import Method

_COUNT = "#epochs"  # beside the names of a state dict, none of which begins so


@dataclass(frozen=True)
class WeightAverage(ParameterPart):
    """SWA: average <- average + (weights - average) / (n + 1) after each epoch from `start` on.

    Validation, selection and release use the average, whose batch-norm statistics are estimated anew after every
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

    def check(self, method: "Method") -> str | None:
        """Refuse a second average: only one can be released."""
        return _another_average(self, method)

    def check_epochs(self, epochs: int) -> str | None:
        """Refuse a start after the end of the run."""
        return outlasts("start", self.start, epochs, "nothing would be averaged")

    @torch.no_grad()
    def after_epoch(self, end: EpochEnd) -> None:
        """Take the epoch's weights in."""
        if end.epoch < self.start:
            return
        memory = end.remember(self)
        count = memory.get(_COUNT, torch.tensor(0)) + 1
        trained = {name for name, _ in end.model.named_parameters(remove_duplicate=False)}
        for name, value in end.model.state_dict().items():
            if name in memory and name in trained:
                memory[name] = memory[name] + (value - memory[name]) / count.to(value.device)
            else:
                memory[name] = value.detach().clone()
        memory[_COUNT] = count
        if batch_norms(end.model):
            network = copy.deepcopy(end.model)
            network.load_state_dict(_weights(memory))
            estimate_statistics(network, end)
            for name, value in network.named_buffers():
                if name in memory:
                    memory[name] = value.detach().clone()

    def evaluation_state(self, memory: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """Return the average, once there is one."""
        return _weights(memory) if memory else None


@dataclass(frozen=True)
class EpochAverage(ParameterPart):
    """average <- decay average + (1 - decay) state after each epoch, from the first epoch's state on.

    Averages all that is a real number, batch-norm statistics too; counters are those of the last epoch. Validation,
    selection and release use the average. As the script of Cui et al. (DKL, arXiv 2305.13948) does it with the
    checkpoints of a finished run.

    Args:
        decay: in [0, 1); 0.9 there.

    Raises:
        ValueError: a decay out of range.
    """

    decay: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {self.decay}")

    def check(self, method: "Method") -> str | None:
        """Refuse a second average: only one can be released."""
        return _another_average(self, method)

    @torch.no_grad()
    def after_epoch(self, end: EpochEnd) -> None:
        """Take the epoch's state in."""
        memory = end.remember(self)
        for name, value in end.model.state_dict().items():
            if name in memory and value.is_floating_point():
                memory[name] = memory[name].lerp(value, 1 - self.decay)
            else:
                memory[name] = value.detach().clone()

    def evaluation_state(self, memory: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """Return the average, once there is one."""
        return memory or None


def _another_average(part: ParameterPart, method: "Method") -> str | None:
    for other in method.parameters:
        if type(other).evaluation_state is not ParameterPart.evaluation_state and other is not part:
            return f"the method already has an average to release, {type(other).__name__}"
    return None


def _weights(memory: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in memory.items() if name != _COUNT}


@torch.no_grad()
def estimate_statistics(network: nn.Module, end: EpochEnd) -> None:
    """Set batch-norm statistics to their means over the batches of an epoch and over all processes.

    Args:
        network: changed in place; what is no batch normalisation is in evaluation mode.
        end: where the images come from.
    """
    norms = [norm for norm in batch_norms(network) if norm.running_mean is not None]
    momenta = [norm.momentum for norm in norms]
    modes = [(module, module.training) for module in network.modules()]
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
    for module, was_training in modes:
        module.training = was_training
