"""Changes to written evidence, as a forger makes them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from robustly.evaluation import Audit
from robustly.evidence import EvidenceTable, read_evidence, write_evidence
from robustly.evidence.metrics import metrics
from robustly.evidence.records import to_json
from robustly.evidence.schema import IMAGES, SUMMARY, TABLE
from robustly.evidence.storage import read_table
from robustly.files import file_sha256, write_json

Tensors = dict[str, NDArray[np.generic]]


def problems(result: Audit) -> str:
    return "; ".join(f"{check.name}: {check.problem}" for check in result.checks if not check.passed)


def reseal(folder: Path) -> None:
    """What a careful forger does: new hashes, and numbers that follow from the forged rows."""
    summary = json.loads((folder / SUMMARY).read_text())
    curve = summary["security_curve"]
    numbers = metrics(
        read_table(folder),
        certificates={},
        classes=summary["data"]["classes"],
        limit=summary["threat"]["limit"],
        curve=[] if curve is None else list(zip(curve["epsilon_text"], curve["epsilon"], strict=True)),
    )
    summary |= to_json(numbers)
    summary["files"] = {name: file_sha256(folder / name) for name in (TABLE, IMAGES)}
    write_json(folder / SUMMARY, summary)


def reseal_hashes(folder: Path) -> None:
    """New hashes of the files, and nothing else."""
    summary = json.loads((folder / SUMMARY).read_text())
    summary["files"] = {name: file_sha256(folder / name) for name in (TABLE, IMAGES)}
    write_json(folder / SUMMARY, summary)


def edit_table(folder: Path, change: Callable[[EvidenceTable], None]) -> None:
    back = read_evidence(folder)
    change(back.table)
    write_evidence(back, folder)


def edit_images(folder: Path, change: Callable[[Tensors], None]) -> None:
    images = {name: value.copy() for name, value in load_file(folder / IMAGES).items()}
    change(images)
    save_file({name: np.ascontiguousarray(value) for name, value in images.items()}, folder / IMAGES)


def hide(table: EvidenceTable, rows: Any) -> None:
    """Make rows stand that are broken, with everything else as an attack that found nothing leaves it."""
    for columns in (*table.attacks.values(), table.worst_case):
        columns.broken[rows] = columns.broken_8bit[rows] = False
    for own in table.attacks.values():
        own.distance[rows], own.prediction[rows], own.passes_8bit[rows] = np.nan, -1, 0
        standing = own.tried & ~own.broken
        own.forwards[rows], own.backwards[rows] = own.forwards[standing].max(), own.backwards[standing].max()
        own.margin[rows] = -0.01


def without(rows_of: list[int]) -> Callable[[Tensors], None]:
    def drop(images: Tensors) -> None:
        for name in {key.removesuffix(".ids") for key in images if key.endswith(".ids")} - {"gallery", "curve"}:
            kept = ~np.isin(images[f"{name}.ids"], rows_of)
            for part in ("ids", "images"):
                images[f"{name}.{part}"] = images[f"{name}.{part}"][kept]

    return drop
