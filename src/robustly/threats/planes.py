"""Means and principal directions of data, and their files."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from robustly.files import is_irregular, whole_file
from robustly.threats.array_digest import array_digest
from robustly.threats.contract import Images, ThreatError

_ORTHONORMAL = 1e-3
_NAME, _MADE_FROM = "planes", "made_from"


@dataclass(frozen=True, eq=False)
class Planes:
    """Mean and principal directions of the inputs of each class.

    Args:
        values: for each of K classes the mean and q orthonormal directions of its inputs, flat: `(K, 1 + q, D)`.
            K = 1 is one plane for all inputs.
        made_from: digest of the data that the planes were made from, `ImageData.digest()`; empty if not known.

    Raises:
        ThreatError: values of another shape, or directions that are not orthonormal.
    """

    values: Float[Tensor, "k rows d"]
    made_from: str = ""

    def __post_init__(self) -> None:
        wrong = "planes must be finite floats (classes, 1 + directions, values) with at least one direction"
        values = self.values
        if not isinstance(values, Tensor) or values.ndim != 3 or not values.is_floating_point():
            raise ThreatError(wrong)
        classes, rows, size = values.shape
        if classes < 1 or not 2 <= rows <= size + 1 or not bool(values.isfinite().all()):
            raise ThreatError(f"{wrong}, got the shape {tuple(values.shape)}")
        directions = values[:, 1:].double()
        unit = torch.eye(rows - 1, dtype=torch.float64, device=values.device)
        if float((directions @ directions.mT - unit).abs().max()) > _ORTHONORMAL:
            raise ThreatError(f"the directions of a plane must be orthonormal, up to {_ORTHONORMAL}")

    @cached_property
    def digest(self) -> str:
        """First 12 hexadecimal digits of the SHA-256 of the values."""
        return array_digest(self.values)


def nearest_plane(x: Images, planes: Planes) -> Int64[Tensor, " n"]:
    """Number of the plane, through its mean, with the least Euclidean distance to each input."""
    flat, distances = x.detach().flatten(1).double(), []  # in doubles, rounding hardly ever decides
    for plane in planes.values.to(flat):
        off = flat - plane[0]
        distances.append(off.square().sum(1) - (off @ plane[1:].T).square().sum(1))
    return torch.stack(distances, 1).argmin(1)


def write_planes(path: Path | str, planes: Planes) -> Path:
    """Write planes to a safetensors file, with the digest of the data that made them."""
    with whole_file(Path(path)) as part:
        values = planes.values.detach().cpu().float().contiguous()
        save_file({_NAME: values}, part, {_MADE_FROM: planes.made_from})
    return Path(path)


def read_planes(path: Path | str) -> Planes:
    """Return the planes of a file of `write_planes`.

    Raises:
        ThreatError: a file that is missing or has other content.
    """
    try:
        if is_irregular(path):
            raise OSError("it is not a regular file")
        with safe_open(path, framework="pt") as file:
            return Planes(file.get_tensor(_NAME), str((file.metadata() or {}).get(_MADE_FROM, "")))
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ThreatError(f"{str(path)!r} is not a file of planes, as make_planes writes it ({reason})") from None
