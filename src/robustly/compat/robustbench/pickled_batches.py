"""CIFAR's batches in the format for Python: pickles of bytes, lists and arrays, read without NumPy's unpickling."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustly.output_text import first_line

MOST_BYTES = 256 * 1024 * 1024
_BYTE_TYPES = (b"u1", "u1", b"|u1", "|u1", b"uint8", "uint8")


class BatchError(ValueError):
    """A file that is not a batch of CIFAR; the message names it."""


def read_batch(file: Path) -> dict[str, Any]:
    """The dictionary of a batch: uint8 arrays, lists of numbers, and bytes.

    Only the types that CIFAR's files contain are allowed. A file that names any other class or function is refused
    before that is imported.

    Raises:
        BatchError: the file is damaged, too large, or holds other things than a batch.
    """
    if file.stat().st_size > MOST_BYTES:
        raise BatchError(f"{file}: is larger than any batch of CIFAR")
    try:
        with file.open("rb") as stream:
            content = _Reader(stream, encoding="bytes").load()
        if not isinstance(content, dict):
            raise TypeError(f"it holds {type(content).__name__}, not a dictionary")
        return {
            _text(key): value.pixels() if isinstance(value, _Array) else value for key, value in content.items()
        }
    except Exception as error:  # the pickle machine raises many kinds
        raise BatchError(
            f"{file}: is damaged or not a batch of CIFAR in the format for Python ({first_line(error)})"
        ) from None


class _Array:
    """Stand-in for an array while a pickle is read; NumPy is not called with values of the file."""

    def __init__(self, *_: object) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def pixels(self) -> NDArray[np.uint8]:
        """The array of bytes.

        Raises:
            TypeError: it has another type, or its size is not that of its shape.
        """
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            raise TypeError("it holds an array without content")
        _, shape, dtype, is_fortran, content = self.state
        if not isinstance(dtype, _DataType) or dtype.name not in _BYTE_TYPES or not isinstance(content, bytes):
            raise TypeError("it holds an array of another type than uint8")
        return np.frombuffer(content, np.uint8).reshape(shape, order="F" if is_fortran else "C")


class _DataType:
    """Stand-in for the type of an array."""

    def __init__(self, name: object = None, *_: object) -> None:
        self.name = name

    def __setstate__(self, state: object) -> None:
        """Ignore byte order and alignment, which bytes do not have."""


def _from_buffer(content: object, dtype: object, shape: object, order: object = "C") -> _Array:
    """An array, as protocol 5 writes it."""
    array = _Array()
    array.state = (1, shape, dtype, order == "F", bytes(content) if isinstance(content, bytearray) else content)
    return array


def _bytes_of(text: str, encoding: str = "latin1") -> bytes:
    """Bytes, as Python 3 writes them in old protocols."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it names the encoding {encoding!r}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], object] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DataType,
    ("_codecs", "encode"): _bytes_of,
}


class _Reader(pickle.Unpickler):
    """A pickle machine that resolves only the names in `_ALLOWED`, each to a stand-in of this file."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        """The stand-in for a name.

        Raises:
            UnpicklingError: the name is not allowed.
        """
        found = _ALLOWED.get((module_name, global_name))
        if found is None:
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}, which is never called")
        return found

    def persistent_load(self, pid: Any) -> Any:
        """Refuse references to objects outside the file.

        Raises:
            UnpicklingError: always.
        """
        raise pickle.UnpicklingError("it refers to objects outside the file")


def _text(key: object) -> str:
    return key.decode("latin1") if isinstance(key, bytes) else str(key)
