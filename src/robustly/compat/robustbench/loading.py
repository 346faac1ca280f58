"""RobustBench's `load_model` from local files."""

import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from robustly.compat.robustbench.zoo import CLASSES, ENTRIES, OTHER_NETWORKS, THREATS, Entry
from robustly.models import WeightsError, read_weights
from robustly.models.weight_names import Fitted, NamesError, fitted
from robustly.models.without_values import without_values
from robustly.output_text import listed
from robustly.settings import nearest

_CONSTANTS = ("normalize.mean", "normalize.std")
_CONSTANTS_IN_FILES = (_CONSTANTS, ("mu", "sigma"))
_UNUSED = "sub_block1."  # TRADES registers this block but never uses it
_BLOCK = re.compile(r"block(\d)\.layer\.(\d+)\.")
_DEEPMIND = {
    "bn1.": "batchnorm_0.",
    "conv1.": "conv_0.",
    "bn2.": "batchnorm_1.",
    "conv2.": "conv_1.",
    "convShortcut.": "shortcut.",
}
_DEEPMIND_ENDS = {"conv1.": "init_conv.", "bn1.": "batchnorm.", "fc.": "logits."}


class RobustBenchError(ValueError):
    """An argument of RobustBench's that is not supported; the message names the alternative."""


def load_model(
    model_name: str,
    model_dir: str | Path = "./models",
    dataset: str = "cifar10",
    threat_model: str = "Linf",
    custom_checkpoint: str | Path = "",
    norm: str | None = None,
) -> nn.Module:
    """A model of RobustBench's zoo, in evaluation mode, from images `(N, 3, 32, 32)` in [0, 1] to logits.

    The file is `{model_dir}/{dataset}/{threat_model}/{model_name}.pt`, where RobustBench itself keeps it. Nothing
    is downloaded, and nothing is unpickled.

    Args:
        model_name: name of the entry, as on the leaderboard's model zoo.
        model_dir: folder of all models.
        dataset: "cifar10" or "cifar100".
        threat_model: "Linf", "L2" or "corruptions".
        custom_checkpoint: a file of your own with weights of this entry's network, instead of the zoo's.
        norm: old name of `threat_model`, which it replaces.

    Raises:
        RobustBenchError: an unknown name, or a network that is not built here; the message gives another way.
        FileNotFoundError: the file is missing.
        WeightsError: the file cannot be read or does not fit the network.
    """
    if norm is not None:
        warnings.warn("norm is deprecated: use threat_model", DeprecationWarning, stacklevel=2)
        threat_model = norm
    data, threat = checked_dataset(dataset), checked_threat(threat_model)
    entry = _entry(str(model_name), data, threat)
    file = _file(str(model_name), Path(model_dir).expanduser() / data / threat, custom_checkpoint)
    return network_from(entry, file)


def checked_dataset(dataset: object) -> str:
    """The name of a data set of RobustBench; its enumerations are accepted.

    Raises:
        RobustBenchError: it is another one.
    """
    return _one_of(dataset, CLASSES, "dataset")


def checked_threat(threat_model: object) -> str:
    """The name of a threat model of RobustBench; its enumerations are accepted.

    Raises:
        RobustBenchError: it is another one.
    """
    name = getattr(threat_model, "value", threat_model)
    return "corruptions" if name == "corruptions_3d" else _one_of(name, THREATS, "threat_model")


def network_from(entry: Entry, file: Path) -> nn.Module:
    """The network of an entry with the weights of a file, in evaluation mode, on the CPU.

    Raises:
        FileNotFoundError: the file is missing.
        WeightsError: the file cannot be read or does not fit the network.
    """
    network = empty_network(entry)
    own = network.state_dict()
    theirs = {(_deepmind_name(name) if entry.family == "deepmind" else name): name for name in own}
    fit = _fitted(file, entry, {other: own[name] for other, name in theirs.items() if name not in _CONSTANTS})
    constants, weights = _separated(fit, entry, file)
    given = {theirs.get(name, name): value for name, value in weights.items() if not name.startswith(_UNUSED)}
    given = {**constants, **_counters(own), **given}
    _check(own, given, file)
    if fit.left_out:
        warnings.warn(f"{file}: {listed(fit.left_out)} are not of the model and are not used", stacklevel=3)
    complete = {name: _as(value, own[name]) for name, value in given.items()}
    network.load_state_dict(complete, assign=True)
    return network.eval()


def empty_network(entry: Entry) -> nn.Module:
    """The network of an entry without values, which takes no memory and milliseconds."""
    return without_values(entry.network)


def _one_of(value: object, allowed: Iterable[str], argument: str) -> str:
    name, names = getattr(value, "value", value), list(allowed)
    if name not in names:
        hint = nearest(name, names) if isinstance(name, str) else ""
        raise RobustBenchError(f"{argument} must be one of {', '.join(names)}, got {name!r}{hint}")
    return str(name)


def _entry(name: str, dataset: str, threat: str) -> Entry:
    own_code = (
        "its module can be evaluated as it is: robustly.evaluate takes what robustbench.utils.load_model returns, "
        "and robustly evaluate --model package.module:factory --weights FILE takes code of your own"
    )
    if dataset == "imagenet":
        raise RobustBenchError(f"networks for ImageNet are not built here, {name} among them; {own_code}")
    entries = ENTRIES.get((dataset, threat), {})
    if name in entries:
        return entries[name]
    if name in OTHER_NETWORKS:
        raise RobustBenchError(f"{name} is {OTHER_NETWORKS[name]}, which is not built here; {own_code}")
    elsewhere = [f"{data} {norm}" for (data, norm), names in ENTRIES.items() if name in names]
    if elsewhere:
        raise RobustBenchError(f"{name} has no entry for {dataset} {threat}, but has for {', '.join(elsewhere)}")
    hint = nearest(name, [*entries, *OTHER_NETWORKS]) or f": the entries are {', '.join(entries) or 'none'}"
    raise RobustBenchError(f"unknown model {name!r} for {dataset} {threat}{hint}")


def _file(name: str, folder: Path, custom: str | Path) -> Path:
    if str(custom):
        return Path(custom).expanduser()
    file = folder / f"{name}.pt"
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: there is no such file, and robustly downloads nothing: put the weights of {name} there (as "
            "robustbench.utils.load_model does), or name your download with custom_checkpoint"
        )
    return file


def _fitted(file: Path, entry: Entry, own: Mapping[str, Tensor]) -> Fitted:
    try:
        given = read_weights(file, entry.key)
    except WeightsError:  # the file is the state dict itself, or has none at all
        given = read_weights(file)
    try:
        return fitted(given, own)
    except NamesError as error:
        raise WeightsError(f"{file}: {error}") from None


def _separated(fit: Fitted, entry: Entry, file: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Constants of the input normalisation under our names, and the other tensors; those of a file count first."""
    rest = dict(fit.weights)
    if entry.mean is None or entry.std is None:
        if fit.mean is not None and fit.std is not None and (bool(fit.mean.any()) or bool((fit.std != 1).any())):
            raise WeightsError(f"{file}: has an input normalisation, which the network of this entry has not")
        return {}, rest
    found = (torch.tensor(entry.mean), torch.tensor(entry.std))
    if fit.mean is not None and fit.std is not None:
        found = (fit.mean, fit.std)
    for mean, std in _CONSTANTS_IN_FILES:
        if mean in rest and std in rest:
            found = (rest.pop(mean), rest.pop(std))
    return dict(zip(_CONSTANTS, (value.reshape(1, -1, 1, 1) for value in found), strict=True)), rest


def _counters(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Batch counters, which old files lack and evaluation does not use."""
    return {name: torch.zeros((), dtype=torch.int64) for name in own if name.endswith("num_batches_tracked")}


def _check(own: Mapping[str, Tensor], given: Mapping[str, Tensor], file: Path) -> None:
    problems: dict[str, list[str]] = {
        "missing": [name for name in own if name not in given],
        "unexpected": [name for name in given if name not in own],
        "wrong shape:": [
            f"{name} is {tuple(value.shape)} instead of {tuple(own[name].shape)}"
            for name, value in given.items()
            if name in own and value.shape != own[name].shape
        ],
        "not finite:": [
            name for name, value in given.items() if value.is_floating_point() and not bool(value.isfinite().all())
        ],
    }
    words = "; ".join(f"{problem} {listed(names)}" for problem, names in problems.items() if names)
    if words:
        raise WeightsError(f"{file}: the weights do not fit the network of this entry: {words}")


def _as(value: Tensor, like: Tensor) -> Tensor:
    return value.detach().to(like.dtype).contiguous()


def _deepmind_name(name: str) -> str:
    """Name of one of our parameters in the networks of DeepMind."""
    match = _BLOCK.match(name)
    if match is None:
        return _renamed(name, _DEEPMIND_ENDS)
    return f"layer.{int(match[1]) - 1}.block.{match[2]}.{_renamed(name[match.end() :], _DEEPMIND)}"


def _renamed(name: str, beginnings: Mapping[str, str]) -> str:
    for ours, theirs in beginnings.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name
