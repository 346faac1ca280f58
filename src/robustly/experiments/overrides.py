"""Changes of plain settings: from the command line, or from a file that starts from a recipe."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from robustly import documents
from robustly.documents import MOST_LEVELS, DocumentError, DocumentSyntaxError, parse_yaml
from robustly.experiments.keys import Settings, refuse_both_threats
from robustly.settings import SettingsError

KEYS = object()
"""Sentinel: create the mapping if it is missing."""


def read_yaml(path: Path) -> dict[str, object]:
    """Settings from a YAML file.

    Raises:
        SettingsError: the file is not YAML or not a mapping, or breaks a limit of `robustly.documents`.
    """
    try:
        return documents.read_yaml(path)
    except DocumentError as error:
        raise SettingsError(str(error)) from None


def pairs_of(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Keys and values of words such as `--a.b value` and `--a.b=value`.

    Raises:
        SettingsError: a word that is not a key, or a key without a value.
    """
    given: list[tuple[str, str]] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or len(word) < 3:
            raise SettingsError(f"expected a key such as --training.epochs, got {word!r}")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not words:
                raise SettingsError(f"--{key} needs a value")
            value = words.pop(0)
            if value.startswith("--"):
                raise SettingsError(f"--{key} needs a value, got {value!r}")
        given.append((key, value))
    return given


def apply_overrides(settings: Settings, arguments: Sequence[str]) -> dict[str, Any]:
    """Settings changed by `--a.b value` or `--a.b=value` of a command line; values are read as YAML.

    `threat` takes the place of `threats`, and the other way round; `data.source` takes that of `data.domains`.

    Raises:
        SettingsError: a word that is not a key, a key without a value, or a path through a value that has no keys.
    """
    result: dict[str, Any] = _copied(settings)
    given = pairs_of(arguments)
    if {"data.source", "data.domains"} <= {key for key, _ in given}:
        raise SettingsError("give --data.source (one data set) or --data.domains (several), not both")
    # a new name clears the settings of the part it replaces, so names are applied first
    refuse_both_threats([key for key, _ in given], "the command line")
    for key, value in given:
        if not value.strip():
            raise SettingsError(f"--{key[:80]} needs a value: write null for none")
    for key, value in sorted(given, key=lambda pair: not pair[0].endswith("name")):
        try:
            parsed = parse_yaml(value, f"--{key}")
        except DocumentSyntaxError:
            parsed = value
        except DocumentError as error:
            raise SettingsError(str(error)) from None
        path = key.replace("-", "_").split(".")
        if path == ["threat"] and parsed is not None and not isinstance(parsed, str):
            parsed = value  # YAML reads "rotation: 30" as a mapping and "30" as a number
        if len(path) > MOST_LEVELS:
            raise SettingsError(f"--{key[:40]}... has {len(path)} parts: at most {MOST_LEVELS} are possible")
        _put(result, path, parsed, f"--{key}")
    return result


def overlay(settings: Settings, changes: Settings) -> dict[str, Any]:
    """Settings changed by those of a file, by the rules of `apply_overrides`.

    A mapping changes the keys that it names. Another `name` clears the settings of the old part. null removes a
    part.

    Raises:
        SettingsError: a path through something that has no keys.
    """
    refuse_both_threats(changes, "the file")
    result: dict[str, Any] = _copied(settings)
    for path, value in sorted(_leaves(changes), key=lambda leaf: leaf[0][-1] != "name"):
        _put(result, list(path), value, ".".join(path))
    return result


def _leaves(changes: Settings, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in changes.items():
        path = (*above, str(key))
        if isinstance(value, Mapping):
            yield path, KEYS
            yield from _leaves(value, path)
        else:
            yield path, value


def _put(settings: dict[str, Any], path: list[str], value: Any, key: str) -> None:
    if path in (["threat"], ["threats"]):  # one takes the place of the other
        settings.pop("threats" if path == ["threat"] else "threat", None)
    here = settings
    for step in path[:-1]:
        below = here.get(step)
        if isinstance(below, str) and step in ("labels", "inner", "loss", "weights"):
            below = {"name": below}
        if below is None:
            below = {}
        if not isinstance(below, dict):
            raise SettingsError(f"{key}: {step!r} is a value and has no keys below it")
        here[step] = below
        here = below
    last = path[-1]
    if path == ["data", "source"]:
        here.pop("domains", None)
        here.pop("leave_out", None)
    if value is KEYS:  # its keys follow
        if here.get(last) is None:
            here[last] = {}
        return
    if last == "name" and here.get("name") not in (None, value):
        # another part or model: settings of the old one do not apply, those of the images do
        kept: dict[str, Any] = {key: here[key] for key in ("mean", "std") if key in here and ":" not in str(value)}
        kept |= {"pretrain": here["pretrain"]} if "pretrain" in here else {}  # a setting of the run
        here.clear()
        here.update(kept)
    here[last] = value


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return value
