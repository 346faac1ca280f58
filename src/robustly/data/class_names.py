"""Class names in the order of a model's outputs: read from a file, and matched with the names of a data set."""

import ast
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from robustly.documents import parse_json
from robustly.output_text import listed
from robustly.settings import nearest

ClassNames = Sequence[str | Sequence[str]]
"""One entry for each output of a model, in their order: a name, or several names of the same class."""

_MOST_BYTES = 2**24
_WORDNET = re.compile(r"(n\d{8})[\s,:]+(\S.*)")
_NUMBERED = re.compile(r"(\d+)[\s,:]+([^\s-].*)")


def read_class_names(file: Path | str) -> tuple[tuple[str, ...], ...]:
    """Names of each class, from a file in the order of a model's outputs.

    The file is a text file with one name per line (`n01440764 tench` gives two names of one class; lines may begin
    with their number from 0), the text of a Python dictionary or list, or JSON: a list
    of names, a mapping from index to name or to a list of names (`imagenet_class_index.json`), a mapping from name
    to index (`class_to_idx`), or the `config.json` of a Hugging Face model, of which `id2label` is read.

    Raises:
        ValueError: the file is missing, too large, not text, or of another form.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise ValueError(f"the file of class names {str(file)!r} does not exist")
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path}: is larger than {_MOST_BYTES:,} bytes, the limit for a file of class names")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not a text file of class names, one per line, in UTF-8") from None
    if path.suffix.lower() == ".json":
        return listed_names(parse_json(text, str(path)), str(path))
    if text.lstrip().startswith(("{", "[")):
        return listed_names(_structured(text, str(path)), str(path))
    return listed_names(_without_numbers([line.strip() for line in text.strip().splitlines()]), str(path))


def _structured(text: str, where: str) -> Any:
    """Plain values of JSON or, as in a well-known file of ImageNet's classes, of Python."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return parse_json(text, where)


def _without_numbers(lines: list[str]) -> list[str]:
    """Lines without the number of the line before each name, if all of them have it."""
    found = [_NUMBERED.fullmatch(line) for line in lines]
    numbered = all(match is not None and match[1] == str(place) for place, match in enumerate(found))
    return [match[2] for match in found if match is not None] if numbered else lines


def listed_names(content: Any, where: str) -> tuple[tuple[str, ...], ...]:
    """Names of each class, from plain values of the forms that `read_class_names` lists.

    Raises:
        ValueError: there is no name, an entry is not text or an index is missing.
    """
    if hasattr(content, "tolist"):
        content = content.tolist()  # of an array
    if isinstance(content, Mapping) and "id2label" in content:
        content = content["id2label"]
    entries = _in_order(content, where) if isinstance(content, Mapping) else content
    if isinstance(entries, str | bytes) or not isinstance(entries, Sequence) or not entries:
        raise ValueError(f"{where}: holds no class names: give one name for each output of the model")
    return tuple(_alternatives(entry, place, where) for place, entry in enumerate(entries))


def _in_order(content: Mapping[Any, Any], where: str) -> list[Any]:
    """Entries of a mapping from index to name, or from name to index."""
    pairs = [(key, entry) for key, entry in content.items()]
    if all(isinstance(entry, int) and not isinstance(entry, bool) for _, entry in pairs):
        pairs = [(entry, str(key)) for key, entry in pairs]
    try:
        numbered = {int(index): entry for index, entry in pairs}
    except (TypeError, ValueError):
        numbered = {}
    if len(numbered) != len(pairs) or sorted(numbered) != list(range(len(pairs))):
        raise ValueError(f"{where}: its keys are not the numbers 0 to {len(pairs) - 1} of the model's outputs")
    return [numbered[index] for index in range(len(pairs))]


def _alternatives(entry: Any, place: int, where: str) -> tuple[str, ...]:
    names = [entry] if isinstance(entry, str) else list(entry) if isinstance(entry, list | tuple) else []
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f"{where}: the entry of class {place} is {str(entry)[:60]!r}, not a name")
    if len(names) == 1:
        match = _WORDNET.fullmatch(names[0])
        names = [match[1], match[2]] if match else names
    return tuple(names)


def shown_names(names: ClassNames) -> tuple[str, ...]:
    """One name for each class, as reports print it: the last of several, with the first one where two are equal."""
    entries = [(name,) if isinstance(name, str) else tuple(name) for name in names]
    counts = Counter(entry[-1] for entry in entries)
    return tuple(
        f"{entry[-1]} ({entry[0]})" if counts[entry[-1]] > 1 and len(entry) > 1 else entry[-1] for entry in entries
    )


def unique_names(names: ClassNames) -> dict[str, int]:
    """Number of each name that belongs to one class."""
    return {name: next(iter(places)) for name, places in _index(names, exactly=True).items() if len(places) == 1}


def are_numbers(classes: Sequence[str]) -> bool:
    """True for the names "0", "1", ..., "K-1" of classes without names."""
    return all(name == str(number) for number, name in enumerate(classes))


def numbers_among(classes: Sequence[str], names: ClassNames, source: str) -> tuple[int, ...]:
    """Number of each class of a data set among the names of a model's outputs.

    Names are compared exactly first, then without case and with `_` and `-` as spaces; of `tench, Tinca tinca`,
    each part is a name too. Classes named "0" to "K-1", none of which is among the names, keep their numbers.

    Args:
        classes: the K class names of the data set.
        names: those of the model's outputs.
        source: the data set, for error messages.

    Raises:
        ValueError: a name is unknown or belongs to two outputs, or two classes have the same number.
    """
    exact, similar = _index(names, exactly=True), _index(names, exactly=False)
    found = [exact.get(name) or similar.get(folded(name)) or set() for name in classes]
    if are_numbers(classes) and not any(found):
        if len(classes) > len(names):
            raise ValueError(f"{source}: has {len(classes)} classes, but {len(names)} class names are given")
        return tuple(range(len(classes)))
    unknown = [name for name, places in zip(classes, found, strict=True) if not places]
    if unknown:
        near = nearest(unknown[0], [alternative for name in names for alternative in _parts(name)])
        near = near or f", such as {', '.join(shown_names(names)[:3])}"
        raise ValueError(
            f"{source}: its {'classes' if len(unknown) > 1 else 'class'} {listed(unknown)} "
            f"{'are' if len(unknown) > 1 else 'is'} not among the {len(names)} class names that are given{near}"
        )
    for name, places in zip(classes, found, strict=True):
        if len(places) > 1:
            numbers = " and ".join(str(place) for place in sorted(places))
            raise ValueError(f"{source}: its class {name!r} is the name of the classes {numbers} that are given")
    numbers_found = tuple(next(iter(places)) for places in found)
    counts = Counter(numbers_found)
    twice = [name for name, number in zip(classes, numbers_found, strict=True) if counts[number] > 1]
    if twice:
        raise ValueError(
            f"{source}: its classes {listed(twice)} have the same number among the names that are given"
        )
    return numbers_found


def renumbered_labels(
    labels: Int64[Tensor, " n"], classes: Sequence[str], names: ClassNames, source: str
) -> Int64[Tensor, " n"]:
    """Labels of a data set as numbers among the names of a model's outputs; -1, a missing label, stays.

    Raises:
        ValueError: as `numbers_among`; a label is not one of the classes.
    """
    numbers = torch.tensor(numbers_among(classes, names, source), device=labels.device)
    wrong = (labels < -1) | (labels >= len(classes))
    if bool(wrong.any()):
        raise ValueError(f"{source}: holds the label {int(labels[wrong][0])}, but has {len(classes)} classes")
    return torch.where(labels < 0, labels, numbers[labels.clamp(min=0)])


def _index(names: ClassNames, exactly: bool) -> dict[str, set[int]]:
    index: dict[str, set[int]] = {}
    for place, entry in enumerate(names):
        for name in ((entry,) if isinstance(entry, str) else entry) if exactly else _parts(entry):
            index.setdefault(name if exactly else folded(name), set()).add(place)
    return index


def _parts(entry: str | Sequence[str]) -> list[str]:
    """All names of a class, and the parts between their commas."""
    names = [entry] if isinstance(entry, str) else list(entry)
    return [*names, *(part.strip() for name in names if "," in name for part in name.split(",") if part.strip())]


def folded(name: str) -> str:
    """A class name for comparison: without case, and with `_`, `-` and any white space as one space."""
    return " ".join(re.split(r"[\s_-]+", name.casefold().strip()))
