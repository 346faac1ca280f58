"""Names of weights in files, fitted to those of a model."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_WRAPPING = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_MEANS, _STDS = ("mean", "new_mean"), ("std", "new_std")
_COUNTERS = ("n_averaged",)


class NamesError(ValueError):
    """Names that fit a model in several ways; the message is a clause without the file."""


@dataclass(frozen=True)
class Fitted:
    """Weights under a model's own names.

    Args:
        weights: tensors by name; those that the model does not have keep their names.
        left_out: names of tensors beside the network, such as those of a loss.
        mean: mean of an input normalisation beside the network; None without one.
        std: its standard deviation.
    """

    weights: dict[str, Tensor]
    left_out: tuple[str, ...] = ()
    mean: Tensor | None = None
    std: Tensor | None = None


def fitted(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Fitted:
    """Weights of a file under the names of a model.

    Parts of names that wrappers insert are removed (`module`, `_orig_mod`). Then the prefix is removed under which
    the file has most of the model's names; or, where the model wraps a network and the file does not, added.

    Args:
        given: tensors by the names in the file.
        own: tensors by the model's names.

    Raises:
        NamesError: two prefixes hold different weights of the whole model, or two tensors have the same name.
    """
    bare = _without_wrapping(given, own)
    needed = [name for name in own if not _is_optional(name)]
    removed, hits = _prefix(bare, needed)
    added, reverse_hits = _prefix(needed, bare)
    if reverse_hits > hits:
        return _beside({f"{added}{name}": value for name, value in bare.items()}, {})
    if hits == len(needed):
        removed = _one_of(bare, needed, removed)
    inside = {name[len(removed) :]: value for name, value in bare.items() if name.startswith(removed)}
    outside = {name: value for name, value in bare.items() if not name.startswith(removed)}
    inside = {name: value for name, value in inside.items() if name in own or name not in _COUNTERS}
    return _beside(inside, _without_copies(outside, inside), own)


def is_normalisation(name: str) -> bool:
    """True for the constants of an input normalisation layer, such as `normalize.mean` and `normalizer.new_std`."""
    layer, _, last = name.rpartition(".")
    return last in (*_MEANS, *_STDS) and ("normali" in layer or layer in ("", "0"))


def _is_optional(name: str) -> bool:
    return is_normalisation(name) or name.endswith("num_batches_tracked")


def _without_wrapping(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors without the parts of names that wrappers insert, unless the model's own names have them."""
    parts = {part for name in own for part in name.split(".")}
    inserted = [part for part in _WRAPPING if part not in parts]
    bare: dict[str, Tensor] = {}
    for name, value in given.items():
        short = name if name in own else ".".join(part for part in name.split(".") if part not in inserted)
        if short in bare:
            raise NamesError(f"holds two tensors for {short}")
        bare[short] = value
    return bare


def _prefix(names: Iterable[str], needed: Iterable[str]) -> tuple[str, int]:
    """The prefix of names behind which most needed names follow, with its dot, and their number."""
    targets = set(needed)
    counts: Counter[str] = Counter({"": 0})
    for name in names:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in targets:
                counts["".join(f"{part}." for part in parts[:start])] += 1
    best = max(counts.values())
    return min((prefix for prefix, count in counts.items() if count == best), key=len), best


def _one_of(bare: Mapping[str, Tensor], needed: list[str], shortest: str) -> str:
    """The shortest prefix under which the file has the whole model.

    Raises:
        NamesError: other weights of the whole model are under a longer prefix.
    """
    first = needed[0] if needed else ""
    ends = [name[: -len(first)] for name in bare if first and name.endswith(f".{first}")]
    whole = [prefix for prefix in ends if prefix != shortest and all(f"{prefix}{name}" in bare for name in needed)]
    for prefix in whole:
        if shortest and not all(torch.equal(bare[f"{prefix}{name}"], bare[f"{shortest}{name}"]) for name in needed):
            keys = ", ".join(f"--model.weights_key {one.rstrip('.')}" for one in (shortest, prefix))
            raise NamesError(f"holds two sets of weights that fit the model: choose one of {keys}")
    return shortest


def _without_copies(outside: Mapping[str, Tensor], inside: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that are not repeated under another prefix, as `robustness` writes the network twice."""
    copied = [name for name in inside if name]
    ends = {name: next((end for end in _ends(name) if end in inside), None) for name in outside} if copied else {}
    return {
        name: value
        for name, value in outside.items()
        if (end := ends.get(name)) is None or not _same(value, inside[end])
    }


def _ends(name: str) -> Iterable[str]:
    parts = name.split(".")
    return (".".join(parts[start:]) for start in range(1, len(parts)))


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _beside(
    inside: dict[str, Tensor], outside: Mapping[str, Tensor], own: Mapping[str, Tensor] | None = None
) -> Fitted:
    """Separate the constants of a normalisation from other tensors beside the network."""
    foreign = {name for name in inside if own is not None and name not in own and is_normalisation(name)}
    surplus = {**outside, **{name: inside[name] for name in foreign if not name.startswith("normalize.")}}
    weights = {name: value for name, value in inside.items() if name not in surplus}
    means = [value for name, value in surplus.items() if is_normalisation(name) and name.endswith(_MEANS)]
    stds = [value for name, value in surplus.items() if is_normalisation(name) and name.endswith(_STDS)]
    left_out = tuple(
        name for name in surplus if not is_normalisation(name) and name.rpartition(".")[2] not in _COUNTERS
    )
    paired = bool(means and stds)
    return Fitted(weights, left_out, means[0] if paired else None, stds[0] if paired else None)
