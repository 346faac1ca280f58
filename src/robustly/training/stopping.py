"""When a run ends before its last epoch."""

from collections.abc import Sequence

from robustly.training.checkpoint import Row
from robustly.training.job import TrainingConfig


def why_stop(training: TrainingConfig, rows: Sequence[Row], best_epoch: int) -> str:
    """Why there shall be no further epoch; empty if nothing speaks against it.

    Args:
        training: its patience, and the fall that is catastrophic overfitting.
        rows: metrics of the finished epochs.
        best_epoch: the best of them, from 0.
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
