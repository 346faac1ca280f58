"""The full state of a training run in one file, from which a killed run continues exactly."""

import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustly.files import whole_file
from robustly.training.step import Memory

FORMAT = "robustly-training-state-3"
Row = dict[str, float | int | None]


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or belongs to another run."""


@dataclass(frozen=True)
class TrainingState:
    """The state that the next epoch depends on.

    Args:
        epoch: finished epochs.
        config_digest: hash of the configuration of the run.
        networks: state dicts of the trained networks by name ("model", "guide", ...).
        frozen: hashes of the frozen networks' weights, by name.
        optimizers: state dicts by the optimisers' names.
        memory: tensors of the parts, by slot.
        rows: metrics of the finished epochs.
        best_epoch: the epoch selected so far, -1 before the first.
        best_score: selection score of that epoch.
        seconds: training time so far.
    """

    epoch: int
    config_digest: str
    networks: dict[str, dict[str, Tensor]]
    frozen: dict[str, str]
    optimizers: dict[str, dict[str, Any]]
    memory: Memory
    rows: list[Row]
    best_epoch: int
    best_score: tuple[float, ...]
    seconds: float


def save_state(state: TrainingState, path: Path) -> None:
    """Write the state to a file atomically.

    Raises:
        OSError: the folder is read-only or the disk is full.
    """
    content = {"format": FORMAT, **{name: getattr(state, name) for name in state.__dataclass_fields__}}
    with whole_file(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # torch wraps a full disk into its own error
            raise OSError(f"could not write {path}: {error}") from error


def load_state(path: Path, config_digest: str) -> TrainingState:
    """Read a state; no code in the file is executed.

    Raises:
        CheckpointError: the file is truncated, not a checkpoint, or of a run with another configuration.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, zipfile.BadZipFile, KeyError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is truncated or not a checkpoint of robustly ({reason})") from None
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise CheckpointError(f"{path} is not a training checkpoint of robustly (its format is not {FORMAT!r})")
    try:
        state = TrainingState(**content)
    except TypeError:
        raise CheckpointError(f"{path} lacks parts of a training checkpoint") from None
    if state.config_digest != config_digest:
        raise CheckpointError(f"{path} belongs to a run with another configuration than config.yaml beside it")
    return state
