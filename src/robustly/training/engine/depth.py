"""Depth of parameters in a network: its head, its blocks from the input to the head, and rates by depth."""

from collections.abc import Iterator

from torch import nn

from robustly.training.method import MethodError

Container = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def head_of(network: nn.Module, name: str | None = None) -> tuple[str, nn.Module]:
    """Name and module of the head: the module of this name, or the last linear layer as the network lists them.

    Raises:
        MethodError: there is no module of this name with parameters, or no linear layer.
    """
    modules = dict(network.named_modules())
    if name is not None:
        found = modules.get(name)
        if found is None or name == "" or not any(True for _ in found.parameters()):
            raise MethodError(f"training.head: the model has no layer {name!r} with weights{_known(network)}")
        return name, found
    linear = [key for key, module in modules.items() if isinstance(module, nn.Linear) and key]
    if not linear:
        raise MethodError(f"the model has no linear layer as its head: set training.head{_known(network)}")
    return linear[-1], modules[linear[-1]]


def _known(network: nn.Module) -> str:
    names = [key for key, module in network.named_modules() if key and any(True for _ in module.parameters(False))]
    return f"; its last layers are {', '.join(names[-4:])}" if names else ""


def blocks_of(network: nn.Module, head: nn.Module) -> list[list[nn.Parameter]]:
    """Parameters of each block from the input to the head, which is the last one; every parameter comes once.

    A block is a child of the network, or a member of a list of layers (`Sequential`, `ModuleList`). Children that
    hold most of the network are divided further, such as the backbone of a transformer. A block with vectors alone
    (a normalisation) belongs to the one before it. The order is that in which the network lists its modules.
    """
    own = {id(parameter) for parameter in head.parameters()}
    seen = set(own)
    blocks: list[list[nn.Parameter]] = []
    waiting: list[nn.Parameter] = []
    for members in _divided(network, sum(p.numel() for p in network.parameters()), inside=False):
        new = [p for p in members if not (id(p) in seen or seen.add(id(p)))]  # type: ignore[func-returns-value]
        if not new:
            continue
        if any(p.ndim > 1 for p in new):
            blocks.append([*waiting, *new])
            waiting = []
        elif blocks:
            blocks[-1] += new
        else:
            waiting += new
    if waiting:
        blocks.insert(0, waiting)
    return [*blocks, list(head.parameters())]


def _divided(module: nn.Module, whole: int, inside: bool) -> Iterator[list[nn.Parameter]]:
    """Parameters by block; `inside` is True for a member of a list of layers."""
    everything = list(module.parameters())
    children = [child for child in module.children() if any(True for _ in child.parameters())]
    share = sum(p.numel() for p in everything) / max(whole, 1)
    if not children or not (isinstance(module, Container) or share > (0.9 if inside else 0.5)):
        yield everything
        return
    direct = list(module.parameters(recurse=False))  # such as position embeddings, which come before the layers
    for child in children:
        for block in _divided(child, whole, isinstance(module, Container)):
            yield [*direct, *block]
            direct = []


def rate_scales(network: nn.Module, decay: float, head: str | None = None) -> dict[nn.Parameter, float]:
    """Factor of the learning rate of every parameter: decay ** (blocks between its block and the head).

    Args:
        network: the network.
        decay: factor from one block to the one before it, in (0, 1].
        head: name of the head; None for the last linear layer.

    Raises:
        MethodError: the network has no such head.
    """
    blocks = blocks_of(network, head_of(network, head)[1])
    last = len(blocks) - 1
    return {p: decay ** (last - place) for place, block in enumerate(blocks) for p in block}
