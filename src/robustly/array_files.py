"""Arrays in safetensors files: written whole, and read without a copy in memory."""

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from robustly.documents import parse_json
from robustly.files import whole_file

_KINDS: Mapping[str, str] = {
    **{"BOOL": "?", "U8": "<u1", "I8": "<i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4"},
    **{"U64": "<u8", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8"},
}


@dataclass(frozen=True)
class ArrayFile:
    """The content of a file.

    Args:
        arrays: by name.
        about: the texts of its metadata.
    """

    arrays: dict[str, NDArray[Any]]
    about: dict[str, str]


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], about: Mapping[str, str] | None = None) -> None:
    """Write arrays to a safetensors file; it is whole or not there. Contiguous arrays are not copied.

    Args:
        path: the file.
        arrays: by name.
        about: texts for its metadata.

    Raises:
        OSError: it cannot be written.
    """
    with whole_file(path) as temporary:
        try:
            plain = {name: np.asarray(array, order="C") for name, array in arrays.items()}
            save_file(plain, temporary, metadata=dict(about) if about else None)
        except SafetensorError as error:
            raise OSError(f"could not write {path}: {error}") from error


def read_arrays(path: Path) -> ArrayFile:
    """The arrays of a safetensors file, in memory.

    Raises:
        SafetensorError: the file is damaged.
        OSError: it cannot be read.
    """
    with safe_open(path, framework="np") as content:
        return ArrayFile(content.get_tensors(), dict(content.metadata() or {}))


def map_arrays(path: Path) -> ArrayFile:
    """The arrays of a safetensors file, which stay on the disk until they are used, and may leave memory again.

    Changes of the arrays do not reach the file. The file may be removed or replaced meanwhile. On Windows, where
    it could not, the arrays are read into memory.

    Raises:
        SafetensorError: the file is damaged, or holds numbers of a kind that NumPy does not have.
        OSError: it cannot be read.
    """
    if os.name == "nt":
        return read_arrays(path)
    with safe_open(path, framework="np") as checked:  # refuses offsets that do not fit the file
        about, names = dict(checked.metadata() or {}), list(checked.keys())
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = parse_json(file.read(length).decode(), str(path))
    content = np.asarray(np.memmap(path, np.uint8, "c", offset=0))[8 + length :]
    return ArrayFile({name: _view(content, header[name], f"{path}: {name}") for name in names}, about)


def _view(content: NDArray[np.uint8], entry: Mapping[str, Any], where: str) -> NDArray[Any]:
    """The array of an entry of the header, as a view of the bytes behind the header."""
    if entry["dtype"] not in _KINDS:
        raise SafetensorError(f"{where} has numbers of the kind {entry['dtype']}, which NumPy does not have")
    begin, end = entry["data_offsets"]
    return content[begin:end].view(_KINDS[entry["dtype"]]).reshape(entry["shape"])
