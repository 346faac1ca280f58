"""Principal directions of a run's training images, for GPGD."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from numpy.typing import NDArray

from robustly.data import ImageData, load_splits, make_planes
from robustly.experiments.configuration import RunConfig
from robustly.experiments.given_models import GivenRun
from robustly.experiments.keys import UNTRAINED
from robustly.experiments.run_folder import RunError
from robustly.output_text import first_line
from robustly.threats import Planes, Subspace
from robustly.threats.planes import read_planes

PLANES_FILE = "planes.safetensors"
"""Name of the file in a run folder."""
DIRECTIONS = 128
"""Most directions of a class, as in TaFD."""
_OTHER_MEAN, _OTHER_SPACE = 1e-4, 1e-3
"""Difference of means, and of the cosine of the largest angle between spaces, that rounding does not explain."""


def planes_of_run(run: GivenRun, given: Path | None = None, *, make: bool = True) -> Planes:
    """Principal directions of each class of the training images, computed once and kept in the run folder.

    There are 128 of each class, or one less than the smallest class has images.

    Args:
        run: the run.
        given: file of `robustly.data.make_planes` that is used in their place; None for none.
        make: whether they are computed if the run has none; otherwise a stand-in of the same size is returned.

    Raises:
        RunError: a model that was trained elsewhere without a given file; too few images in a class.
        ThreatError: a file that has other content, or was made from other images.
    """
    if run.config.recipe == UNTRAINED:
        if given is None:
            raise RunError(
                "GPGD needs principal directions of the training images, which are not known for a model that was "
                f"trained elsewhere: robustly.data.make_planes(images, FILE, directions={DIRECTIONS}, "
                "per_class=True) writes them, and --planes FILE names them"
            )
        return read_planes(given)
    train = load_splits(run.config.data).train
    file = given or run.folder / PLANES_FILE
    if given is None and not file.is_file():
        if not make:
            return stand_in(train.images[0].numel())
        _make(train, file)
    planes = read_planes(file)
    Subspace(1, planes).check_data(train.digest)
    return planes


def planes_problem(config: RunConfig, values: NDArray[Any]) -> str:
    """The difference of stored directions to those of a run's training images, in a sentence; empty without one.

    The number of directions is that of the stored ones, and one plane may stand for all classes. Directions are
    compared by the spaces that they span, which rounding on another machine hardly moves.

    Args:
        config: settings of the run.
        values: means and directions, `(K, 1 + q, D)`.
    """
    if config.recipe == UNTRAINED:
        return ""  # the training images are not known, and the audit states so
    stored = torch.from_numpy(values).double()
    try:
        train = load_splits(config.data).train
    except (ValueError, OSError) as error:
        return f"the training images cannot be read: {first_line(error)}"
    if stored.ndim != 3 or stored.shape[2] != train.images[0].numel():
        return f"they have the shape {tuple(stored.shape)}"
    try:
        with TemporaryDirectory(prefix="robustly-") as folder:
            file = Path(folder) / PLANES_FILE
            make_planes(train, file, directions=stored.shape[1] - 1, per_class=len(stored) > 1)
            own = read_planes(file).values.double()
    except ValueError as error:
        return str(error)
    if own.shape != stored.shape:
        return f"they are of {len(stored)} classes, the training images of {len(own)}"
    off = (own[:, 0] - stored[:, 0]).abs().amax(1)
    common = torch.linalg.matrix_norm(own[:, 1:] @ stored[:, 1:].mT, ord=-2)  # cosine of the largest angle
    wrong = int(((off > _OTHER_MEAN) | (common < 1 - _OTHER_SPACE)).sum())
    return f"{wrong} of {len(own)} planes are others" if wrong else ""


def _make(train: ImageData, file: Path) -> None:
    fewest = int(torch.bincount(train.labels, minlength=train.num_classes).min())
    count = max(min(DIRECTIONS, fewest - 1, train.images[0].numel()), 1)
    try:
        make_planes(train, file, directions=count, per_class=True)
    except ValueError as error:
        raise RunError(f"{error}; --planes FILE names directions of your own") from None


def stand_in(size: int) -> Planes:
    """A single direction for inputs of some values, where only their number matters."""
    return Planes(torch.stack([torch.zeros(size), torch.eye(1, size)[0]])[None])
