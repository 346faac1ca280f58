"""Files of the results of parts, from which a stopped evaluation continues.

Each file has a seal: a digest of its arrays, the evaluation, the task and the number of the part. If a file was
changed or belongs elsewhere, its part is computed again.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from robustly.array_files import write_arrays
from robustly.evaluation.parts import Arrays, Task

_SEAL = "seal"


def digest_of(task: Task, parts: Sequence[Arrays]) -> str:
    """Name of the folder of a task: the same task on the same inputs has the same name."""
    about = {key: value for key, value in asdict(task).items() if key != "seconds"}
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for part in parts:
        _add(digest, part)
    return digest.hexdigest()[:32]


def seal_of(arrays: Arrays, *texts: str) -> str:
    """Digest of arrays and texts, by which a file is known to be unchanged."""
    digest = hashlib.sha256(json.dumps(texts).encode())
    _add(digest, arrays)
    return digest.hexdigest()[:32]


def _add(digest: "hashlib._Hash", arrays: Arrays) -> None:
    for key in sorted(arrays):
        digest.update(f"{key} {arrays[key].dtype} {arrays[key].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[key]).reshape(-1).view(np.uint8).data)


def part_file(folder: Path, number: int) -> Path:
    """File of the result of a part in the folder of its task."""
    return folder / f"{number:06d}.safetensors"


def finished_parts(folder: Path, task: Task, parts: Sequence[Arrays], identity: str) -> Iterator[Arrays]:
    """Results of the parts of a task that an earlier process has finished.

    Args:
        folder: folder of all tasks.
        task: the task.
        parts: its parts.
        identity: identity of the evaluation.
    """
    here = folder / digest_of(task, parts)
    found = (part_file(here, number) for number in range(len(parts)))
    return (part for path in found if (part := _whole_part(path, identity)) is not None)


def all_results(folder: Path, count: int) -> Iterator[Arrays]:
    """Results of all parts of a task, in their order, from its folder."""
    return (load_part(part_file(folder, number)) for number in range(count))


def load_part(path: Path, prefix: str = "") -> Arrays:
    """The arrays of a file whose names begin with a prefix, without it."""
    with safe_open(path, framework="np") as stored:
        names = [name for name in stored.keys() if name.startswith(prefix)]  # noqa: SIM118
        return {name.removeprefix(prefix): stored.get_tensor(name) for name in names}


def save_part(path: Path, arrays: Arrays, identity: str) -> None:
    """Write the inputs of a task or the result of a part, with a seal.

    Raises:
        OSError: the folder is read-only or the disk is full.
    """
    write_arrays(path, arrays, {_SEAL: _seal(path, arrays, identity)})


def is_whole(path: Path, identity: str) -> bool:
    """Return True for a file of `save_part` that is unchanged, in its place and of the same evaluation."""
    return _whole_part(path, identity) is not None


def _whole_part(path: Path, identity: str) -> Arrays | None:
    """The arrays of such a file, None for any other."""
    try:
        with safe_open(path, framework="np") as stored:
            seal = (stored.metadata() or {}).get(_SEAL)
        arrays = load_part(path) if seal is not None else {}
        return arrays if seal == _seal(path, arrays, identity) else None
    except (SafetensorError, OSError, TypeError):  # a TypeError for numbers that NumPy does not have
        return None


def _seal(path: Path, arrays: Arrays, identity: str) -> str:
    return seal_of(arrays, identity, path.parent.name, path.name)
