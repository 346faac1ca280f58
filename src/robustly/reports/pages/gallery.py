"""The grid of pictures: original, adversarial example and magnified difference as inline PNGs."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robustly.evidence import EvidenceTable, Summary
from robustly.evidence.provenance import DataRecord
from robustly.evidence.storage import Pictures

MOST_BROKEN = 12
MOST_HELD = 4
LARGEST_SIDE = 160
"""Pictures of more pixels are scaled down, to keep the page small."""
FACTORS = (0.5, 1, 1.5, 2, 3, 4, 5, 8, 10, 15, 20, 30, 40, 50, 80, 100, 150, 200, 300, 500, 1000)


@dataclass(frozen=True)
class Shot:
    """One example under one attack; `adversarial` is None if the attack found none."""

    example: int
    label: str
    original: str
    adversarial: str | None = None
    difference: str | None = None
    prediction: str | None = None
    distance: float | None = None


@dataclass(frozen=True)
class Shelf:
    """The examples shown for one attack, and how many it broke in all."""

    attack: str
    title: str
    shots: tuple[Shot, ...]
    broken: int | None


@dataclass(frozen=True)
class Gallery:
    """All shelves of a run; all differences are magnified by one factor."""

    shelves: tuple[Shelf, ...]
    factor: float
    side: int
    shrunk: bool


def gallery(evaluation: Summary, table: EvidenceTable | None, pictures: Pictures) -> Gallery | None:
    """The grid of a run, attack by attack in the suite's order; None without pictures."""
    originals = {int(i): image for i, image in zip(pictures.ids, pictures.originals, strict=True)}
    factor = _factor(originals, pictures)
    box = evaluation.threat.box
    encoded = {i: _png(_bytes(image, box)) for i, image in originals.items()}
    shelves = []
    for attack in evaluation.suite.attacks:
        found = pictures.adversarial.get(attack.name, {})
        broken = [i for i in originals if i in found][:MOST_BROKEN]
        shots = [
            Shot(
                example=i,
                label=_label(table, i, evaluation.data),
                original=encoded[i],
                adversarial=_png(_bytes(found[i], box)),
                difference=_png(_bytes(0.5 + factor * (found[i] - originals[i]), (0.0, 1.0))),
                prediction=_prediction(table, attack.name, i, evaluation.data),
                distance=_distance(table, attack.name, i),
            )
            for i in broken
        ]
        held = [i for i in originals if _held(table, attack.name, i)][:MOST_HELD]
        shots += [Shot(i, _label(table, i, evaluation.data), encoded[i]) for i in held]
        if shots:
            total = None
            if table is not None and attack.name in table.attacks:
                total = int(table.broken_by(attack.name).sum())
            shelves.append(Shelf(attack.name, attack.title, tuple(shots), total))
    side = max(pictures.originals.shape[2:])
    return Gallery(tuple(shelves), factor, min(side, LARGEST_SIDE), side > LARGEST_SIDE) if shelves else None


def _factor(originals: dict[int, NDArray[np.float32]], pictures: Pictures) -> float:
    """The largest round factor that keeps all differences within the grey scale."""
    changes = [
        float(np.abs(image - originals[i]).max())
        for found in pictures.adversarial.values()
        for i, image in found.items()
    ]
    largest = max(changes, default=0.5) or 0.5
    return max((factor for factor in FACTORS if factor * largest <= 0.5 + 1e-4), default=FACTORS[0])


def _bytes(image: NDArray[np.float32], box: tuple[float, float]) -> NDArray[np.uint8]:
    """`(C, H, W)` in the box -> `(H, W)` grey or `(H, W, 3)` colour bytes."""
    low, high = box
    scaled = np.clip((np.nan_to_num(image) - low) / (high - low), 0.0, 1.0)
    pixels: NDArray[np.uint8] = np.round(255 * scaled).astype(np.uint8)
    if len(pixels) < 3:
        return np.ascontiguousarray(pixels[0])
    return np.ascontiguousarray(pixels[:3].transpose(1, 2, 0))


def _png(pixels: NDArray[np.uint8]) -> str:
    """A data URI of the picture, its longer side at most `LARGEST_SIDE`."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _row(table: EvidenceTable | None, example: int) -> int | None:
    if table is None:
        return None
    rows = np.flatnonzero(table.examples.id == example)
    return int(rows[0]) if len(rows) else None


def _label(table: EvidenceTable | None, example: int, data: DataRecord) -> str:
    row = _row(table, example)
    return "?" if table is None or row is None else data.class_name(int(table.examples.label[row]))


def _prediction(table: EvidenceTable | None, attack: str, example: int, data: DataRecord) -> str | None:
    row = _row(table, example)
    columns = None if table is None else table.attacks.get(attack)
    return None if row is None or columns is None else data.class_name(int(columns.prediction[row]))


def _distance(table: EvidenceTable | None, attack: str, example: int) -> float | None:
    row = _row(table, example)
    columns = None if table is None else table.attacks.get(attack)
    if row is None or columns is None or not np.isfinite(columns.distance[row]):
        return None
    return float(columns.distance[row])


def _held(table: EvidenceTable | None, attack: str, example: int) -> bool:
    """True if the example is classified correctly and the attack did not break it."""
    row = _row(table, example)
    if table is None or row is None or attack not in table.attacks:
        return False
    return bool(table.correct[row] and not table.attacks[attack].broken[row])
