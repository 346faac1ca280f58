"""Checks of jaxtyping's shape annotations in tests, once for each combination of types, dtypes and shapes.

Checking a call costs more than a step of a small attack. A call whose arguments and result have the types, dtypes
and shapes of an earlier call of the same function would pass as that one did, so that only the first is checked.
"""

import functools
import inspect
from collections.abc import Callable, Hashable
from dataclasses import is_dataclass
from types import CodeType, FunctionType
from typing import Any

import jaxtyping
import numpy as np
import torch
from beartype import BeartypeConf, beartype
from torch import Tensor

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""beartype, with whole numbers allowed for floats."""

ROOMS = (
    *("analysis", "attacks", "certification", "evaluation", "objectives", "randomness"),
    *("threats.balls", "threats.projections", "training"),
)
"""The checked rooms. Those whose tests pass wrong types on purpose, to read the message, are left out."""

_opaque: set[type] = {bool, int, float, type(None)}  # of their values an annotation sees the type alone

_check_always = jaxtyping.jaxtyped
_known: dict[CodeType, dict[Hashable, set[Hashable]]] = {}  # a function that another one defines is defined often


def install() -> None:
    """Check the annotations of `ROOMS` from their import on."""
    jaxtyping.jaxtyped = check_once
    jaxtyping.install_import_hook([f"robustly.{room}" for room in ROOMS], "shape_checks.check")


def kind_of(value: Any) -> Hashable:
    """Everything of a value that an annotation can depend on."""
    kind = type(value)
    if kind in _opaque:
        return kind
    if kind is Tensor or isinstance(value, (Tensor, np.ndarray)):
        return kind, value.dtype, value.shape
    if isinstance(value, (str, type)):
        return value
    if isinstance(value, (tuple, list)):
        return kind, tuple(map(kind_of, value))
    if isinstance(value, dict):
        return kind, tuple((kind_of(key), kind_of(content)) for key, content in value.items())
    _opaque.add(kind)  # five questions less for each further value of it
    return kind


def check_once(subject: Any = None, *, typechecker: Any) -> Any:
    """Stands in for `jaxtyping.jaxtyped`: decorates functions, properties, methods of classes, and dataclasses."""
    decorate = functools.partial(check_once, typechecker=typechecker)
    if subject is None:
        return decorate
    if isinstance(subject, type):
        if is_dataclass(subject) and "__init__" in vars(subject):
            subject.__init__ = decorate(subject.__init__)  # type: ignore[misc]
        return subject
    if isinstance(subject, (classmethod, staticmethod)):
        return type(subject)(decorate(subject.__func__))
    if isinstance(subject, property):
        return property(
            *(accessor and decorate(accessor) for accessor in (subject.fget, subject.fset, subject.fdel))
        )
    return _checked_function(subject, typechecker) if inspect.isfunction(subject) else subject


def _checked_function(function: Callable[..., Any], typechecker: Any) -> Callable[..., Any]:
    known = _known.setdefault(function.__code__, {})
    results: list[Any] = []  # a result that is there already, for the checks of it

    def result_or_call(*args: Any, **kwargs: Any) -> Any:
        return results.pop() if results else function(*args, **kwargs)

    @functools.cache
    def checked() -> Callable[..., Any]:
        return _check_always(_in_place_of(function, result_or_call), typechecker=typechecker)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if torch.compiler.is_compiling():  # a compiled function would depend on every shape that is read here
            return function(*args, **kwargs)
        arguments: Hashable = tuple(map(kind_of, args))
        if kwargs:
            arguments = arguments, tuple((name, kind_of(value)) for name, value in kwargs.items())
        if arguments not in known:
            result = checked()(*args, **kwargs)
            known.setdefault(arguments, set()).add(kind_of(result))
            return result
        result = function(*args, **kwargs)
        kind = kind_of(result)
        if kind not in known[arguments]:
            results.append(result)
            checked()(*args, **kwargs)
            known[arguments].add(kind)
        return result

    return call


def _in_place_of(function: Callable[..., Any], stand_in: Callable[..., Any]) -> Callable[..., Any]:
    """A function with the signature, and the names in reach, of another one."""

    def relay(*args: Any, **kwargs: Any) -> Any:
        return stand_in(*args, **kwargs)

    placed = FunctionType(relay.__code__, function.__globals__, function.__name__, None, relay.__closure__)
    return functools.update_wrapper(placed, function)
