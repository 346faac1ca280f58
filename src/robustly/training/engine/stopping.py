"""Reasons to end a run: divergence, patience, catastrophic overfitting."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from robustly.sharding import local
from robustly.training.engine.checkpoint import Row
from robustly.training.engine.job import TrainingConfig
from robustly.training.step import Moment


class DivergenceError(ValueError):
    """A loss or a weight is not finite."""


def check_loss(
    value: float,
    terms: Mapping[str, Tensor],
    moment: Moment,
    global_mean: Callable[[Tensor], Tensor],
    process: str = "training",
) -> None:
    """Refuse a loss that is not finite, and name its terms that are not.

    Args:
        value: the loss over all processes, so that all of them stop together.
        terms: batch means of its terms, in this process.
        moment: position of the step.
        global_mean: mean of a tensor over all processes.
        process: name of the training, for the message.

    Raises:
        DivergenceError: the loss is NaN or infinite.
    """
    if math.isfinite(value):
        return
    means = global_mean(torch.stack(list(terms.values()))).isfinite().tolist()
    broken = [name for name, finite in zip(terms, means, strict=True) if not finite]
    what = f"loss term {', '.join(broken or ['the sum'])}"
    where = f"epoch {moment.epoch + 1}, step {moment.index + 1}"
    raise DivergenceError(_message(process, where, what, moment.epoch))


def check_weights(
    networks: Mapping[str, nn.Module],
    epoch: int,
    process: str = "training",
    total: Callable[[Tensor], Tensor] = lambda value: value,
) -> None:
    """Refuse weights that are not finite.

    The loss is checked before the optimiser's step, so the last step of an epoch needs this check.

    Args:
        networks: trained networks by name.
        epoch: epochs finished before this one.
        process: name of the training, for the message.
        total: sum over processes, each of which may hold a share of the weights.

    Raises:
        DivergenceError: a weight is NaN or infinite.
    """
    for name, network in networks.items():
        state = network.state_dict()
        counts = total(torch.stack([(~local(value).isfinite()).sum() for value in state.values()]).float())
        broken = [key for key, count in zip(state, counts.tolist(), strict=True) if count]
        if broken:
            raise DivergenceError(_message(process, f"epoch {epoch + 1}", f"{broken[0]} of the {name}", epoch))


def _message(process: str, where: str, what: str, epoch: int) -> str:
    kept = f"the state after epoch {epoch} is kept" if epoch else "nothing was saved yet"
    return (
        f"{process} diverged in {where}: {what} is not finite; {kept}. Lower optimizer.learning_rate, or set "
        "optimizer.clip_norm"
    )


def reason_to_stop(training: TrainingConfig, rows: Sequence[Row], best_epoch: int) -> str:
    """Reason to end a run before its last epoch; empty without one.

    Args:
        training: patience, and the drop of accuracy that counts as catastrophic overfitting.
        rows: metrics of the finished epochs.
        best_epoch: the best of these epochs, from 0.
    """
    waited = len(rows) - 1 - best_epoch
    if training.patience is not None and rows and waited >= training.patience:
        return f"no better epoch for {waited}: training.patience is {training.patience}"
    limit = training.stop_after_drop
    if limit is None or len(rows) < 2:
        return ""
    before, now = (float(row["validation_robust_accuracy"] or 0) for row in rows[-2:])
    if before - now <= limit:
        return ""
    return (
        f"robust validation accuracy fell from {before:.1%} to {now:.1%} in epoch {len(rows)}, as in "
        f"catastrophic overfitting: training.stop_after_drop is {limit:g}"
    )
