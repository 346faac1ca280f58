"""The evidence of an evaluation on disk: one row per example, and the adversarial images themselves."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from robustly.files import file_sha256, whole_file, write_json

SCHEMA = 2
TABLE, IMAGES, SUMMARY = "evidence.parquet", "adversarial.safetensors", "summary.json"
CURVE = "curve"


class EvidenceError(ValueError):
    """Evidence that cannot be read; the message names the file."""


@dataclass(frozen=True)
class Evidence:
    """What an evaluation found.

    Args:
        table: per-example columns `(N,)` by name, in a fixed order: `id`, `label`, `clean_prediction`,
            `clean_margin`; for each attack `NAME.broken`, `NAME.broken_8bit` (after rounding to 8 bits),
            `NAME.distance` (NaN where not broken), `NAME.prediction`, `NAME.forwards`, `NAME.backwards`,
            `NAME.invalid`, `NAME.tried`, `NAME.margin` (the highest max_{j != y} z_j - z_y seen, NaN where
            unknown), `NAME.zero_gradients` (points at which the gradient was exactly zero); `worst_case.broken`,
            `worst_case.broken_8bit`; for the security curve
            `curve.distance`, the smallest radius of the grid at which the example broke (inf: at none, NaN: not
            tried); for each certificate `certificate.NAME.radius` and `.prediction`.
        images: per attack and for the curve `NAME.images` `(M, C, H, W)` and `NAME.ids` `(M,)` of the examples
            that it broke; `gallery.images` and `gallery.ids`, originals for the report.
        summary: the numbers computed from the table, and what was tested on what with what.
    """

    table: Mapping[str, Tensor]
    images: Mapping[str, Tensor]
    summary: dict[str, Any]


def write_evidence(evidence: Evidence, folder: Path) -> None:
    """Write the three files of an evaluation, the summary (with the hashes of the others) last.

    Raises:
        OSError: read-only folder or full disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SUMMARY).unlink(missing_ok=True)  # a crash in between must not leave an old summary with new files
    columns = {name: pa.array(values.cpu().numpy()) for name, values in evidence.table.items()}
    with whole_file(folder / TABLE) as temporary:
        pq.write_table(pa.table(columns), temporary)
    with whole_file(folder / IMAGES) as temporary:
        tensors = {name: value.detach().cpu().contiguous() for name, value in evidence.images.items()}
        try:
            save_file(tensors, temporary)
        except SafetensorError as error:
            raise OSError(f"could not write {folder / IMAGES}: {error}") from error
    files = {name: file_sha256(folder / name) for name in (TABLE, IMAGES)}
    write_json(folder / SUMMARY, {**evidence.summary, "files": files})


def read_evidence(folder: Path) -> Evidence:
    """Read an evaluation back.

    Raises:
        EvidenceError: a file is missing, truncated, or of another schema.
    """
    for name in (SUMMARY, TABLE, IMAGES):
        if not (folder / name).is_file():
            raise EvidenceError(f"{folder / name} is missing: no complete evaluation there")
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        version = summary["schema"]
    except (ValueError, KeyError, TypeError):
        raise EvidenceError(f"{folder / SUMMARY} is no evaluation summary") from None
    if version != SCHEMA:
        raise EvidenceError(f"{folder / SUMMARY} has schema {version}, this version reads schema {SCHEMA}")
    try:
        read = pq.read_table(folder / TABLE)
    except (pa.ArrowException, OSError) as error:
        raise EvidenceError(f"{folder / TABLE} is damaged ({str(error).splitlines()[0][:100]})") from None
    table = {}
    for name in read.column_names:
        values = read[name].to_numpy()
        if values.dtype == np.object_:
            raise EvidenceError(f"{folder / TABLE}: column {name} has holes or is no number")
        table[name] = torch.from_numpy(values.copy())
    try:
        images = load_file(folder / IMAGES)
    except (SafetensorError, OSError) as error:
        raise EvidenceError(f"{folder / IMAGES} is damaged ({error})") from None
    return Evidence(table, images, summary)
