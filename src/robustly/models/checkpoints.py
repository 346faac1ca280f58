"""Reading of weights: files and folders of other programs, recognised by their content."""

import json
import os
import shlex
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load as parse_safetensors
from torch import Tensor

from robustly.documents import DocumentError, read_json
from robustly.memory import check_archive
from robustly.models.foreign_pickles import ForeignPickleError, load_pickle
from robustly.models.nested import NestedError, state_dict_in
from robustly.output_text import typed_line

_IN_FOLDERS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "checkpoints/best.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".t7", ".tar")
_INDEX = ".index.json"
_TORCH_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""Beginning of the files of `torch.save` that are not ZIP archives."""
_KINDS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the weights: run `git lfs pull` in its folder"),
    (b"<", "is a web page or XML, not weights: the download failed"),
    (b"\x1f\x8b", "is a compressed archive: unpack it first"),
    (b"BZh", "is a compressed archive: unpack it first"),
    (b"\xfd7zXZ", "is a compressed archive: unpack it first"),
    (b"\x89HDF", "is an HDF5 file, as Keras writes them: PyTorch weights are needed"),
    (b"\x93NUMPY", "is an array of NumPy: PyTorch weights are needed"),
    (b"GGUF", "is a GGUF file: PyTorch weights are needed"),
)


class WeightsError(ValueError):
    """A file of weights that cannot be read, or does not fit the model."""


def weights_file(path: str | os.PathLike[str]) -> Path:
    """File of the weights at a path: the path itself, or the file of weights in a folder.

    A folder is a run of `robustly` (its selected weights), a folder of Hugging Face, or one with a single file
    whose name ends as those of weights do.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        WeightsError: if a folder has no file of weights, or several.
    """
    file = Path(path)
    if not file.is_dir():
        if not file.is_file():
            raise FileNotFoundError(f"{file}: there is no such file of weights")
        return file
    for name in _IN_FOLDERS:
        if (file / name).is_file():
            return file / name
    others = sorted(item for item in file.iterdir() if item.suffix in SUFFIXES and item.is_file())
    if len(others) != 1:
        found = ", ".join(item.name for item in others[:4]) or "none"
        raise WeightsError(f"{file}: is a folder with {found} as files of weights: name one file")
    return others[0]


def read_weights(path: str | os.PathLike[str], key: str | None = None) -> dict[str, Tensor]:
    """Named tensors of a file or folder, on the CPU, under the names in the file. Code in a file is never run.

    Args:
        path: a file that safetensors or `torch.save` wrote, whatever its name; an index of several such files
            (`model.safetensors.index.json`); or a folder with one of them.
        key: the state dict to take, where a file holds several: keys joined by dots, such as `model_ema.module`, or
            a prefix of names. None finds it; averaged weights (EMA) are taken where there are both.

    Raises:
        FileNotFoundError: if there is no such file.
        WeightsError: if it is damaged, does not hold named tensors, or holds several state dicts.
    """
    file = weights_file(path)
    loaded: object = _read_shards(file) if file.name.endswith(_INDEX) else _read_file(file)
    try:
        found, remark = state_dict_in(loaded, key)
    except NestedError as error:
        raise WeightsError(f"{file}: {error}") from None
    if remark:
        warnings.warn(f"{file}: {remark}", stacklevel=2)
    return found


def written_about(file: Path) -> Mapping[str, str]:
    """Metadata of a safetensors file; empty for other files."""
    if not _is_safetensors(_beginning(file)):
        return {}
    try:
        with safe_open(file, framework="pt") as content:
            return dict(content.metadata() or {})
    except Exception as error:  # the parser raises many kinds
        raise WeightsError(f"{file}: is damaged or not a safetensors file ({typed_line(error)})") from error


def is_torchscript(path: Path) -> bool:
    """True for an archive of `torch.jit.save`, which holds a model with its code."""
    return "torchscript" in _archive_kind(path)


def _read_file(file: Path) -> object:
    check_archive(file)
    beginning = _beginning(file)
    if _is_safetensors(beginning) or file.suffix == ".safetensors":
        return _parsed(file, lambda: parse_safetensors(file.read_bytes()), "a safetensors file")
    refusal = next((words for magic, words in _KINDS if beginning.startswith(magic)), _archive_kind(file))
    if refusal:
        raise WeightsError(f"{file}: {refusal.replace('FILE', shlex.quote(str(file)))}")
    try:
        return _parsed(file, lambda: load_pickle(file), "a file of torch.save with a state dict")
    except ForeignPickleError as error:
        line = "" if "attacks" in str(error) else f"; {_converting_line(file)}"
        raise WeightsError(f"{file}: {error}{line}") from None


def _parsed(file: Path, parse: Callable[[], object], kind: str) -> object:
    """The result of a parser; the parsers of other formats raise many kinds of errors."""
    try:
        return parse()
    except ForeignPickleError:
        raise
    except Exception as error:
        raise WeightsError(f"{file}: is damaged or not {kind} ({typed_line(error)})") from error


def _read_shards(index: Path) -> dict[str, Tensor]:
    """Tensors of the files that an index of Hugging Face names."""
    try:
        content = read_json(index)
    except DocumentError as error:
        raise WeightsError(str(error)) from None
    names = content.get("weight_map") if isinstance(content, Mapping) else None
    if not isinstance(names, Mapping) or not all(
        isinstance(name, str) and isinstance(file, str) and Path(file).name == file for name, file in names.items()
    ):
        raise WeightsError(f"{index}: has no weight_map from names of weights to files beside it")
    found: dict[str, Tensor] = {}
    for file in sorted(set(names.values())):
        shard = index.parent / file
        if not shard.is_file():
            raise FileNotFoundError(f"{shard}: is missing, but {index.name} names it")
        found |= state_dict_in(_read_file(shard), None)[0]
    missing = [name for name in names if name not in found]
    if missing:
        raise WeightsError(f"{index}: names {missing[0]}, which is in none of its files")
    return found


def _beginning(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(64)


def _is_safetensors(beginning: bytes) -> bool:
    return beginning[8:9] == b"{" and int.from_bytes(beginning[:8], "little") < 2**40


def _archive_kind(file: Path) -> str:
    """The reason why a ZIP archive holds no state dict; empty for archives of `torch.save` and other files."""
    if not zipfile.is_zipfile(file):
        return ""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return ""
    if any(name.endswith("/constants.pkl") for name in names):
        return (
            "is a torchscript archive, a model with its code: evaluate it as the model (robustly evaluate FILE "
            "--trust-code)"
        )
    if any("models/" in name or name.endswith("serialized_exported_program.json") for name in names):
        return "is a program of torch.export, not weights: load it in Python and call robustly.evaluate"
    if names and all(name.endswith(".npy") for name in names):
        return "is an archive of NumPy arrays: PyTorch weights are needed"
    return ""


def _converting_line(file: Path) -> str:
    """The command that writes the tensors of a pickle to a file that can be read without running code."""
    old, new = json.dumps(str(file)), json.dumps(str(file.with_suffix(".converted.pt")))
    if zipfile.is_zipfile(file) or _beginning(file).startswith(_TORCH_MAGIC):
        load = f'c = torch.load({old}, map_location="cpu", weights_only=False)'
    else:
        load = f'import pickle; c = pickle.load(open({old}, "rb"), encoding="latin1")'
    code = (
        f'import torch; {load}; d = c.get("state_dict", c) if isinstance(c, dict) else c.state_dict(); '
        'torch.save({k: torch.as_tensor(v) for k, v in d.items() if hasattr(v, "shape")}, '
        f"{new})"
    )
    return f"if you trust its source, since this runs code in it, convert it with: python -c {shlex.quote(code)}"
