"""The picture grid: original, adversarial example and magnified difference as inline PNGs."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robustly.reports.evidence import DataFacts, Evaluation, Examples, Pictures

MOST_BROKEN = 12
MOST_HELD = 4
LARGEST_SIDE = 160
"""Pictures of more pixels are shown smaller, to keep the page light."""
FACTORS = (0.5, 1, 1.5, 2, 3, 4, 5, 8, 10, 15, 20, 30, 40, 50, 80, 100, 150, 200, 300, 500, 1000)


@dataclass(frozen=True)
class Shot:
    """One example under one attack; without an adversarial picture, the attack found none."""

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
    """All the shelves of a run; differences are magnified by one factor throughout."""

    shelves: tuple[Shelf, ...]
    factor: float
    side: int
    shrunk: bool


def gallery(evaluation: Evaluation, examples: Examples | None, pictures: Pictures) -> Gallery | None:
    """The grid of a run, attack by attack in the suite's order; None if there is nothing to show."""
    originals = {int(i): image for i, image in zip(pictures.ids, pictures.originals, strict=True)}
    factor = _factor(originals, pictures)
    box = evaluation.threat.box
    encoded = {i: _png(_bytes(image, box)) for i, image in originals.items()}
    shelves = []
    for attack in evaluation.attacks:
        found = pictures.adversarial.get(attack.name, {})
        broken = [i for i in originals if i in found][:MOST_BROKEN]
        shots = [
            Shot(
                example=i,
                label=_label(examples, i, evaluation.data),
                original=encoded[i],
                adversarial=_png(_bytes(found[i], box)),
                difference=_png(_bytes(0.5 + factor * (found[i] - originals[i]), (0.0, 1.0))),
                prediction=_prediction(examples, attack.name, i, evaluation.data),
                distance=_distance(examples, attack.name, i),
            )
            for i in broken
        ]
        held = [i for i in originals if _held(examples, attack.name, i)][:MOST_HELD]
        shots += [Shot(i, _label(examples, i, evaluation.data), encoded[i]) for i in held]
        if shots:
            total = None
            if examples is not None and attack.name in examples.attacks:
                total = int(examples.broken_by(attack.name).sum())
            shelves.append(Shelf(attack.name, attack.title, tuple(shots), total))
    side = max(pictures.originals.shape[2:])
    return Gallery(tuple(shelves), factor, min(side, LARGEST_SIDE), side > LARGEST_SIDE) if shelves else None


def _factor(originals: dict[int, NDArray[np.float32]], pictures: Pictures) -> float:
    """The largest round factor at which no shown difference leaves the grey scale."""
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


def _row(examples: Examples | None, example: int) -> int | None:
    if examples is None:
        return None
    rows = np.flatnonzero(examples.ids == example)
    return int(rows[0]) if len(rows) else None


def _label(examples: Examples | None, example: int, data: DataFacts) -> str:
    row = _row(examples, example)
    return "?" if examples is None or row is None else data.class_name(int(examples.label[row]))


def _prediction(examples: Examples | None, attack: str, example: int, data: DataFacts) -> str | None:
    row = _row(examples, example)
    record = None if examples is None else examples.attacks.get(attack)
    if row is None or record is None or record.prediction is None:
        return None
    return data.class_name(int(record.prediction[row]))


def _distance(examples: Examples | None, attack: str, example: int) -> float | None:
    row = _row(examples, example)
    record = None if examples is None else examples.attacks.get(attack)
    if row is None or record is None or record.distance is None or not np.isfinite(record.distance[row]):
        return None
    return float(record.distance[row])


def _held(examples: Examples | None, attack: str, example: int) -> bool:
    """Whether the example is classified rightly and the attack did not turn it."""
    row = _row(examples, example)
    if examples is None or row is None or attack not in examples.attacks:
        return False
    return bool(examples.clean_right[row] and not examples.attacks[attack].broken[row])
