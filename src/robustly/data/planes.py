"""Principal directions of images, for the threat `subspace`."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from robustly.data.images import ImageData
from robustly.randomness import shuffled
from robustly.threats.planes import Planes, write_planes


def make_planes(
    data: ImageData,
    path: Path | str,
    *,
    directions: int = 128,
    per_class: bool = False,
    most: int = 600,
    seed: int = 0,
) -> Path:
    """Compute the mean and the principal directions of training images, and write them for `subspace:2@FILE`.

    The file holds the digest of the data. Training on other data with it is refused.

    Args:
        data: training images.
        path: of the file (safetensors) to write.
        directions: number of principal directions, at least 1. TaFD uses 128.
        per_class: True computes a plane of each class, as TaFD does; False one plane of all images.
        most: largest number of images, of each class or of all, that a plane is computed from. TaFD uses 600.
        seed: chooses these images.

    Returns:
        The path of the file.

    Raises:
        ValueError: too few images for the number of directions; the message names the class.
    """
    if directions < 1:
        raise ValueError(f"directions is {directions}: use at least 1")
    groups = [
        (f"class {name!r}", (data.labels == number).nonzero()[:, 0]) for number, name in enumerate(data.classes)
    ]
    if not per_class:
        groups = [("the data", torch.arange(len(data), device=data.labels.device))]
    planes = []
    for group, (name, rows) in enumerate(groups):
        chosen = rows[shuffled(len(rows), seed, "planes", group)[:most].to(rows.device)]
        if len(chosen) <= directions:
            raise ValueError(
                f"{data.source}: {len(chosen)} images of {name} have at most {max(len(chosen) - 1, 0)} principal "
                f"directions, fewer than {directions}: lower directions, or raise most or the number of images"
            )
        planes.append(principal_plane(data.floats(chosen).flatten(1), directions, f"{data.source}: {name}"))
    return write_planes(path, Planes(torch.stack(planes), data.digest()))


def principal_plane(points: Float[Tensor, "n d"], directions: int, name: str = "the data") -> Float[Tensor, "r d"]:
    """Mean and first principal directions of some points: `(1 + directions, D)`.

    Args:
        points: at least directions + 1.
        directions: number of directions.
        name: of the points, for the error message.

    Raises:
        ValueError: the points span fewer directions.
    """
    exact = points.double()
    mean = exact.mean(0, keepdim=True)
    _, lengths, found = torch.linalg.svd(exact - mean, full_matrices=False)
    rank = int((lengths > 1e-9 * lengths[:1].clamp_min(1e-300)).sum())
    if rank < directions:
        raise ValueError(f"{name} spans {rank} directions, fewer than {directions}")
    found = found[:directions]
    largest = found.gather(1, found.abs().argmax(1, keepdim=True))
    return torch.cat([mean, found * largest.sign()]).float()  # signs do not depend on the library of linear algebra
