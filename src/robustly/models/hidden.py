"""Networks that a model uses without registering them, in its lists and dictionaries, or a function's variables."""

import dis
import functools
import types
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from torch import nn

_DEPTH, _MOST = 4, 1000
_OF_TORCH = frozenset(vars(nn.Module()))


def hidden_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Modules in plain attributes of a model (lists, tuples, dictionaries, objects), by the place where they are.

    PyTorch neither moves such modules to a device, nor switches them to evaluation mode, nor saves their weights.
    """
    registered = {id(module) for module in model.modules()}
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        plain = {key: value for key, value in vars(module).items() if key not in _OF_TORCH}
        for place, hidden in _modules_in(plain, name, _DEPTH, {id(module)}):
            if id(hidden) not in registered:
                registered |= {id(part) for part in hidden.modules()}
                found[place] = hidden
    return found


def modules_of_function(function: object) -> dict[str, nn.Module]:
    """Modules that a function uses: its closure, its global names, its object, its default and bound arguments."""
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()
    for place, module in _modules_in(_variables(function), "", _DEPTH, {id(function)}):
        if id(module) not in seen:
            seen |= {id(part) for part in module.modules()}
            found[place] = module
    return found


def _variables(function: object) -> dict[str, object]:
    """The objects that a callable can reach, by name."""
    if isinstance(function, functools.partial):
        bound = dict(enumerate(function.args)) | dict(function.keywords)
        return {"func": function.func, **{str(key): value for key, value in bound.items()}}
    if isinstance(function, types.MethodType):
        return {"self": function.__self__, "func": function.__func__}
    if isinstance(function, types.FunctionType):
        named = {name: function.__globals__.get(name) for name in _global_names(function.__code__)}
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        defaults = {f"default{place}": value for place, value in enumerate(function.__defaults__ or ())}
        closed = {name: value for name, cell in cells for value in _content(cell)}
        return {**named, **closed, **defaults, **(function.__kwdefaults__ or {})}
    wrapped = getattr(function, "__wrapped__", None)
    own = dict(vars(function)) if hasattr(function, "__dict__") else {}
    call = type(function).__call__ if callable(function) else None
    return {**own, "call": call, "wrapped": wrapped}


def _global_names(code: types.CodeType) -> set[str]:
    """Global names that some code reads, that of its inner functions included; names of attributes are others."""
    own = {str(step.argval) for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return own.union(*(_global_names(one) for one in code.co_consts if isinstance(one, types.CodeType)))


def _content(cell: types.CellType) -> list[object]:
    try:
        return [cell.cell_contents]
    except ValueError:  # a variable that has no value yet
        return []


def _modules_in(value: Any, name: str, depth: int, seen: set[int]) -> Iterable[tuple[str, nn.Module]]:
    """Modules inside a value, with the place of each."""
    for key, item in _items(value):
        place = f"{name}.{key}" if name else key
        if id(item) in seen or isinstance(item, type | types.ModuleType):
            continue
        seen.add(id(item))
        if isinstance(item, nn.Module):
            yield place, item
        elif depth:
            yield from _modules_in(item, place, depth - 1, seen)


def _items(value: object) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(str(key), item) for key, item in islice(value.items(), _MOST)]
    if isinstance(value, list | tuple | set | frozenset):
        return [(str(place), item) for place, item in enumerate(islice(value, _MOST))]
    if isinstance(value, functools.partial | types.MethodType | types.FunctionType):
        return list(_variables(value).items())
    own = getattr(value, "__dict__", None)
    is_plain = isinstance(own, dict) and type(value).__module__.partition(".")[0] not in ("torch", "builtins")
    return list(own.items()) if is_plain and own else []
