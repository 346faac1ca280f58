"""Maps of colours without the grid points that no pixel uses, which have no gradient.

An image of 32 x 32 pixels uses at most a quarter of the 16,384 points. A search that moves only these has a quarter
of the numbers to read and write.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from robustly.randomness import KeyedGenerator
from robustly.threats.colour.grid import RESOLUTION, Cells, recoloured
from robustly.threats.contract import Images, Theta
from robustly.threats.offset_field import OffsetField, unwritten

POINTS = RESOLUTION[0] * RESOLUTION[1] * RESOLUTION[2]


@dataclass(frozen=True)
class UsedPlaces:
    """Colours of images, and the grid points that they use.

    Args:
        luv: colours of the pixels, `(N, 3, H, W)`.
        cells: places of the pixels among the used points of their image.
        points: numbers of the used points, ascending; beyond `counts` 0, `(N, P)`.
        counts: numbers of used points, `(N,)`.
    """

    luv: Float[Tensor, "n 3 h w"]
    cells: Cells
    points: Int64[Tensor, "n p"]
    counts: Int64[Tensor, " n"]

    def select(self, index: Tensor) -> "UsedPlaces":
        """Those of some of the images."""
        cells = Cells(self.cells.points[index], self.cells.weights[index])
        return UsedPlaces(self.luv[index], cells, self.points[index], self.counts[index])


@dataclass(frozen=True)
class UsedPointsSet(OffsetField):
    """Images after a map of colours; theta is the change at each used point, `(N, 3, P)`.

    Images with fewer used points than P have a change of 0 at the other numbers.

    Args:
        x: original images `(N, 3, H, W)`.
        radius: largest change per channel, `(N,)`.
        box: least and largest valid value of an image.
        places: used points of these images and others.
        rows: positions of these images among them, `(N,)`.
    """

    places: UsedPlaces
    rows: Int64[Tensor, " n"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the changes of one image."""
        return 3, self.places.points.shape[1]

    @cached_property
    def _own(self) -> UsedPlaces:
        """Used points of these images. Most sets of a search render nothing and do without."""
        everyone = len(self.rows) == len(self.places.counts) and bool(self.rows.diff().eq(1).all())
        return self.places if everyone else self.places.select(self.rows)

    def apply(self, theta: Theta) -> Images:
        """Images with changed colours, those of the whole map; exactly the originals where theta is 0."""
        return recoloured(self.x, self._own.luv, self._own.cells, theta, self.box)

    def random_start(self, generator: KeyedGenerator) -> Theta:
        """The random numbers of the whole map, at the used points."""
        share = generator.uniform(3, POINTS)
        points, counts = self.places.points[self.rows], self.places.counts[self.rows]
        found = share.gather(2, points[:, None].expand(-1, 3, -1)).to(self.x).mul_(2).sub_(1)
        found.mul_(self.radius[:, None, None])
        return found.mul_((torch.arange(points.shape[1]) < counts[:, None])[:, None])

    def moved_to(self, images: Images) -> "UsedPointsSet":
        """Refuse: other images use other points."""
        raise NotImplementedError("used grid points are those of one image; move the whole map of colours")

    def select(self, index: Tensor) -> "UsedPointsSet":
        """Sets of some of the examples."""
        return replace(self, x=self.x[index], radius=self.radius[index], rows=self.rows[index])

    def expanded(self, theta: Theta) -> Theta:
        """Changes of the whole grid, `(N, 3, 16, 32, 32)`: 0 at points that no pixel uses."""
        found = unwritten(theta, len(theta), 3, POINTS).zero_()
        counts, points = self.places.counts[self.rows].tolist(), self.places.points[self.rows]
        for grid, numbers, changes, count in zip(found, points, theta, counts, strict=True):
            grid[:, numbers[:count]] = changes[:, :count]
        return found.view(-1, 3, *RESOLUTION)


def used_places(luv: Float[Tensor, "n 3 h w"], cells: Cells) -> UsedPlaces:
    """Grid points that the pixels of each image use, and the places of the pixels among these.

    Args:
        luv: colours of the pixels.
        cells: their places in the whole grid.
    """
    is_used = torch.zeros(POINTS, dtype=torch.bool)
    rank = torch.empty(POINTS, dtype=torch.int64)
    own, points = [], torch.empty_like(cells.points)
    for numbers, ranks in zip(cells.points, points, strict=True):
        is_used.zero_()[numbers] = True
        own.append(is_used.nonzero()[:, 0])
        rank[own[-1]] = torch.arange(len(own[-1]))
        torch.index_select(rank, 0, numbers, out=ranks)
    counts = torch.tensor([len(numbers) for numbers in own])
    padded = torch.nn.utils.rnn.pad_sequence(own, batch_first=True)
    return UsedPlaces(luv, Cells(points, cells.weights), padded, counts)
