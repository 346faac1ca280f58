"""Networks and weights that a model uses without registering them, in its lists, or a function's variables."""

import dis
import functools
import inspect
import types
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from torch import Tensor, nn

_DEPTH, _MOST = 4, 1000
_OF_TORCH = frozenset(vars(nn.Module()))
TENSORS = "loose_tensors"
"""Place of the module that holds the tensors that a model uses without registering them."""


class LooseTensors(nn.Module):
    """Tensors that are not registered anywhere, so that hashes and files contain them; the storage is shared."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for place, tensor in tensors.items():
            self.register_buffer(place.replace(".", "_"), tensor.detach())


def hidden_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Modules in plain attributes of a model (lists, tuples, dictionaries, objects), by the place where they are.

    Those of its class, and global ones that its `forward` names, are found too. PyTorch neither moves such modules
    to a device, nor switches them to evaluation mode, nor saves their weights. Tensors that require a gradient are
    weights as well; they come last, in one `LooseTensors`.
    """
    registered = {id(part) for part in (*model.modules(), *model.parameters(), *model.buffers())}
    found: dict[str, nn.Module] = {}
    tensors: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        for place, hidden in _parts_in(_attributes(module), name, _DEPTH, {id(module)}):
            if id(hidden) in registered:
                continue
            if isinstance(hidden, nn.Module):
                registered |= {id(part) for part in (*hidden.modules(), *hidden.parameters(), *hidden.buffers())}
                found[place] = hidden
            elif hidden.requires_grad and hidden.is_leaf and not _is_of_torch(type(module)):
                registered.add(id(hidden))
                tensors[place] = hidden
    return found | ({TENSORS: LooseTensors(tensors)} if tensors else {})


def modules_of_function(function: object) -> dict[str, nn.Module]:
    """Modules that a function uses: its closure, its global names, its object, its default and bound arguments.

    Floating-point tensors among these are weights as well; they come last, in one `LooseTensors`.
    """
    found: dict[str, nn.Module] = {}
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for place, part in _parts_in(_variables(function), "", _DEPTH, {id(function)}):
        if id(part) in seen:
            continue
        if isinstance(part, nn.Module):
            seen |= {id(inner) for inner in (*part.modules(), *part.parameters(), *part.buffers())}
            found[place] = part
        elif part.is_floating_point():
            seen.add(id(part))
            tensors[place] = part
    return found | ({TENSORS: LooseTensors(tensors)} if tensors else {})


def _attributes(module: nn.Module) -> dict[str, object]:
    """Plain attributes of a module and of its class, and global values that its `forward` names."""
    plain = {key: value for key, value in vars(module).items() if key not in _OF_TORCH}
    kind = type(module)
    if _is_of_torch(kind):
        return plain
    of_class = {
        key: value
        for base in reversed(kind.__mro__)
        if not _is_of_torch(base)
        for key, value in vars(base).items()
        if isinstance(value, nn.Module | list | tuple | dict)
    }
    forward = inspect.unwrap(kind.forward)
    named = _globals_of(forward) if isinstance(forward, types.FunctionType) else {}
    return of_class | {key: value for key, value in named.items() if isinstance(value, nn.Module | list)} | plain


def _is_of_torch(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in ("torch", "builtins")


def _variables(function: object) -> dict[str, object]:
    """The objects that a callable can reach, by name."""
    if isinstance(function, functools.partial):
        bound = dict(enumerate(function.args)) | dict(function.keywords)
        return {"func": function.func, **{str(key): value for key, value in bound.items()}}
    if isinstance(function, types.MethodType):
        return {"self": function.__self__, "func": function.__func__}
    if isinstance(function, types.FunctionType):
        named = _globals_of(function)
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        defaults = {f"default{place}": value for place, value in enumerate(function.__defaults__ or ())}
        closed = {name: value for name, cell in cells for value in _content(cell)}
        return {**named, **closed, **defaults, **(function.__kwdefaults__ or {})}
    wrapped = getattr(function, "__wrapped__", None)
    own = dict(vars(function)) if hasattr(function, "__dict__") else {}
    call = type(function).__call__ if callable(function) else None
    return {**own, **_slots(function), "call": call, "wrapped": wrapped}


def _globals_of(function: types.FunctionType) -> dict[str, object]:
    return {name: function.__globals__.get(name) for name in _global_names(function.__code__)}


def _slots(value: object) -> dict[str, object]:
    names = [name for base in type(value).__mro__ for name in _as_names(vars(base).get("__slots__", ()))]
    return {name: getattr(value, name) for name in names if hasattr(value, name)}


def _as_names(slots: Any) -> Iterator[str]:
    yield from [slots] if isinstance(slots, str) else slots


@functools.lru_cache(maxsize=1024)  # a model is searched again at every call of an attack
def _global_names(code: types.CodeType) -> frozenset[str]:
    """Global names that some code reads, that of its inner functions included; names of attributes are others."""
    steps = dis.get_instructions(code)
    own = frozenset(str(step.argval) for step in steps if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    return own.union(*(_global_names(one) for one in code.co_consts if isinstance(one, types.CodeType)))


def _content(cell: types.CellType) -> list[object]:
    try:
        return [cell.cell_contents]
    except ValueError:  # a variable that has no value yet
        return []


def _parts_in(value: Any, name: str, depth: int, seen: set[int]) -> Iterable[tuple[str, nn.Module | Tensor]]:
    """Modules and tensors inside a value, with the place of each."""
    for key, item in _items(value):
        place = f"{name}.{key}" if name else key
        if id(item) in seen or isinstance(item, type | types.ModuleType):
            continue
        seen.add(id(item))
        if isinstance(item, nn.Module | Tensor):
            yield place, item
        elif depth:
            yield from _parts_in(item, place, depth - 1, seen)


def _items(value: object) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(str(key), item) for key, item in islice(value.items(), _MOST)]
    if isinstance(value, list | tuple | set | frozenset):
        return [(str(place), item) for place, item in enumerate(islice(value, _MOST))]
    if isinstance(value, functools.partial | types.MethodType | types.FunctionType):
        return list(_variables(value).items())
    if type(value).__module__.partition(".")[0] in ("torch", "builtins"):
        return []
    own = getattr(value, "__dict__", None)
    return [*(own.items() if isinstance(own, dict) else ()), *_slots(value).items()]
