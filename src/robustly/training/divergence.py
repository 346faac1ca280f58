"""A run that diverged: what is not finite, where, and what is left."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from robustly.training.step import Moment


class DivergenceError(ValueError):
    """The loss is no finite number any more."""


def check_loss(
    value: float, terms: Mapping[str, Tensor], moment: Moment, global_mean: Callable[[Tensor], Tensor]
) -> None:
    """Refuse a loss that is not finite, naming its terms that are not.

    Args:
        value: the loss of all processes, so that they stop together or not at all.
        terms: batch means of its terms, in this process.
        moment: of the step.
        global_mean: mean of a tensor over all processes.

    Raises:
        DivergenceError: it is NaN or infinite.
    """
    if math.isfinite(value):
        return
    means = global_mean(torch.stack(list(terms.values()))).isfinite().tolist()
    broken = [name for name, finite in zip(terms, means, strict=True) if not finite]
    what = f"loss term {', '.join(broken or ['the sum'])}"
    raise DivergenceError(_words(f"epoch {moment.epoch + 1}, step {moment.index + 1}", what, moment.epoch))


def check_weights(networks: Mapping[str, nn.Module], epoch: int) -> None:
    """Refuse weights that are not finite: an epoch's last step has no loss after it that would show what it did.

    Args:
        networks: what was trained, by role.
        epoch: epochs finished before this one.

    Raises:
        DivergenceError: one is NaN or infinite.
    """
    for role, network in networks.items():
        broken = [name for name, value in network.state_dict().items() if not bool(value.isfinite().all())]
        if broken:
            raise DivergenceError(_words(f"epoch {epoch + 1}", f"{broken[0]} of the {role}", epoch))


def _words(where: str, what: str, epoch: int) -> str:
    kept = f"the state after epoch {epoch} is kept" if epoch else "nothing was saved yet"
    return (
        f"training diverged in {where}: {what} is not finite; {kept}. Lower optimizer.learning_rate, or set "
        "optimizer.clip_norm"
    )
