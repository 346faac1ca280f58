"""Weights in files: reading of common checkpoints, writing of safetensors, and a hash."""

import hashlib
import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from robustly.files import whole_file
from robustly.memory import check_archive
from robustly.models.wide_resnet import WideResNet

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "model.")
_NORMALISATION = ("normalize.mean", "normalize.std")
_NAMED_IN_ERROR = 4
_OURS = {"written_by": "robustly"}


class WeightsError(ValueError):
    """A file of weights that cannot be read, or does not fit the model."""


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Copy the weights of a file into a model, all of them or none.

    Accepts `.safetensors`, and `.pt` or `.pth` with a state dict, plain or under a key such as `state_dict` or
    `model`. Prefixes of wrappers (`module.`, `model.`, `_orig_mod.`) are removed, and so is the block `sub_block1`
    of wide ResNets, which TRADES registers but never uses. Where a file from another program lacks the input
    normalisation or batch counters, the model's own are kept.

    Raises:
        FileNotFoundError: if there is no such file.
        WeightsError: if the file does not hold weights, the names or shapes in it are not the model's, a weight is
            not finite, or its input normalisation differs from the model's (or is missing in a file of
            `save_weights`).
    """
    own = _state(model)
    given = _renamed(read_weights(path), own, path)
    if _written_here(Path(path)) and _NORMALISATION[0] in own and _NORMALISATION[0] not in given:
        raise WeightsError(
            f"{path}: was trained without input normalisation, but the model is configured with mean and std: "
            "leave them out, or take another file"
        )
    if isinstance(model, WideResNet):
        given = {name: value for name, value in given.items() if not name.startswith("sub_block1.")}
    _check_match(own, given, path)
    for name, value in given.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise WeightsError(f"{path}: {name} holds numbers that are not finite")
        if name in _NORMALISATION and not torch.allclose(value.float().cpu(), own[name].float().cpu(), atol=1e-6):
            raise WeightsError(
                f"{path}: was trained with {name} = {value.flatten().tolist()} "
                f"but the model is configured with {own[name].flatten().tolist()}"
            )
    with torch.no_grad():
        for name, value in given.items():
            own[name].copy_(value)


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Named tensors of a file, on the CPU, under the names in the file. Code in a file is never run.

    Raises:
        FileNotFoundError: if there is no such file.
        WeightsError: if it is damaged, or does not hold named tensors.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such file of weights")
    if file.suffix not in (".safetensors", ".pt", ".pth"):
        raise WeightsError(f"{file}: the name must end in .safetensors, .pt or .pth")
    check_archive(file)
    # the parsers of other formats raise many kinds of errors; the reason goes into the message
    if file.suffix == ".safetensors":
        try:
            return dict(parse_safetensors(file.read_bytes()))
        except Exception as error:
            raise WeightsError(f"{file}: is damaged or not a safetensors file ({_first_line(error)})") from error
    try:
        loaded: object = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{file}: is not a state dict, or holds Python objects beside tensors, "
            "which are never unpickled; save model.state_dict() alone"
        ) from error
    except Exception as error:
        raise WeightsError(
            f"{file}: is damaged or not a file of torch.save with a state dict ({_first_line(error)})"
        ) from error
    return _unwrapped(loaded, file)


def save_weights(model: nn.Module | Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Write a model's state dict, or named tensors, atomically as safetensors.

    Raises:
        FileNotFoundError: if the folder does not exist.
        WeightsError: if the name does not end in .safetensors.
    """
    file = Path(path)
    if file.suffix != ".safetensors":
        raise WeightsError(f"{file}: weights are written as .safetensors, so the name must end in it")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"{file.parent}: there is no such folder to write {file.name} in")
    state = _state(model)
    # safetensors rejects shared storage, so tied weights are copied
    blob = to_safetensors({name: _plain(value).clone() for name, value in state.items()}, metadata=_OURS)
    with whole_file(file) as temporary:
        temporary.write_bytes(blob)


def weights_hash(model: nn.Module | Mapping[str, Tensor]) -> str:
    """SHA-256, in hexadecimal, of a model's state dict: sorted names, dtypes, shapes and bytes.

    Equal numbers give equal hashes, whatever the file format, the device or the memory format.
    """
    state = _state(model)
    digest = hashlib.sha256()
    for name in sorted(state):
        value = _plain(state[name])
        digest.update(f"{name}\x1f{value.dtype}\x1f{tuple(value.shape)}\x1e".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _state(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Named tensors, without the extra state of any type that a module may add."""
    state: Mapping[str, object] = model.state_dict() if isinstance(model, nn.Module) else model
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _plain(value: Tensor) -> Tensor:
    return value.detach().cpu().contiguous()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def _written_here(file: Path) -> bool:
    """True if `save_weights` wrote the file; files of other programs may lack the input normalisation."""
    if file.suffix != ".safetensors":
        return False
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return bool(header.get("__metadata__") == _OURS)


def _unwrapped(loaded: object, file: Path) -> dict[str, Tensor]:
    """State dict in the result of `torch.load`, which may be nested under one or two keys."""
    while isinstance(loaded, Mapping):
        inner = next((loaded[key] for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    if not isinstance(loaded, Mapping) or not loaded:
        raise WeightsError(f"{file}: holds {type(loaded).__name__} instead of named tensors (a state dict)")
    foreign = [str(name) for name, value in loaded.items() if not isinstance(value, Tensor)]
    if foreign:
        raise WeightsError(
            f"{file}: {_listed(foreign)} hold no tensors; put the state dict alone in the file, "
            f"or under one of the keys {', '.join(_WRAPPERS)}"
        )
    return {str(name): value for name, value in loaded.items()}


def _renamed(given: dict[str, Tensor], own: Mapping[str, Tensor], path: object) -> dict[str, Tensor]:
    """Tensors under the model's own names: without prefixes, unless the model itself has them."""
    renamed: dict[str, Tensor] = {}
    for original, value in given.items():
        name = original if original in own else original.replace("_orig_mod.", "")
        while name not in own and name.startswith(_PREFIXES):
            name = name.partition(".")[2]
        if name in renamed:
            raise WeightsError(f"{path}: holds two tensors for {name}")
        renamed[name] = value
    return renamed


def _check_match(own: Mapping[str, Tensor], given: Mapping[str, Tensor], path: object) -> None:
    missing = [
        name
        for name in own
        if name not in given and name not in _NORMALISATION and not name.endswith("num_batches_tracked")
    ]
    unexpected = sorted(name for name in given if name not in own)
    shapes = [
        f"{name} is {tuple(value.shape)} instead of {tuple(own[name].shape)}"
        for name, value in given.items()
        if name in own and value.shape != own[name].shape
    ]
    problems = [
        f"{words} {_listed(names)}"
        for words, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape:", shapes))
        if names
    ]
    if problems:
        raise WeightsError(f"{path}: the weights do not fit the model: {'; '.join(problems)}")


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMED_IN_ERROR])
    return shown if len(names) <= _NAMED_IN_ERROR else f"{shown} and {len(names) - _NAMED_IN_ERROR} more"
