"""Blocks of a network: the parts that are recomputed, or held in shards, one at a time."""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from torch import nn

_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_FEWEST = 4
"""Fewest layers of a `Sequential` that is worth dividing."""


def repeated_blocks(network: nn.Module) -> dict[str, nn.Module]:
    """The repeated blocks of a network by name, such as those of a ResNet or the layers of a transformer.

    They are members of lists (`Sequential`, `ModuleList`, `ModuleDict`) that have layers of their own; without such
    lists, the largest modules whose class occurs at least twice. No block lies inside another one: of members of
    lists the inner ones are taken (the blocks of a stage, not the stage). A network with fewer than two has none.
    """
    named = {name: module for name, module in network.named_modules() if name and _is_composite(module)}
    members = {name: module for name, module in named.items() if isinstance(_parent(network, name), _LISTS)}
    inner = {name: module for name, module in members.items() if not any(_inside(other, name) for other in members)}
    if len(inner) >= 2:
        return inner
    counts = Counter(type(module) for module in named.values())
    repeated = [name for name, module in named.items() if counts[type(module)] >= 2]
    outer = {name: named[name] for name in repeated if not any(_inside(name, other) for other in repeated)}
    return outer if len(outer) >= 2 else {}


def long_sequences(network: nn.Module) -> dict[str, nn.Sequential]:
    """The plain `Sequential`s of at least four layers of a network, by name; the network itself has the name ""."""
    return {
        name: module
        for name, module in network.named_modules()
        if type(module) is nn.Sequential and len(module) >= _FEWEST and any(True for _ in module.parameters())
    }


def pieces(layers: nn.Sequential) -> Iterator[list[nn.Module]]:
    """Yield the layers of a `Sequential` in pieces of about equal length, as many as the root of their number."""
    everything = list(layers)
    count = max(round(len(everything) ** 0.5), 1)
    ends = [round(len(everything) * number / count) for number in range(count + 1)]
    for start, end in pairwise(ends):
        yield everything[start:end]


def _is_composite(module: nn.Module) -> bool:
    has_layers = any(True for _ in module.children())
    return has_layers and not isinstance(module, _LISTS) and any(True for _ in module.parameters())


def _parent(network: nn.Module, name: str) -> nn.Module:
    return network.get_submodule(name.rpartition(".")[0])


def _inside(name: str, other: str) -> bool:
    """True if the first name is that of a module inside the second."""
    return name.startswith(f"{other}.")
