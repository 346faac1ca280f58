"""Weights: copied from files into models, written as safetensors, and hashed."""

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from robustly.files import whole_file
from robustly.models.adapted import Adapted
from robustly.models.checkpoints import WeightsError, read_weights, weights_file, written_about
from robustly.models.divided import DividedModel
from robustly.models.weight_names import Fitted, NamesError, fitted, is_normalisation
from robustly.models.wide_resnet import WideResNet
from robustly.output_text import listed

_NORMALISATION = ("normalize.mean", "normalize.std")
_OURS = {"written_by": "robustly"}


def load_weights(model: nn.Module, path: str | os.PathLike[str], key: str | None = None) -> None:
    """Copy the weights of a file or folder into a model, all of them or none.

    Names are fitted to the model: prefixes of wrappers (DataParallel, `torch.compile`, Lightning, MadryLab's
    `robustness`, `AveragedModel`, any other) are removed, or added where the model itself is wrapped. The block
    `sub_block1` of wide ResNets, which TRADES registers but never uses, is left out. Where a file from another
    program lacks the input normalisation or batch counters, the model's own are kept.

    Args:
        model: the network.
        path: as for `read_weights`.
        key: as for `read_weights`.

    Raises:
        FileNotFoundError: if there is no such file.
        WeightsError: if the file does not hold weights, the names or shapes in it are not the model's, a weight is
            not finite, or its input normalisation differs from the model's (or is missing in a file of
            `save_weights`).
    """
    file = weights_file(path)
    own = _state(model)
    given = read_weights(file, key)
    try:
        fit = fitted(given, own)
    except NamesError as error:
        raise WeightsError(f"{file}: {error}") from None
    weights = fit.weights
    # the normalisation around a model of another program is not part of its file
    is_ours = _written_here(file) and not isinstance(model, Adapted)
    if is_ours and _NORMALISATION[0] in own and _NORMALISATION[0] not in weights:
        raise WeightsError(
            f"{file}: was trained without input normalisation, but the model is configured with mean and std: "
            "leave them out, or take another file"
        )
    if isinstance(model, WideResNet):
        weights = {name: value for name, value in weights.items() if not name.startswith("sub_block1.")}
    _check_match(own, weights, file)
    _check_values(own, weights, file)
    _check_normalisation(model, own, fit, file)
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)
    if fit.left_out:
        warnings.warn(f"{file}: {listed(fit.left_out)} are not of the model and are not used", stacklevel=2)


def save_weights(
    model: nn.Module | Mapping[str, Tensor],
    path: str | os.PathLike[str],
    about: Mapping[str, str] | None = None,
) -> None:
    """Write a model's state dict, or named tensors, atomically as safetensors.

    Args:
        model: the network, or its named tensors.
        path: the file.
        about: texts for the metadata of the file, such as the settings of the model. The hash of the weights does
            not depend on them.

    Raises:
        FileNotFoundError: if the folder does not exist.
        WeightsError: if the name does not end in .safetensors.
    """
    file = Path(path)
    if file.suffix != ".safetensors":
        raise WeightsError(f"{file}: weights are written as .safetensors, so the name must end in it")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"{file.parent}: there is no such folder to write {file.name} in")
    write_tensors(model, file, {**(about or {}), **_OURS})


def write_tensors(model: nn.Module | Mapping[str, Tensor], file: Path, metadata: Mapping[str, str]) -> None:
    """Write the tensors of a state dict atomically as safetensors; equal ones give equal files.

    Args:
        model: the network, or its named tensors.
        file: the file, whose folder exists.
        metadata: the metadata of the file.

    Raises:
        OSError: the file cannot be written.
    """
    # safetensors rejects shared storage, so tied weights are copied
    copies = {name: _plain(value).clone() for name, value in _state(model).items()}
    blob = to_safetensors(copies, metadata=dict(metadata))
    with whole_file(file) as temporary:
        temporary.write_bytes(_with_sorted_metadata(blob))


def _with_sorted_metadata(blob: bytes) -> bytes:
    """The same file with its metadata in the order of the keys; the library's order differs from call to call."""
    length = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    padded = text + b" " * (-len(text) % 8)  # the data begin at a multiple of 8 bytes
    return len(padded).to_bytes(8, "little") + padded + blob[8 + length :]


def weights_hash(model: nn.Module | Mapping[str, Tensor]) -> str:
    """SHA-256, in hexadecimal, of a model's state dict: sorted names, dtypes, shapes and bytes.

    Equal numbers give equal hashes, whatever the file format, the device or the memory format. The packed weights
    of quantised layers, and the constants of frozen TorchScript, count as weights.
    """
    if isinstance(model, DividedModel):
        return model.weights_sha256
    state = _hashed_state(model)
    digest = hashlib.sha256()
    for name in sorted(state):
        value = _plain(state[name])
        digest.update(f"{name}\x1f{value.dtype}\x1f{tuple(value.shape)}\x1e".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def has_weights(model: nn.Module) -> bool:
    """True if a hash of the model's weights contains any tensor."""
    return bool(_hashed_state(model))


def _hashed_state(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Named tensors, also those inside of tuples, or else the constants of frozen programs."""
    state: Mapping[str, object] = model.state_dict() if isinstance(model, nn.Module) else model
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        parts = {name: value}
        if isinstance(value, tuple | list):
            parts = {f"{name}.{place}": part for place, part in enumerate(value)}
        found |= {key: part for key, part in parts.items() if isinstance(part, Tensor)}
    if found or not isinstance(model, nn.Module):
        return found
    for name, part in model.named_modules():
        if isinstance(part, torch.jit.ScriptModule) and hasattr(part, "code_with_constants"):
            constants = part.code_with_constants[1].const_mapping
            found |= {f"{name}.{key}": value for key, value in constants.items() if isinstance(value, Tensor)}
    return found


def _state(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Named tensors, without the extra state of any type that a module may add."""
    state: Mapping[str, object] = model.state_dict() if isinstance(model, nn.Module) else model
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _plain(value: Tensor) -> Tensor:
    here = value.detach().cpu()
    return (here.dequantize() if here.is_quantized else here).contiguous()


def _written_here(file: Path) -> bool:
    """True if `save_weights` wrote the file; files of other programs may lack the input normalisation."""
    return written_about(file).get("written_by") == _OURS["written_by"]


def _check_match(own: Mapping[str, Tensor], given: Mapping[str, Tensor], path: Path) -> None:
    missing = [
        name
        for name in own
        if name not in given and not is_normalisation(name) and not name.endswith("num_batches_tracked")
    ]
    unexpected = sorted(name for name in given if name not in own)
    shapes = [
        f"{name} is {tuple(value.shape)} instead of {tuple(own[name].shape)}"
        for name, value in given.items()
        if name in own and value.shape != own[name].shape
    ]
    problems = [
        f"{words} {listed(names)}"
        for words, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape:", shapes))
        if names
    ]
    if problems:
        classes = "" if missing or unexpected else _other_classes(own, given)
        raise WeightsError(f"{path}: the weights do not fit the model: {'; '.join(problems)}{classes}")


def _other_classes(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """A note on a file of another number of classes: only outputs of the last layer differ. Empty otherwise."""
    differ = {name: value.shape for name, value in given.items() if value.shape != own[name].shape}
    numbers = {(shape[0] if shape else 0, *own[name].shape[:1]) for name, shape in differ.items()}
    inputs_fit = all(shape[1:] == own[name].shape[1:] for name, shape in differ.items())
    if len(differ) > 2 or len(numbers) != 1 or not inputs_fit or list(own)[-1] not in differ:
        return ""
    theirs, ours = numbers.pop()
    return f" (the file is of {theirs} classes, the model of {ours})"


def _check_values(own: Mapping[str, Tensor], given: Mapping[str, Tensor], path: Path) -> None:
    for name, value in given.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise WeightsError(f"{path}: {name} holds numbers that are not finite")
        if name in _NORMALISATION and not torch.allclose(value.float().cpu(), own[name].float().cpu(), atol=1e-6):
            raise WeightsError(
                f"{path}: was trained with {name} = {value.flatten().tolist()} "
                f"but the model is configured with {own[name].flatten().tolist()}"
            )


def _check_normalisation(model: nn.Module, own: Mapping[str, Tensor], fit: Fitted, path: Path) -> None:
    """Compare the input normalisation of a wrapper in the file with the model's.

    Raises:
        WeightsError: the model has another one, or none.
    """
    if fit.mean is None or fit.std is None:
        return
    mean, std = (value.flatten().tolist() for value in (fit.mean, fit.std))
    said = f"--model.mean '{[round(x, 6) for x in mean]}' --model.std '{[round(x, 6) for x in std]}'"
    names = [name for name in own if is_normalisation(name)]
    if names:
        for name in names:
            theirs = mean if name.endswith("mean") else std
            same = len(theirs) == own[name].numel() and torch.allclose(
                own[name].flatten().float().cpu(), torch.tensor(theirs), atol=1e-4
            )
            if not same:
                raise WeightsError(
                    f"{path}: was trained with another input normalisation than the model has: use {said}"
                )
    elif any(mean) or any(value != 1 for value in std):
        if isinstance(getattr(model, "normalize", None), nn.Identity):
            raise WeightsError(
                f"{path}: was trained with an input normalisation, but the model has none: use {said}"
            )
        warnings.warn(
            f"{path}: was trained with an input normalisation: if the network does not contain it, use {said}",
            stacklevel=3,
        )
