"""Files and folders by their names alone, so that a page does not show the folders of its author."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
_ROOT = r"(?:[A-Za-z]:[\\/]+|\\\\|~[\\/]|/)"
_WHOLE = re.compile(rf"(?:file://)?{_ROOT}\S.*", re.DOTALL)
"""A text that is a path, possibly with spaces."""
_PART = r"[^\s\\/\"'`<>|;,:()\[\]{}@]+"
_WITHIN = re.compile(rf"(?:file://|(?<![\w.~/\\-])){_ROOT}(?:{_PART}[\\/]+)+(?:{_PART})?")
"""A path of at least one folder inside a text; "8/255", "and/or" and addresses of the internet are none."""


def path_name(text: str) -> str:
    """The last part of a path of Unix or Windows; the text itself if it has none."""
    parts = [part for part in re.split(r"[\\/]+", text.strip()) if part]
    return parts[-1] if parts else text


def without_folders(text: str) -> str:
    """Text in which each absolute path is its last part."""
    if _WHOLE.fullmatch(text) and "\n" not in text and _is_path(text):
        return path_name(text)
    return _WITHIN.sub(lambda found: path_name(found.group()), text)


def _is_path(text: str) -> bool:
    """Return True if a text that begins like a path is nothing but a path: each part has few words."""
    return all(len(part.split()) <= 4 for part in re.split(r"[\\/]+", text)) and ": " not in text


def shown_path(path: Path) -> str:
    """A path for a command on a page: as given if it is relative and inside the current folder, else its name."""
    inside = not path.is_absolute() and ".." not in path.parts and not str(path).startswith("~")
    return str(path) if inside else path_name(str(path))


def named_sources(value: T) -> T:
    """The same value with every text in it `without_folders`.

    It covers dataclasses, mappings, tuples and lists to any depth. Arrays, `Path`s and other values stay.
    """
    changed: T = _named(value)
    return changed


def _named(value: Any) -> Any:
    if isinstance(value, str):
        return without_folders(value)
    if isinstance(value, np.ndarray | PurePath) or value is None:
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {one.name: getattr(value, one.name) for one in dataclasses.fields(value) if one.init}
        new = {name: _named(part) for name, part in fields.items()}
        same = all(new[name] is fields[name] for name in fields)
        return value if same else dataclasses.replace(value, **new)
    if isinstance(value, Mapping):
        return {_named(key): _named(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_named(part) for part in value)
    return value
