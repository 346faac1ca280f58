"""Frozen dataclasses as JSON objects and back; an error names the file and the field.

The fields of a record are the keys of its object. An annotation changes that: `Annotated[str, Key("class")]` gives
another key, `Annotated[Proportion, ShareKeys("robust")]` writes a share into keys of the record itself,
`Annotated[Metrics, Inline()]` does the same with a whole record. Fields with a default may be absent.
"""

import math
from collections.abc import Container, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from robustly.documents import DocumentError, read_json
from robustly.statistics import Proportion

R = TypeVar("R")


class EvidenceError(ValueError):
    """Evidence that cannot be read; the message names the file."""


@dataclass(frozen=True)
class Key:
    """Another key than the name of the field."""

    name: str


@dataclass(frozen=True)
class Inline:
    """Write the keys of a record into the object of its outer record."""


@dataclass(frozen=True)
class ShareKeys:
    """Write a `Proportion` into keys of its record; the key `count` is its number of examples.

    Args:
        hits: key of the number of hits; None if the share is written without it.
        accuracy: key of the share, in [0, 1].
        interval: key of the 95 % interval, which is recomputed on reading.
    """

    hits: str | None
    accuracy: str = "accuracy"
    interval: str = "interval"


@dataclass(frozen=True)
class ShareObject:
    """Write a `Proportion` as a separate object; `hits` is the key of the number of hits."""

    hits: str


@dataclass(frozen=True)
class _Field:
    name: str
    key: str
    kind: Any
    form: object
    required: bool


def to_json(record: object) -> dict[str, Any]:
    """The object of a record, as plain values."""
    found: dict[str, Any] = {}
    for field in _fields(type(record)):
        value = getattr(record, field.name)
        if isinstance(field.form, ShareKeys):
            found |= _share_keys(value, field.form)
        elif isinstance(field.form, ShareObject):
            found[field.key] = _share_keys(value, ShareKeys(field.form.hits))
        elif isinstance(field.form, Inline):
            found |= to_json(value)
        else:
            found[field.key] = _plain(value)
    return found


def from_json(kind: type[R], values: object, where: str, *, strict: bool = True) -> R:
    """Build a record from an object.

    Args:
        kind: class of the record.
        values: the object.
        where: file and place in it, for error messages.
        strict: whether keys that the record does not have are refused; else they are ignored.

    Raises:
        EvidenceError: a field is missing or of the wrong kind, or a key is unknown.
    """
    if not isinstance(values, dict):
        raise EvidenceError(f"{where} should be an object, but is {_shown(values)}.")
    if strict:
        _refuse_unknown(values, _keys(kind), where)
    found = {
        field.name: _read(field, values, where, strict)
        for field in _fields(kind)
        if _is_there(field, values, where)
    }
    try:
        return kind(**found)
    except EvidenceError:
        raise
    except ValueError as error:
        raise EvidenceError(f"{where}: {error}.") from error


def _is_there(field: _Field, values: Mapping[str, object], where: str) -> bool:
    """Return True if a field has a value; raise EvidenceError if a required one has none."""
    there = isinstance(field.form, ShareKeys | Inline) or field.key in values
    if not there and field.required:
        raise EvidenceError(f"{where}: {field.key} is missing; it should be {_wanted(field.kind)}.")
    return there


def _read(field: _Field, values: Mapping[str, object], where: str, strict: bool) -> Any:
    """The value of a field."""
    if isinstance(field.form, ShareKeys):
        return _share(values, field.form, where)
    if isinstance(field.form, Inline):
        return from_json(field.kind, values, where, strict=False)
    if not isinstance(field.form, ShareObject):
        return _value(field.kind, values[field.key], where, field.key, strict)
    inner, form = values[field.key], ShareKeys(field.form.hits)
    if not isinstance(inner, dict):
        raise _wrong(where, field.key, "an object", inner)
    if strict:
        _refuse_unknown(inner, _share_names(form), f"{where}: {field.key}")
    return _share(inner, form, f"{where}: {field.key}")


def _refuse_unknown(values: Mapping[str, object], known: Container[str], where: str) -> None:
    unknown = [key for key in values if key not in known]
    if unknown:
        raise EvidenceError(f"{where}: {_shown(unknown[0])} is not a key of this schema.")


def _keys(kind: Any) -> frozenset[str]:
    """All keys of a record's object, those of inner records and shares in it included."""
    found: set[str] = set()
    for field in _fields(kind):
        if isinstance(field.form, ShareKeys):
            found |= _share_names(field.form)
        elif isinstance(field.form, Inline):
            found |= _keys(field.kind)
        else:
            found.add(field.key)
    return frozenset(found)


def _share_names(form: ShareKeys) -> set[str]:
    return {"count", form.accuracy, form.interval, *([] if form.hits is None else [form.hits])}


def read_object(path: Path) -> dict[str, Any]:
    """Read the JSON object of a file.

    Raises:
        EvidenceError: the file is cut off or not a JSON object.
    """
    try:
        values = read_json(path)
    except DocumentError as error:
        raise EvidenceError(f"{error}.") from None
    except OSError as error:
        raise EvidenceError(f"{path} cannot be read: {error}.") from error
    if not isinstance(values, dict):
        raise EvidenceError(f"{path} should be one JSON object.")
    return values


def _fields(kind: Any) -> tuple[_Field, ...]:
    return _fields_once(kind)


@cache
def _fields_once(kind: Any) -> tuple[_Field, ...]:
    hints = get_type_hints(kind, include_extras=True)
    found = []
    for item in fields(kind):
        hint, form = hints[item.name], None
        if get_origin(hint) is Annotated:
            hint, form = get_args(hint)[:2]
        key = form.name if isinstance(form, Key) else item.name
        required = item.default is MISSING and item.default_factory is MISSING
        found.append(_Field(item.name, key, hint, form, required))
    return tuple(found)


def _share_keys(share: Proportion, form: ShareKeys) -> dict[str, Any]:
    hits = {} if form.hits is None else {form.hits: share.hits}
    return hits | {"count": share.count, form.accuracy: share.share, form.interval: list(share.interval)}


def _share(values: Mapping[str, object], form: ShareKeys, where: str) -> Proportion:
    def needed(kind: Any, key: str) -> Any:
        if key not in values:
            raise EvidenceError(f"{where}: {key} is missing; it should be {_wanted(kind)}.")
        return _value(kind, values[key], where, key)

    count = needed(int, "count")
    hits = round(needed(float, form.accuracy) * count) if form.hits is None else needed(int, form.hits)
    try:
        return Proportion(hits, count)
    except ValueError as error:
        raise EvidenceError(f"{where}: {form.hits or form.accuracy}: {error}.") from error


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return to_json(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _value(kind: Any, value: object, where: str, key: str, strict: bool = True) -> Any:
    """Convert a value to the type of a field."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        (kind,) = (one for one in inner if one is not NoneType)
        absent = value is None or (kind is float and isinstance(value, float) and not math.isfinite(value))
        return None if absent else _value(kind, value, where, key, strict)
    if origin is not None:
        return _collection(kind, value, where, key, strict)
    if kind is object:
        return value
    if is_dataclass(kind):
        return from_json(kind, value, f"{where}: {key}", strict=strict)  # type: ignore[arg-type]
    if not _is_scalar(kind, value):
        raise _wrong(where, key, _wanted(kind), value)
    return kind(value)


def _collection(kind: Any, value: object, where: str, key: str, strict: bool) -> Any:
    """Convert a list, a square of numbers, a mapping, or one of several words."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is np.ndarray and isinstance(value, list):
        return _grid(value, where, key)
    if origin is Mapping and isinstance(value, dict):
        return {name: _value(inner[1], item, f"{where}: {key}", name, strict) for name, item in value.items()}
    if origin is Literal and value in inner:
        return value
    if origin is tuple and isinstance(value, list):
        kinds = [inner[0]] * len(value) if inner[1:] == (...,) else list(inner)
        if len(kinds) == len(value):
            pairs = zip(kinds, value, strict=True)
            return tuple(_value(one, item, where, f"{key}[{i}]", strict) for i, (one, item) in enumerate(pairs))
    raise _wrong(where, key, _wanted(kind), value)


def _is_scalar(kind: Any, value: object) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        whole = (isinstance(value, int) or (isinstance(value, float) and value.is_integer())) and abs(value) < 2**63
        return whole and not isinstance(value, bool)
    return kind in (str, bool) and isinstance(value, kind)


def _grid(value: list[object], where: str, key: str) -> Any:
    """A square of numbers; null becomes NaN."""
    rows = [len(row) if isinstance(row, list) else -1 for row in value]
    if set(rows) != {len(rows)}:
        raise _wrong(where, key, f"{len(rows)} rows of {len(rows)} numbers", value)
    try:
        return np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise _wrong(where, key, "numbers only", value) from error


def _wanted(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return f"{_wanted(next(one for one in inner if one is not NoneType))} or null"
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is tuple:
        return "a list" if inner[1:] == (...,) else f"a list of {len(inner)}"
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    return names.get(kind, "a list of lists" if origin is np.ndarray else "an object")


def _wrong(where: str, key: str, wanted: str, value: object) -> EvidenceError:
    return EvidenceError(f"{where}: {key} should be {wanted}, but is {_shown(value)}.")


def _shown(value: object) -> str:
    return repr(str(value)[:80])
