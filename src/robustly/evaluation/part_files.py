"""Files of the results of parts, from which a stopped evaluation continues."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from robustly.evaluation.parts import Arrays, Task


def digest_of(task: Task, parts: Sequence[Arrays]) -> str:
    """Name of the folder of a task: the same task on the same inputs has the same name."""
    about = {key: value for key, value in asdict(task).items() if key != "seconds"}
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for part in parts:
        for key in sorted(part):
            digest.update(f"{key} {part[key].dtype} {part[key].shape}".encode())
            digest.update(np.ascontiguousarray(part[key]).tobytes())
    return digest.hexdigest()[:32]


def part_file(folder: Path, number: int) -> Path:
    """File of the result of a part in the folder of its task."""
    return folder / f"{number:06d}.safetensors"


def finished_parts(folder: Path, task: Task, parts: Sequence[Arrays]) -> Iterator[Arrays]:
    """Results of the parts of a task that an earlier process has finished.

    Args:
        folder: folder of all tasks.
        task: the task.
        parts: its parts.
    """
    here = folder / digest_of(task, parts)
    found = (part_file(here, number) for number in range(len(parts)))
    return (load_part(path) for path in found if is_whole(path))


def all_results(folder: Path, count: int) -> Iterator[Arrays]:
    """Results of all parts of a task, in their order, from its folder."""
    return (load_part(part_file(folder, number)) for number in range(count))


def load_part(path: Path, prefix: str = "") -> Arrays:
    """The arrays of a file whose names begin with a prefix, without it."""
    with safe_open(path, framework="np") as stored:
        names = [name for name in stored.keys() if name.startswith(prefix)]  # noqa: SIM118
        return {name.removeprefix(prefix): stored.get_tensor(name) for name in names}


def is_whole(path: Path) -> bool:
    """Return True for a result that an earlier process has finished."""
    try:
        with safe_open(path, framework="np") as stored:
            return len(list(stored.keys())) > 0
    except (SafetensorError, OSError):
        return False
