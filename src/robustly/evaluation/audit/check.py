"""The result of a check, and checks of stored images."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robustly.evaluation.recording import as_array
from robustly.evaluation.target import EvaluationTarget, places
from robustly.evidence import EvidenceError, StoredImages
from robustly.evidence.schema import EvidenceTable, Flags, Whole
from robustly.threats import LpBall, ThreatSet

_RENDERING = 1e-4  # differences of pixel values up to this are attributed to rounding


@dataclass(frozen=True)
class Check:
    """The result of one check of an evaluation.

    Args:
        name: the checked property, in a few words.
        problem: the difference found, or an empty text.
        note: a remark for readers if the check passed, such as near-ties.
        statement: a sentence for the guarantee of the audit if the check passed.
    """

    name: str
    problem: str = ""
    note: str = ""
    statement: str = ""

    @property
    def passed(self) -> bool:
        """True if no difference was found."""
        return not self.problem


@dataclass(frozen=True)
class Placed:
    """Stored images with the rows of their examples.

    Args:
        rows: rows of the data, ascending, `(M,)`, on the data's device.
        here: the same as an array.
        images: stored images `(M, C, H, W)`, on the data's device.
        theta: stored parameters of the threat, `(M, ...)`, on the data's device; None without parameters.
    """

    rows: Tensor
    here: Whole
    images: Tensor
    theta: Tensor | None = None

    def logits(self, target: EvaluationTarget) -> Tensor:
        """Logits of the stored images, `(M, K)`."""
        place = places(self.rows, len(target.data))
        return target.logits(lambda chunk: self.images[place[chunk]], self.rows)

    def rendering_problem(self, allowed: ThreatSet) -> str:
        """The difference between the stored images and those rendered from their parameters, or an empty text.

        Args:
            allowed: the threat sets of the examples.
        """
        if isinstance(allowed, LpBall):
            return "" if self.theta is None else "parameters are stored, but the threat moves the image itself"
        if self.theta is None:
            return "the parameters of the threat are missing"
        expected = allowed.identity().shape
        if self.theta.shape != expected:
            return f"the parameters have shape {tuple(self.theta.shape)}, the threat's have {tuple(expected)}"
        off = ~((allowed.apply(self.theta) - self.images).abs() <= _RENDERING).flatten(1).all(1)
        return (
            f"{int(off.sum())} images differ from those rendered from their parameters" if bool(off.any()) else ""
        )

    @property
    def points(self) -> Tensor:
        """The stored parameters of the threat, or the images themselves."""
        return self.images if self.theta is None else self.theta

    def only(self, chosen: Tensor) -> "Placed":
        """The images of a mask `(M,)`."""
        theta = None if self.theta is None else self.theta[chosen]
        return Placed(self.rows[chosen], self.here[as_array(chosen)], self.images[chosen], theta)

    def in_box(self, target: EvaluationTarget) -> Flags:
        """Mask of the images that lie in the box of valid images, `(M,)`."""
        low, high = target.threat.box
        return as_array(((self.images >= low) & (self.images <= high)).flatten(1).all(1))


def placed(stored: StoredImages, table: EvidenceTable, target: EvaluationTarget) -> Placed:
    """Stored images in the order of the data.

    Raises:
        EvidenceError: the images have another shape than those of the data.
        KeyError: an id is not in the table.
    """
    shape, expected = tuple(stored.images.shape[1:]), tuple(target.data.images.shape[1:])
    if shape != expected:
        raise EvidenceError(f"stored images have the shape {shape}, those of the data {expected}")
    position = {int(identity): row for row, identity in enumerate(table.examples.id.tolist())}
    rows = np.array([position[int(identity)] for identity in stored.ids], dtype=np.int64)
    order = rows.argsort(kind="stable")
    device = target.data.device
    images = torch.from_numpy(stored.images[order]).to(device)
    rows_of_data, theta = torch.from_numpy(rows[order]).to(device), None
    if stored.theta is not None:
        theta = torch.from_numpy(stored.theta[order]).to(device)
    elif len(rows) == 0:  # an attack that nothing was left for stores no parameters
        allowed = target.threat.around(target.data.floats(rows_of_data))
        theta = None if isinstance(allowed, LpBall) else allowed.identity()
    return Placed(rows_of_data, rows[order], images, theta)


def first_id(table: EvidenceTable, wrong: Flags) -> int:
    """The id of the first row of a mask that is not empty."""
    return int(table.examples.id[np.flatnonzero(wrong)[0]])
