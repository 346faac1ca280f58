"""`robustly predict`."""

import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from robustly.cli.arguments import Trust
from robustly.cli.terminal import PlainConsole
from robustly.cli.together import leads, results_of_processes
from robustly.data.decoding import IMAGE_SUFFIXES, Decoding, EncodedImage, decode_images
from robustly.data.images import to_floats
from robustly.evaluation.parts import ALONE, Arrays, Crew, Task, as_bytes, from_bytes
from robustly.evaluation.shards import divided
from robustly.experiments.portable import PortableModel, open_portable
from robustly.output_text import csv_cell
from robustly.runtime import RuntimeConfig

BATCH = 250


class PredictionError(ValueError):
    """Images that cannot be classified."""


@dataclass(frozen=True)
class Prediction:
    """The class of an image.

    Args:
        image: its file.
        label: name of the class.
        probability: softmax probability of the class, in [0, 1].
        margin: logit of the class minus the second largest logit, at least 0.
        second: name of the class of the second largest logit.
    """

    image: Path
    label: str
    probability: float
    margin: float
    second: str


def run_prediction(
    path: Path, images: Sequence[Path], as_csv: bool, trust_code: bool, config: RuntimeConfig
) -> int:
    """Classify image files and print a line for each; returns the exit code.

    Args:
        path: a run, or an exported file or folder.
        images: image files and folders.
        as_csv: whether CSV is printed.
        trust_code: whether models that only a file names may be imported.
        config: processes that share the batches, or the weights.

    Raises:
        ValueError: there is no model, no image, or an image that cannot be read.
        OSError: a file cannot be read.
    """
    predictions = results_of_processes(_predicted, (path, tuple(images), trust_code), config)
    if not leads():
        return len([*predictions])
    if as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(("image", "class", "probability", "margin", "second"))
        for one in predictions:
            names = csv_cell(one.image), csv_cell(one.label), csv_cell(one.second)
            writer.writerow((names[0], names[1], f"{one.probability:.6g}", f"{one.margin:.6g}", names[2]))
        return 0
    table = Table(box=SIMPLE)
    for title in ("image", "class", "probability", "margin", "second"):
        table.add_column(
            title,
            justify="right" if title in ("probability", "margin") else "left",
            overflow="fold",
        )
    for one in predictions:
        share = f"{100 * one.probability:.1f} %"
        table.add_row(escape(str(one.image)), escape(one.label), share, f"{one.margin:.3g}", escape(one.second))
    PlainConsole().print(table)
    return 0


def _predicted(path: Path, images: Sequence[Path], trust_code: bool, crew: Crew) -> Iterator[Prediction]:
    files = image_files(images)
    found = open_portable(path, Trust(everything=trust_code).allows)
    found = replace(found, model=divided(found.model, crew, torch.device("cpu")))
    yield from predict_files(found, files, crew)


def image_files(paths: Sequence[Path]) -> list[Path]:
    """Image files, and those in folders at any depth, sorted by name.

    Raises:
        PredictionError: a path does not exist, or a folder has no image.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = sorted(one for one in path.rglob("*") if _is_image(one, path))
            if not found:
                raise PredictionError(f"{path} has no image file ({', '.join(IMAGE_SUFFIXES)})")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise PredictionError(f"there is no file or folder {path}")
    return files


def predict_files(model: PortableModel, files: Sequence[Path], crew: Crew = ALONE) -> Iterator[Prediction]:
    """Predictions in the order of the files.

    Args:
        model: the model.
        files: image files.
        crew: the processes that share the batches.

    Raises:
        ValueError: an image cannot be read, or the model is not for square images and one has another size.
    """
    channels, height, width = model.description.shape
    decoding = Decoding(height if height == width else None, channels)
    classes = model.description.classes
    size = BATCH if height == width else 1  # images that are not resized may differ in size

    def work(part: Arrays) -> Arrays:
        batch = [Path(name) for name in from_bytes(part["files"])]
        pixels = decode_images((EncodedImage(file, str(file)) for file in batch), decoding)
        if pixels.shape[2:] != (height, width):
            raise PredictionError(
                f"{batch[0]} is {pixels.shape[2]}x{pixels.shape[3]} pixels, the model takes {height}x{width}"
            )
        logits = model.logits(to_floats(pixels))
        largest, places = logits.topk(2, dim=1)
        probability, gap = logits.softmax(dim=1).amax(dim=1), largest[:, 0] - largest[:, 1]
        return {"places": places.numpy(), "probability": probability.numpy(), "margin": gap.numpy()}

    batches = [files[start : start + size] for start in range(0, len(files), size)]
    parts = [{"files": as_bytes([str(file) for file in batch])} for batch in batches]
    for batch, found in zip(batches, crew.share(Task("prediction"), parts, work), strict=True):
        columns = (found[name].tolist() for name in ("places", "probability", "margin"))
        for file, two, share, margin in zip(batch, *columns, strict=True):
            yield Prediction(file, classes[two[0]], share, margin, classes[two[1]])


def _is_image(path: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden and path.is_file()
