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
    """The plain `Sequential`s of at least four layers of a network, by name; the network itself has the name "".

    None lies inside another one: the inner ones are taken.
    """
    found = {
        name: module
        for name, module in network.named_modules()
        if type(module) is nn.Sequential and len(module) >= _FEWEST and any(True for _ in module.parameters())
    }
    return {name: module for name, module in found.items() if not any(_inside(other, name) for other in found)}


def pieces(layers: nn.Sequential) -> Iterator[list[nn.Module]]:
    """Yield the layers of a `Sequential` in pieces of about equal length, as many as the root of their number.

    Every piece but the first begins with a layer that has weights, because others, such as an activation, may
    change their input in place.
    """
    everything = list(layers)
    starts = [
        0,
        *(place for place, layer in enumerate(everything) if place and any(True for _ in layer.parameters())),
    ]
    count = min(max(round(len(everything) ** 0.5), 1), len(starts))
    chosen = [starts[round(len(starts) * number / count)] for number in range(count)]
    for start, end in pairwise([*chosen, len(everything)]):
        yield everything[start:end]


def _is_composite(module: nn.Module) -> bool:
    has_layers = any(True for _ in module.children())
    return has_layers and not isinstance(module, _LISTS) and any(True for _ in module.parameters())


def _parent(network: nn.Module, name: str) -> nn.Module:
    return network.get_submodule(name.rpartition(".")[0])


def _inside(name: str, other: str) -> bool:
    """True if the first name is that of a module inside the second."""
    return name != other and (other == "" or name.startswith(f"{other}."))
