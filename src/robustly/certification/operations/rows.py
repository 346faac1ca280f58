"""Rows: linear functions of one node's output, for some examples of a batch, dense or as windows of a plane."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Coefficients of linear functions.

    Args:
        coefficients: `(B, R, *shape)`, R rows for each of B examples; or `(R, *shape)` if `example` is given; or
            `(R, C, h, w)` if `offset` is given.
        example: index of the example of each row, `(R,)`; None if every example has the same number of rows.
        offset: row and column of the upper left corner of each window in the plane, `(R, 2)` int64, possibly
            negative; None if the coefficients cover the node's whole output. Coefficients outside the plane are 0.
        plane: height and width of the plane, if `offset` is given.
        one: the example of all rows, if `example` names one only; values are not copied for each row then.
    """

    coefficients: Tensor
    example: Tensor | None = None
    offset: Tensor | None = None
    plane: tuple[int, int] | None = None
    one: int | None = None

    @property
    def lead(self) -> int:
        """Number of leading axes before the node's shape: 2 (example, row) or 1 (row)."""
        return 2 if self.example is None else 1

    @property
    def leading(self) -> tuple[int, ...]:
        """Lengths of the leading axes."""
        return tuple(self.coefficients.shape[: self.lead])

    def with_coefficients(self, coefficients: Tensor) -> "Rows":
        """The same rows with other coefficients."""
        return replace(self, coefficients=coefficients)

    def gather(self, values: Tensor) -> Tensor:
        """Values `(B, *shape)` of each row's example, where the coefficients are; broadcasts against them."""
        if self.example is None:
            return values.unsqueeze(1)
        if self.offset is None:
            if self.one is None:
                return values[self.example]
            return values[self.one : self.one + 1].expand(len(self.example), *values.shape[1:])
        return self._windows(values)

    def dot(self, values: Tensor) -> Tensor:
        """Inner product of each row with values `(B, *shape)` of its example, `(B, R)` or `(R,)`."""
        if self.example is None:
            flat = self.coefficients.flatten(2)
            return torch.bmm(flat, values.flatten(1).unsqueeze(2)).squeeze(2)
        return self.total(self.coefficients * self.gather(values))

    def products(self, coefficients: Tensor, gathered: Tensor) -> Tensor:
        """Inner products of the rows of coefficients with values from `gather`, with the leading axes."""
        if self.lead == 2 and gathered.shape == (len(coefficients), 1, *coefficients.shape[2:]):
            return torch.bmm(coefficients.flatten(2), gathered.flatten(2).transpose(1, 2)).squeeze(2)
        return self.total(coefficients * gathered)

    def total(self, values: Tensor) -> Tensor:
        """Sum over all axes but the leading ones of a tensor of the shape of the coefficients."""
        axes = tuple(range(self.lead, values.dim()))
        return values.sum(axes) if axes else values

    def dense(self) -> "Rows":
        """The same rows without windows."""
        if self.offset is None or self.plane is None:
            return self
        (height, width), (count, channels, _, _) = self.plane, self.coefficients.shape
        size = height * width + 1
        first = size * torch.arange(count, device=self.offset.device).unsqueeze(1)
        values = self.coefficients.permute(0, 2, 3, 1).reshape(-1, channels)
        full = values.new_zeros(count * size, channels).index_add(0, (first + self._places()).flatten(), values)
        plane = full.view(count, size, channels)[:, :-1].reshape(count, height, width, channels)
        return replace(self, coefficients=plane.permute(0, 3, 1, 2), offset=None, plane=None)

    def flat(self) -> tuple[Tensor, tuple[int, ...]]:
        """Coefficients with one leading axis, and the leading axes."""
        return self.coefficients.flatten(0, self.lead - 1), self.leading

    def _places(self) -> Tensor:
        """Index of each window value in the flattened plane, `(R, h*w)`; the plane's size where it lies outside."""
        assert self.offset is not None
        assert self.plane is not None
        (height, width), (h, w) = self.plane, self.coefficients.shape[-2:]
        down = self.offset[:, :1] + torch.arange(h, device=self.offset.device)
        right = self.offset[:, 1:] + torch.arange(w, device=self.offset.device)
        places = (down * width).unsqueeze(2) + right.unsqueeze(1)
        inside = ((down >= 0) & (down < height)).unsqueeze(2) & ((right >= 0) & (right < width)).unsqueeze(1)
        return torch.where(inside, places, height * width).flatten(1)

    def _windows(self, values: Tensor) -> Tensor:
        """Windows `(R, C, h, w)` of values `(B, C, H, W)`, 0 outside."""
        assert self.example is not None
        h, w = self.coefficients.shape[-2:]
        channels = values.shape[1]
        cells = torch.nn.functional.pad(values.flatten(2), (0, 1)).transpose(1, 2)  # values of a cell side by side
        index = self.example.unsqueeze(1) * cells.shape[1] + self._places()
        source = cells.flatten() if channels == 1 else cells.reshape(-1, channels)  # a vector is read faster
        picked = source.index_select(0, index.flatten())
        return picked.view(-1, h, w, channels).permute(0, 3, 1, 2)


def add_rows(first: Rows | None, second: Rows) -> Rows:
    """The sum of two sets of rows over the same node; a window of one plane is widened to hold both."""
    if first is None:
        return second
    apart = None if first.offset is None or second.offset is None else second.offset - first.offset
    if first.offset is None or apart is None or bool((apart != apart[:1]).any()):  # paths with different strides
        first, second = first.dense(), second.dense()
        return first.with_coefficients(first.coefficients + second.coefficients)
    shift = apart[0].tolist() if len(apart) else [0, 0]
    sizes = (first.coefficients.shape[-2:], second.coefficients.shape[-2:])
    low = [min(0, step) for step in shift]
    high = [max(sizes[0][axis], shift[axis] + sizes[1][axis]) for axis in (0, 1)]

    def widened(rows: Rows, at: list[int]) -> Tensor:
        before = [at[axis] - low[axis] for axis in (0, 1)]
        after = [high[axis] - at[axis] - rows.coefficients.shape[-2 + axis] for axis in (0, 1)]
        return torch.nn.functional.pad(rows.coefficients, (before[1], after[1], before[0], after[0]))

    offset = first.offset + torch.tensor(low, device=first.offset.device)
    return replace(first, coefficients=widened(first, [0, 0]) + widened(second, shift), offset=offset)
