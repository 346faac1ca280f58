"""The grid of pictures: original, adversarial example and magnified difference as inline PNGs."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robustly.evidence import EvidenceTable, Summary
from robustly.evidence.provenance import DataRecord
from robustly.evidence.storage import Pictures

MOST_BROKEN = 12
MOST_BYTES = 690_000
"""Most bytes of the pictures of one run on its page."""
PER_RUN = 60_000
"""Bytes of the numbers of a run on a page. Of pages with several runs, they come out of the bytes for pictures."""
_SHOT = 600
"""Bytes of the text around a picture."""


@dataclass(frozen=True)
class _Extent:
    """Largest side of a picture in pixels, and most broken and unbroken examples of an attack."""

    side: int
    broken: int
    held: int


_EXTENTS = (
    *(_Extent(160, MOST_BROKEN, 4), _Extent(160, 6, 2), _Extent(96, 6, 2)),
    *(_Extent(96, 3, 1), _Extent(64, 3, 1), _Extent(64, 1, 0)),
)
"""From many and large pictures to few and small ones; the first that is small enough is used."""
FACTORS = (0.5, 1, 1.5, 2, 3, 4, 5, 8, 10, 15, 20, 30, 40, 50, 80, 100, 150, 200, 300, 500, 1000)


@dataclass(frozen=True)
class Shot:
    """One example under one attack; `adversarial` is None if the attack found none, `change` without words."""

    example: int
    label: str
    original: str
    adversarial: str | None = None
    difference: str | None = None
    prediction: str | None = None
    distance: float | None = None
    change: str | None = None


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

    @property
    def size(self) -> int:
        """Its bytes on the page."""
        shots = [shot for shelf in self.shelves for shot in shelf.shots]
        parts = [
            (shot.original, shot.adversarial or "", shot.difference or "", shot.change or "") for shot in shots
        ]
        return sum(_SHOT + sum(map(len, part)) for part in parts)


def share_of_bytes(runs: int) -> int:
    """Bytes for the pictures of each run on a page of several, so that the whole page stays small."""
    return max(0, MOST_BYTES - PER_RUN * (runs - 1)) // runs


def gallery(
    evaluation: Summary, table: EvidenceTable | None, pictures: Pictures, most: int = MOST_BYTES
) -> Gallery | None:
    """The grid of a run, attack by attack in the suite's order; None without pictures, or if none is small enough.

    Args:
        evaluation: the evaluation.
        table: its rows.
        pictures: its pictures.
        most: most bytes; with more, fewer and smaller pictures are taken.
    """
    originals = {int(i): image for i, image in zip(pictures.ids, pictures.originals, strict=True)}
    encoder = _Encoder(originals, pictures.adversarial, evaluation.threat.box, _factor(originals, pictures))
    largest = max(pictures.originals.shape[2:])
    made = (_gallery(evaluation, table, encoder, extent, largest) for extent in _EXTENTS)
    return next((one for one in made if one is None or one.size <= most), None)


@dataclass(frozen=True)
class _Encoder:
    """The encoded pictures of a run, each made once for a side.

    Args:
        originals: images by id, `(C, H, W)` in the box.
        adversarial: adversarial images by attack and id.
        box: least and largest valid value of a pixel.
        factor: magnification of the differences.
        made: the encoded pictures by attack, id and side; those without an attack are the originals.
    """

    originals: Mapping[int, NDArray[np.float32]]
    adversarial: Mapping[str, Mapping[int, NDArray[np.float32]]]
    box: tuple[float, float]
    factor: float
    made: dict[tuple[str | None, int, int], tuple[str, ...]] = field(default_factory=dict)

    def original(self, example: int, side: int) -> str:
        """The data URI of an original."""
        key = (None, example, side)
        if key not in self.made:
            self.made[key] = (_png(_bytes(self.originals[example], self.box), side),)
        return self.made[key][0]

    def broken(self, attack: str, example: int, side: int) -> tuple[str, ...]:
        """The data URIs of an adversarial image and of its magnified difference."""
        key = (attack, example, side)
        if key not in self.made:
            image = self.adversarial[attack][example]
            difference = 0.5 + self.factor * (image - self.originals[example])
            self.made[key] = (
                _png(_bytes(image, self.box), side),
                _png(_bytes(difference, (0.0, 1.0)), side),
            )
        return self.made[key]


def _gallery(
    evaluation: Summary, table: EvidenceTable | None, encoder: _Encoder, extent: _Extent, largest: int
) -> Gallery | None:
    originals, side = encoder.originals, min(largest, extent.side)
    shelves = []
    for attack in [outcome.attack for outcome in evaluation.outcomes if not outcome.state]:
        found = encoder.adversarial.get(attack.name, {})
        broken = [i for i in originals if i in found][: extent.broken]
        shots = [
            Shot(
                example=i,
                label=_label(table, i, evaluation.data),
                original=encoder.original(i, side),
                adversarial=encoder.broken(attack.name, i, side)[0],
                difference=encoder.broken(attack.name, i, side)[1],
                prediction=_prediction(table, attack.name, i, evaluation.data),
                distance=_distance(table, attack.name, i),
                change=evaluation.picture_words.get(attack.name, {}).get(str(i)),
            )
            for i in broken
        ]
        held = [i for i in originals if _held(table, attack.name, i)][: extent.held]
        shots += [Shot(i, _label(table, i, evaluation.data), encoder.original(i, side)) for i in held]
        if shots:
            total = None
            if table is not None and attack.name in table.attacks:
                total = int(table.broken_by(attack.name).sum())
            shelves.append(Shelf(attack.name, attack.title, tuple(shots), total))
    return Gallery(tuple(shelves), encoder.factor, side, largest > side) if shelves else None


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


def _png(pixels: NDArray[np.uint8], side: int) -> str:
    """A data URI of the picture, its longer side at most `side` pixels."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side))
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
    """True if the example is classified correctly, and the attack tried and did not break it."""
    row = _row(table, example)
    if table is None or row is None or attack not in table.attacks:
        return False
    columns = table.attacks[attack]
    return bool(table.correct[row] and columns.tried[row] and not columns.broken[row])
