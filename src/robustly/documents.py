"""Safe reading of YAML, JSON and CSV files, within stated limits of size and nesting.

A document is refused with one sentence that names the file and, where it is known, the line. Its values are text,
numbers of at most 64 bits, true, false, null, lists and mappings with distinct text keys.
"""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import yaml

MOST_BYTES_YAML = 256 * 1024
MOST_BYTES_DATA = 64 * 1024 * 1024
"""Largest JSON or CSV file, such as `summary.json` and `metrics.csv`."""
MOST_LEVELS = 32
"""Deepest nesting of lists and mappings."""
MOST_VALUES_YAML = 100_000
"""Most values of a YAML document after its aliases are expanded."""
_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map", "merge")}


class DocumentError(ValueError):
    """A document that cannot be read or breaks a limit; the message names the file."""


class DocumentSyntaxError(DocumentError):
    """A text that is not of the format."""


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping of a YAML file.

    Raises:
        DocumentError: the file is not YAML or not a mapping, or breaks a limit.
    """
    content = parse_yaml(_text(file, MOST_BYTES_YAML), str(file))
    if not isinstance(content, dict):
        raise DocumentError(f"{file} has no settings: expected lines 'name: value'")
    return content


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML document. Dates stay text.

    Args:
        text: the document.
        where: name of the document, for error messages.

    Raises:
        DocumentSyntaxError: the text is not YAML.
        DocumentError: a limit is broken, a key is not text or is given twice, an anchor contains itself, a tag is
            not of plain values, or a number is not finite or has more than 64 bits.
    """
    try:
        _check_events(text, where)
        content = yaml.load(text, _PlainLoader)  # a safe loader
    except yaml.YAMLError as error:
        raise DocumentSyntaxError(f"{where} is not readable YAML ({' '.join(str(error).split())[:160]})") from None
    except _RefusedError as error:
        raise DocumentError(f"{where}: {error}") from None
    except ValueError as error:  # a number that Python cannot read, such as one of 5,000 digits
        if isinstance(error, DocumentError):
            raise
        raise DocumentError(f"{where} holds a value that cannot be read ({str(error)[:120]})") from None
    check_values(content, where)
    return content


def read_json(file: Path) -> Any:
    """The value of a JSON file.

    Raises:
        DocumentError: the file is missing, not JSON, or breaks a limit.
    """
    return parse_json(_text(file, MOST_BYTES_DATA), str(file))


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON document.

    Args:
        text: the document.
        where: name of the document, for error messages.

    Raises:
        DocumentSyntaxError: the text is not JSON.
        DocumentError: a key is given twice, the nesting is too deep, or a number is not finite or has more than 64
            bits.
    """
    try:
        content = json.loads(text, object_pairs_hook=_distinct, parse_constant=_no_constant)
    except RecursionError:
        raise DocumentError(f"{where} is nested deeper than {MOST_LEVELS} levels") from None
    except _RefusedError as error:
        raise DocumentError(f"{where}: {error}") from None
    except ValueError as error:
        raise DocumentSyntaxError(
            f"{where} is not readable JSON (cut off while it was written?): {str(error)[:160]}"
        ) from None
    check_values(content, where)
    return content


def read_csv(file: Path) -> list[list[str]]:
    """The rows of a CSV file, its header first.

    Raises:
        DocumentError: the file is missing, not CSV, or too large.
    """
    try:
        return list(csv.reader(io.StringIO(_text(file, MOST_BYTES_DATA), newline="")))
    except csv.Error as error:
        raise DocumentSyntaxError(f"{file} is not readable CSV ({error})") from None


def check_values(content: Any, where: str) -> None:
    """Check the nesting, the numbers and the texts of plain values.

    Raises:
        DocumentError: nesting deeper than `MOST_LEVELS`, a number that is not finite or has more than 64 bits, or a
            text that is not Unicode.
    """
    for path, value, level in _walk(content):
        if level > MOST_LEVELS:
            raise DocumentError(f"{where} is nested deeper than {MOST_LEVELS} levels")
        place = f"{where}: {path}" if path else where
        if isinstance(value, float) and not math.isfinite(value):
            raise DocumentError(f"{place} should be a finite number, but is {value}")
        if isinstance(value, int) and abs(value) >= 2**64:
            raise DocumentError(
                f"{place} should be a whole number of at most 64 bits, but has {value.bit_length()}"
            )
        if isinstance(value, str) and not value.isascii() and not _is_unicode(value):
            raise DocumentError(f"{place} holds half of a surrogate pair, which is not a character")


def _walk(content: Any) -> Iterator[tuple[str, Any, int]]:
    """Values with their dotted path and their level, without recursion."""
    todo: list[tuple[str, Any, int]] = [("", content, 0)]
    while todo:
        path, value, level = todo.pop()
        yield path, value, level
        if level > MOST_LEVELS:
            continue
        if isinstance(value, Mapping):
            todo += [(f"{path}.{key}" if path else str(key), item, level + 1) for key, item in value.items()]
            todo += [(path, key, level) for key in value]
        elif isinstance(value, list):
            todo += [(f"{path}[{place}]", item, level + 1) for place, item in enumerate(value)]


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(file: Path, most_bytes: int) -> str:
    if not file.is_file():
        reason = "is a folder" if file.is_dir() else "does not exist or is not a regular file"
        raise DocumentError(f"{file} {reason}")
    with file.open("rb") as stream:
        content = stream.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise DocumentError(f"{file} is larger than {most_bytes:,} bytes, the limit for such a file")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        kind = {".json": "JSON", ".csv": "CSV"}.get(file.suffix, "YAML")
        line = content.count(b"\n", 0, error.start) + 1
        raise DocumentSyntaxError(f"{file} is not readable {kind} (line {line} is not UTF-8 text)") from None


class _RefusedError(Exception):
    """A rule is broken; the message lacks the name of the document."""


def _check_events(text: str, where: str) -> None:
    """Check nesting, tags and the expanded number of values before anything is built.

    Aliases make a document of a few lines hold billions of values, and an anchor that contains itself holds
    infinitely many.
    """
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, yaml.SafeLoader):
        line = 1 + (event.start_mark.line if event.start_mark else 0)
        tag = event.tag if isinstance(event, yaml.CollectionStartEvent | yaml.ScalarEvent) else None
        if tag is not None and tag not in (*_TAGS, "!"):
            raise _RefusedError(f"the tag {tag!r} in line {line} is not allowed: use plain values")
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, 1))
            if len(open_nodes) > MOST_LEVELS + 1:
                raise _RefusedError(f"line {line} is nested deeper than {MOST_LEVELS} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
            _close(open_nodes, sizes, anchor, size)
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in [anchor for anchor, _ in open_nodes]:
                raise _RefusedError(f"the anchor {event.anchor!r} contains itself in line {line}")
            _close(open_nodes, sizes, None, sizes.get(str(event.anchor), 1))
        elif isinstance(event, yaml.ScalarEvent):
            _close(open_nodes, sizes, event.anchor, 1)
        if open_nodes[-1][1] > MOST_VALUES_YAML:
            raise _RefusedError(f"it has more than {MOST_VALUES_YAML:,} values by line {line}, aliases expanded")


def _close(open_nodes: list[tuple[str | None, int]], sizes: dict[str, int], anchor: str | None, size: int) -> None:
    """Add a finished node to the node around it."""
    if anchor is not None:
        sizes[anchor] = size
    outer, total = open_nodes[-1]
    open_nodes[-1] = outer, total + size


class _PlainLoader(yaml.SafeLoader):
    """Safe loader of plain values with distinct text keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping; raises `_RefusedError` if a key is not text or two keys are equal."""
        seen: set[str] = set()
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise _RefusedError(f"the key in line {line} is a list or mapping: keys are text")
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                raise _RefusedError(f"the key {key.value[:40]!r} in line {line} is not text: write it in quotes")
            if key.value in seen:
                raise _RefusedError(f"the key {key.value[:40]!r} is given twice, the second time in line {line}")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _RefusedError(f"the key {twice[:40]!r} is given twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise _RefusedError(f"holds {name}, which is not a number of JSON")
