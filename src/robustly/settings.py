"""Frozen dataclasses from plain values of YAML files and command lines.

Each value is checked against the annotation of its field. Names are keys of a table that the caller passes and
nothing is imported, so a configuration file cannot run code.
"""

import difflib
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, fields, replace
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

Ratio = Annotated[float, "ratio"]
"""A number that may also be written as a quotient, such as `8/255`."""

MOST = 1e9
"""Largest size of a number with a fraction."""
MOST_WHOLE = 2**63
"""First whole number that is too large."""
_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    NoneType: "null",
    dict: "settings by name",
    Any: "any value",
}


class SettingsError(ValueError):
    """A key or value that is not allowed; the message names it and states what is allowed."""


class _MisfitError(Exception):
    """A value is not of the annotated type."""


def build(cls: type[T], settings: Any, where: str) -> T:
    """Build a dataclass from plain values.

    Args:
        cls: the dataclass.
        settings: a mapping from its fields to values, or None for defaults only.
        where: the dotted key of the settings, for messages.

    Raises:
        SettingsError: an unknown or missing key, a value of another type, or one that the dataclass refuses.
    """
    own = [item for item in fields(cls) if item.init]  # type: ignore[arg-type]
    hints = get_type_hints(cls, include_extras=True)
    values = _checked(hints, settings, where, [item.name for item in own])
    for item in own:
        if item.name not in values and item.default is MISSING and item.default_factory is MISSING:
            raise SettingsError(f"{_join(where, item.name)} is missing: expected {value_words(hints[item.name])}")
    return _accepted(where, lambda: cls(**values))


def changed(value: T, settings: Any, where: str, allowed: Collection[str]) -> T:
    """Copy a dataclass with some fields replaced by plain values.

    Args:
        value: the dataclass.
        settings: a mapping from fields to new values.
        where: the dotted key of the settings, for messages.
        allowed: the fields that may be replaced.

    Raises:
        SettingsError: as `build`.
    """
    values = _checked(get_type_hints(type(value), include_extras=True), settings, where, allowed)
    return _accepted(where, lambda: replace(value, **values))  # type: ignore[type-var]


def check(hint: Any, value: Any, where: str) -> Any:
    """Convert a plain value to the annotated type: lists to tuples, whole numbers and numbers in text to floats.

    Args:
        hint: int, float, `Ratio`, bool, str, None, Any, or a Literal, union, tuple or dict of these.
        value: plain value from YAML.
        where: dotted key of the value, for messages.

    Raises:
        SettingsError: a value of another type.
        TypeError: an annotation of another kind.
    """
    try:
        return _fitted(hint, value)
    except _MisfitError:
        near = ""
        if get_origin(hint) is Literal and isinstance(value, str):
            near = nearest(value, [str(choice) for choice in get_args(hint)])
        limits = f" (numbers lie between -{MOST:g} and {MOST:g})" if _is_too_large(value) else ""
        raise SettingsError(f"{where}: expected {value_words(hint)}{limits}, got {_shown(value)}{near}") from None


def check_keys(settings: Any, allowed: Collection[str], where: str) -> Mapping[str, Any]:
    """Check that settings are a mapping with allowed keys only, and return them; None is an empty mapping.

    Raises:
        SettingsError: the settings are not a mapping, or have another key.
    """
    if settings is None:
        return {}
    if not isinstance(settings, Mapping):
        raise SettingsError(f"{where or 'a configuration'}: expected settings by name, got {_shown(settings)}")
    for key in settings:
        if key not in allowed:
            names = ", ".join(allowed) or "nothing"
            near = nearest(str(key), allowed)
            raise SettingsError(f"unknown key {_shown(_join(where, key))}{near}; allowed: {names}")
    return settings


def choose(table: Mapping[str, T], name: Any, where: str, also: str = "") -> T:
    """The entry of a table with this name.

    Args:
        table: entries by name.
        name: plain value from YAML.
        where: dotted key of the value, for messages.
        also: text on further allowed values, such as ", or null for none".

    Raises:
        SettingsError: an unknown name.
    """
    if isinstance(name, str) and name in table:
        return table[name]
    near = nearest(name, table) if isinstance(name, str) else ""
    raise SettingsError(
        f"{where}: unknown name {_shown(name)}{near}; allowed: {', '.join(table) or 'none yet'}{also}"
    )


def nearest(word: str, allowed: Collection[str]) -> str:
    """The text ", did you mean ...?" for a mistyped name; empty if no allowed name is similar."""
    close = difflib.get_close_matches(word, allowed, n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


def plain_values(value: Any) -> Any:
    """Convert tuples to lists, at any depth, as in YAML."""
    if isinstance(value, Mapping):
        return {key: plain_values(item) for key, item in value.items()}
    return [plain_values(item) for item in value] if isinstance(value, tuple | list) else value


def _checked(hints: Mapping[str, Any], settings: Any, where: str, allowed: Collection[str]) -> dict[str, Any]:
    given = check_keys(settings, allowed, where)
    return {key: check(hints[key], value, _join(where, key)) for key, value in given.items()}


def _accepted(where: str, make: Callable[[], T]) -> T:
    try:
        return make()
    except ValueError as error:
        raise SettingsError(f"{where}: {error}" if where else str(error)) from None


def _join(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


def _fitted(hint: Any, value: Any) -> Any:
    """Convert a value to the annotated type; raises `_MisfitError`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        for member in arguments:
            try:
                return _fitted(member, value)
            except _MisfitError:
                continue
        raise _MisfitError
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [arguments[0]] * len(value) if arguments[-1] is ... else arguments
        if len(kinds) == len(value):
            return tuple(_fitted(kind, item) for kind, item in zip(kinds, value, strict=True))
    if origin is dict and isinstance(value, Mapping):
        return {_fitted(arguments[0], key): _fitted(arguments[1], item) for key, item in value.items()}
    if hint in (float, Ratio):
        return _number(value, as_quotient=hint is not float)
    if origin is Literal and any(value == choice and type(value) is type(choice) for choice in arguments):
        return value
    if hint is Any or (hint in _WORDS and type(value) is hint and not (hint is int and abs(value) >= MOST_WHOLE)):
        return value
    raise _MisfitError


def _number(value: Any, as_quotient: bool) -> float:
    """A finite float from a number or text, because YAML reads `1e-3` as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _MisfitError
    try:
        above, slash, below = str(value).partition("/") if as_quotient else (value, "", "")
        number = float(above) / float(below) if slash else float(above)
    except (ValueError, OverflowError, ZeroDivisionError):
        raise _MisfitError from None
    if not abs(number) <= MOST:
        raise _MisfitError
    return number


def _is_too_large(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and MOST < abs(float(value)) < math.inf
    except (TypeError, ValueError, OverflowError):
        return isinstance(value, int)


def _shown(value: Any) -> str:
    """A value in a message, at most 80 characters."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python prints
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def value_words(hint: Any) -> str:
    """Describe the values that an annotation allows; raises `TypeError` for one that settings cannot have."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(value_words(member) for member in arguments)
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin is tuple:
        count = "items" if arguments[-1] is ... else f"{len(arguments)} items"
        return f"a list of {count}, each {value_words(arguments[0])}"
    if hint == Ratio:
        return "a number or a quotient such as 8/255"
    if (origin or hint) not in _WORDS:
        raise TypeError(f"a setting cannot have the type {hint}")
    return _WORDS[origin or hint]
