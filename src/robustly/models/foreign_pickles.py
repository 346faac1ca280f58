"""Files of `torch.save` by others: tensors beside objects of any class, none of which is created or called."""

import io
import pickle
import pickletools
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

_ABLE_TO_HARM = tuple(
    "os posix nt sys subprocess shutil runpy socket ctypes pty importlib webbrowser code pickle pip".split()  # noqa: SIM905
)
_PLAIN_TYPES = tuple(
    "set frozenset slice range complex bytearray object list dict tuple int float bool str bytes".split()  # noqa: SIM905
)
_LEGACY_PICKLES = 5
_DEEPEST = 64


class ForeignPickleError(ValueError):
    """A pickle that cannot be read without running code of it; the message is a clause without the file's name."""


class Placeholder:
    """Stand-in for an object of a class other than tensors and plain containers; has its state and runs nothing."""

    state: object = None

    def __new__(cls, *_: object) -> "Placeholder":
        """Ignore the arguments of the object that is replaced."""
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        self.state = state


def load_pickle(file: Path) -> object:
    """Content of a file of `torch.save`, on the CPU, in which `Placeholder` replaces foreign objects.

    PyTorch's restricted unpickler reads the file. It creates tensors and plain containers; each other class or
    function that the file names is replaced by `Placeholder`, for this one call. Code named by a file never runs.

    Raises:
        ValueError: the file is not a pickle.
        ForeignPickleError: the file names functions that can do harm, or has parts that cannot be replaced.
        Exception: whatever PyTorch raises for a damaged file.
    """
    if not is_pickle(file):
        raise ValueError("it does not begin as files of torch.save do")
    names = names_in(file)
    harmful = sorted(name for name in names if _may_harm(name))
    if harmful:
        raise ForeignPickleError(
            f"holds a call of {', '.join(harmful[:3])}, which can run commands: it is never unpickled, and files "
            "with such calls may be attacks"
        )
    allowed = torch.serialization.safe_globals([(Placeholder, name) for name in sorted(names)])
    try:
        with allowed, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ForeignPickleError("holds Python objects beside tensors, which are never unpickled") from error


def is_pickle(file: Path) -> bool:
    """True for a ZIP archive with a pickle, and for a file that begins as a pickle of Python 3 or 2 does."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    with file.open("rb") as stream:
        beginning = stream.read(2)
    return beginning[:1] == b"\x80" and beginning[1:] in (b"\x02", b"\x03", b"\x04", b"\x05")


def names_in(file: Path) -> set[str]:
    """Full names of the classes and functions that a file of `torch.save` refers to; empty for other files."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            members = [name for name in archive.namelist() if name.endswith("data.pkl")]
            return {name for member in members for name in _globals(io.BytesIO(archive.read(member)))}
    with file.open("rb") as stream:
        return {name for _ in range(_LEGACY_PICKLES) for name in _globals(stream)}


def module_state(value: object, prefix: str = "", depth: int = 0) -> dict[str, Tensor]:
    """State dict of a pickled `nn.Module`, from the tensors in its placeholder; empty if it is not one."""
    state = value.state if isinstance(value, Placeholder) else None
    if not isinstance(state, Mapping) or "_parameters" not in state or depth > _DEEPEST:
        return {}
    kept = state.get("_non_persistent_buffers_set") or set()
    found: dict[str, Tensor] = {}
    for group in ("_parameters", "_buffers"):
        for name, tensor in dict(state.get(group) or {}).items():
            if isinstance(tensor, Tensor) and name not in kept:
                found[f"{prefix}{name}"] = tensor.detach()
    for name, child in dict(state.get("_modules") or {}).items():
        found |= module_state(child, f"{prefix}{name}.", depth + 1)
    return found


def _globals(stream: BinaryIO) -> set[str]:
    """Names in the next pickle of a stream. Reading stops at the first byte that is not of a pickle."""
    found: set[str] = set()
    try:
        for operation, argument, _ in pickletools.genops(stream):
            if operation.name == "GLOBAL":
                found.add(_name_today(*str(argument).split(" ", 1)))
    except Exception:  # the raw tensors behind the pickles of the old format, or a damaged file
        return found
    return found


def _name_today(module: str, name: str = "") -> str:
    """Full name under Python 3 of a name in a pickle, which may come from Python 2."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"


def _may_harm(name: str) -> bool:
    module, _, last = name.rpartition(".")
    if module == "builtins":
        return last not in _PLAIN_TYPES
    return module.partition(".")[0] in _ABLE_TO_HARM
