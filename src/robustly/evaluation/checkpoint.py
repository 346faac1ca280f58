"""Checkpoint of an evaluation: one file per finished attack, so that a killed evaluation continues."""

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from robustly.array_files import map_arrays, write_arrays
from robustly.documents import parse_json, read_json
from robustly.evaluation.identity import differences
from robustly.evaluation.part_files import seal_of
from robustly.evidence.images import EightBitImages, StoredImages
from robustly.evidence.schema import AttackColumns, column_fields
from robustly.files import write_json

BEGUN = "begun.json"


@dataclass(frozen=True)
class AttackEvidence:
    """One attack's part of the evidence.

    Args:
        columns: columns of the table.
        images: stored images.
        unconfirmed: number of successes that a second forward pass did not confirm.
        seconds: duration.
        eight_bit: images of 8 bits.
    """

    columns: AttackColumns
    images: StoredImages
    unconfirmed: int
    seconds: float
    eight_bit: EightBitImages


@dataclass(frozen=True)
class Speed:
    """The batch size and precision of an evaluation, measured once, and the form of its passes.

    Args:
        batch_size: images per batch.
        half_pays: whether searches in bfloat16 are faster.
        compiled: whether searches run in compiled passes (`runtime.compile`).
    """

    batch_size: int
    half_pays: bool
    compiled: bool = False

    @staticmethod
    def of(plain: Mapping[str, Any]) -> "Speed":
        """The speed from plain values."""
        return Speed(int(plain["batch_size"]), bool(plain["half_pays"]), bool(plain.get("compiled", False)))


@dataclass(frozen=True)
class EvaluationCheckpoint:
    """The folder with the finished attacks of an evaluation.

    Args:
        folder: folder, created on the first save.
        identity: identity of the evaluation; files of another evaluation are removed.
    """

    folder: Path
    identity: str

    def begin(self, measured: Callable[[], Speed], outputs: NDArray[np.floating]) -> Speed:
        """The batch size and precision of the evaluation: those with which it began, measured now if it begins.

        Args:
            measured: measures them.
            outputs: the margin of each clean image, `(N,)`. They show another model whose weights are the
                same, such as one with other code.

        Finished attacks of another evaluation are removed with a warning.

        Raises:
            OSError: the folder is read-only or the disk is full.
        """
        path = self.folder / BEGUN
        if path.is_file():
            with suppress(ValueError, KeyError, TypeError, AttributeError, OSError):
                begun = read_json(path)
                same_outputs = _agree(begun["outputs"], outputs)
                if begun["identity"] == self.identity and same_outputs:
                    return Speed.of(begun)
                differ = differences(self.identity, begun["identity"]) + ([] if same_outputs else ["model"])
                other = ", ".join(differ) or "something"
                warnings.warn(
                    f"{self.folder} has parts of a stopped evaluation with another {other}: they are removed",
                    stacklevel=3,
                )
        if self.folder.is_dir():
            shutil.rmtree(self.folder)
        speed = measured()
        self.folder.mkdir(parents=True)
        write_json(path, {"identity": self.identity, **asdict(speed), "outputs": outputs.tolist()})
        return speed

    def load(self, name: str) -> AttackEvidence | None:
        """Load the evidence of a finished attack; None without one, if damaged, or of another evaluation.

        Its images stay on the disk until they are used.
        """
        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            return None
        try:
            stored = map_arrays(path)
            about, tensors = parse_json(stored.about.get("about", "{}"), str(path)), stored.arrays
            seal = about.pop("seal", None)
            if about.get("identity") != self.identity or seal != seal_of(tensors, name, json.dumps(about)):
                return None
            columns = AttackColumns(**{key: tensors[key] for key in column_fields(AttackColumns)})
            images = StoredImages(tensors["ids"], tensors["images"], tensors.get("theta"))
            saved = EightBitImages(tensors["8bit.ids"], tensors["8bit.images"], tensors.get("8bit.theta"))
            return AttackEvidence(columns, images, int(about["unconfirmed"]), float(about["seconds"]), saved)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def save(self, name: str, found: AttackEvidence) -> None:
        """Save the evidence of a finished attack.

        Raises:
            OSError: the folder is read-only or the disk is full.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {key: getattr(found.columns, key) for key in column_fields(AttackColumns)}
        tensors |= {"ids": found.images.ids, "images": found.images.images}
        tensors |= {} if found.images.theta is None else {"theta": found.images.theta}
        tensors |= {"8bit.ids": found.eight_bit.ids, "8bit.images": found.eight_bit.levels}
        tensors |= {} if found.eight_bit.theta is None else {"8bit.theta": found.eight_bit.theta}
        about = {"identity": self.identity, "unconfirmed": found.unconfirmed, "seconds": found.seconds}
        about["seal"] = seal_of(tensors, name, json.dumps(about))
        write_arrays(self.folder / f"{name}.safetensors", tensors, {"about": json.dumps(about)})

    def remove(self) -> None:
        """Delete the checkpoint of a complete evaluation."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _agree(stored: list[float], outputs: NDArray[np.floating]) -> bool:
    """True if logits of two processes differ by no more than rounding explains, also that of half precision."""
    before = np.asarray(stored, np.float64)
    return before.shape == outputs.shape and np.allclose(before, outputs, rtol=0.01, atol=1e-3)
