"""Files of RobustBench's leaderboard: `model_info/<dataset>/<threat model>/<name>.json`."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustly.compat.robustbench.loading import RobustBenchError
from robustly.documents import read_json
from robustly.files import write_json

FIELDS = (
    "link",
    "name",
    "authors",
    "additional_data",
    "number_forward_passes",
    "dataset",
    "venue",
    "architecture",
    "eps",
    "clean_acc",
    "reported",
    "autoattack_acc",
    "footnote",
    "unreliable",
)
"""Fields of an entry for an Lp threat, in the order of the leaderboard's files."""
_NAME = re.compile(r"[\w][\w.+-]*")


def percent(share: float) -> str:
    """A share as the leaderboard writes it: "59.53" for 0.5953."""
    return str(round(100 * share, 2))


def epsilon_text(epsilon: float) -> str:
    """A radius as the leaderboard writes it: "8/255" for 8/255, "0.5" for 0.5."""
    levels = epsilon * 255
    whole = round(levels)
    return f"{whole}/255" if whole and abs(levels - whole) < 1e-6 and epsilon < 0.25 else f"{epsilon:g}"


def info_file(folder: Path, dataset: str, threat: str, model_name: str) -> Path:
    """Place of an entry's file below `folder`.

    Raises:
        RobustBenchError: the name of the model cannot be the name of a file.
    """
    if not isinstance(model_name, str) or not _NAME.fullmatch(model_name):
        raise RobustBenchError(
            f"model_name is {model_name!r}: use letters, digits, '_', '-' and '.', such as Wang2023Better_WRN-28-10"
        )
    return folder / dataset / threat / f"{model_name}.json"


def write_info(file: Path, values: Mapping[str, Any]) -> None:
    """Write an entry's file. The fields of an existing file are kept where `values` has none.

    Raises:
        RobustBenchError: the existing file is not an object of JSON.
        OSError: the file cannot be written.
    """
    known: Mapping[str, Any] = {}
    if file.exists():
        found = read_json(file)
        if not isinstance(found, Mapping):
            raise RobustBenchError(f"{file}: is not a file of RobustBench's model_info")
        known = found
    given = {name: value for name, value in values.items() if value is not None}
    merged = {**dict.fromkeys(FIELDS), **known, **given}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, merged)
