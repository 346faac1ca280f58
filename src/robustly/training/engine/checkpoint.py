"""The full state of a training run in one file, from which a killed run continues exactly."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustly.files import whole_file
from robustly.memory import check_archive
from robustly.output_text import first_line
from robustly.training.engine.checkpoint_content import wrong_part
from robustly.training.step import Memory

FORMAT = "robustly-training-state-4"
Row = dict[str, float | int | None]
PRETRAINING = "pretraining"
"""Name of the optimiser of a network that is trained before the run."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or belongs to another run."""


@dataclass(frozen=True)
class Within:
    """Position in an epoch.

    Args:
        step: finished steps of the epoch.
        rate: learning rate of the last one.
        seconds: time of these steps.
        totals: sum and number of images by column of the metrics; see `Totals`.
    """

    step: int
    rate: float
    seconds: float
    totals: dict[str, tuple[float, int]]


@dataclass(frozen=True)
class TrainingState:
    """The state that the next epoch, or the rest of an epoch, depends on.

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
        pretraining: metrics of the epochs before the run, by the network that they train; until they are finished,
            the state of their optimiser is `optimizers[PRETRAINING]`.
        within: position in an epoch that is not finished; None between epochs.
        parts: parts in which each batch passes, where that is not the setting `training.accumulate`; else None.
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
    pretraining: dict[str, list[Row]] = field(default_factory=dict)
    within: "Within | None" = None
    parts: int | None = None


def save_state(state: TrainingState, path: Path) -> None:
    """Write the state to a file atomically.

    Raises:
        OSError: the folder is read-only or the disk is full.
    """
    content = {name: getattr(state, name) for name in state.__dataclass_fields__}
    for name in ("within", "parts"):
        if content[name] is None:
            del content[name]  # versions without it read the file then
    if state.within is not None:
        content["within"] = asdict(state.within)
    content = {"format": FORMAT, "sha256": content_sha256(content), **content}
    with whole_file(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # torch wraps a full disk into its own error
            raise OSError(f"could not write {path}: {error}") from error


def load_state(path: Path, config_digest: str) -> TrainingState:
    """Read a state; no code in the file is executed.

    Raises:
        CheckpointError: the file is truncated, damaged, not a checkpoint, has a part of another type, or is of a
            run with another configuration.
        SizeError: its tensors are larger than the limit of `robustly.memory`.
    """
    check_archive(path)
    # a damaged file raises many kinds of errors of pickle, zipfile and PyTorch
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path} is truncated or not a checkpoint of robustly ({first_line(error)})"
        ) from None
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise CheckpointError(f"{path} is not a training checkpoint of robustly (its format is not {FORMAT!r})")
    checksum = content.pop("sha256", None)
    wrong = wrong_part(content)
    if wrong:
        raise CheckpointError(f"{path} is not a whole training checkpoint: {wrong}")
    if checksum != content_sha256(content):
        raise CheckpointError(
            f"{path} is damaged: its content does not match its checksum; put a copy of the file back, or remove "
            f"{path.parent} to train from the start"
        )
    try:
        within = content.pop("within", None)
        state = TrainingState(**content, within=None if within is None else Within(**within))
    except TypeError:
        raise CheckpointError(f"{path} lacks parts of a training checkpoint") from None
    if state.config_digest != config_digest:
        raise CheckpointError(
            f"{path} belongs to a run with another configuration than config.yaml beside it: restore "
            "config.yaml. To train a finished run for longer, start a new one from its weights: `robustly finetune "
            "RUN --epochs N --out NEW`, or the recipe with --model.weights RUN/model.safetensors"
        )
    return state


def content_sha256(content: object) -> str:
    """SHA-256 of nested plain values and tensors, in hexadecimal; tensors on any device count by their values."""
    found = hashlib.sha256()
    _add(found, content)
    return found.hexdigest()


def _add(found: "hashlib._Hash", value: object) -> None:
    """Add a value to a hash, with its type and length, so that different contents never give the same bytes."""
    if isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        found.update(f"tensor {plain.dtype} {tuple(plain.shape)};".encode())
        found.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping):
        found.update(f"mapping {len(value)};".encode())
        for key, item in value.items():
            _add(found, key)
            _add(found, item)
    elif isinstance(value, list | tuple):
        found.update(f"sequence {len(value)};".encode())
        for item in value:
            _add(found, item)
    else:
        text = repr(value).encode()
        found.update(f"{type(value).__name__} {len(text)};".encode() + text)
