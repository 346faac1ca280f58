"""Input sets: a box for each example, or the intersection of a box and a ball, and least values of rows."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from robustly.certification.operations import Interval, Rows
from robustly.threats.lp import ThreatModel

_BISECTIONS = 60


@dataclass(frozen=True)
class Ball:
    """A ball around each example.

    Args:
        norm: "l2", "l1" or "l0" (changed pixels; all channels of a pixel count once). A ball in the l-inf norm is a
            box.
        center: centres, `(B, *shape)`.
        radius: radii, `(B,)`.
    """

    norm: str
    center: Tensor
    radius: Tensor


@dataclass(frozen=True)
class InputSet:
    """The inputs over which a property must hold, one set for each example.

    Args:
        lower: least value of each input, `(B, *shape)`.
        upper: largest value of each input, `(B, *shape)`.
        ball: the inputs lie in this ball too; None for a box.
    """

    lower: Tensor
    upper: Tensor
    ball: Ball | None = None

    @classmethod
    def of(cls, threat: ThreatModel, x: Float[Tensor, "b ..."], dtype: torch.dtype | None = None) -> "InputSet":
        """The set of a threat around images.

        Args:
            threat: an Lp ball with box and mask. Bounds are rounded outwards.
            x: images, `(B, *shape)`.
            dtype: type of the set; None for that of the images.
        """
        center = x.to(dtype or x.dtype)
        epsilon = threat.epsilon
        radius = torch.as_tensor(
            epsilon if isinstance(epsilon, Tensor) else float(epsilon), dtype=center.dtype, device=x.device
        ).expand(len(x))
        radius = torch.where(radius > 0, torch.nextafter(radius, torch.full_like(radius, torch.inf)), radius)
        reach = radius.view(-1, *[1] * (x.ndim - 1)).expand_as(center)
        if threat.norm == "l0":
            reach = torch.where(reach > 0, torch.inf, 0.0)
        if threat.mask is not None:
            share = threat.mask.to(center).expand_as(center)
            reach = torch.where(share > 0, reach * share, 0.0)
        low, high = threat.box
        lower, upper = _outwards(center - reach, -torch.inf, reach), _outwards(center + reach, torch.inf, reach)
        # An image outside the box stays in its own set.
        lower = torch.minimum(lower.clamp_min(low), center)
        upper = torch.maximum(upper.clamp_max(high), center)
        ball = None if threat.norm == "linf" else Ball(threat.norm, center, radius)
        return cls(lower, upper, ball)

    def interval(self) -> Interval:
        """The box."""
        return Interval(self.lower, self.upper)

    def select(self, index: Tensor) -> "InputSet":
        """The sets of some examples."""
        ball = self.ball
        if ball is not None:
            ball = replace(ball, center=ball.center[index], radius=ball.radius[index])
        return InputSet(self.lower[index], self.upper[index], ball)

    def to(self, dtype: torch.dtype) -> "InputSet":
        """The same sets in another type; narrower types round outwards."""
        lower, upper = self.lower.to(dtype), self.upper.to(dtype)
        if torch.finfo(dtype).eps > torch.finfo(self.lower.dtype).eps:
            lower = torch.where(lower.to(self.lower) > self.lower, torch.nextafter(lower, lower - torch.inf), lower)
            upper = torch.where(upper.to(self.upper) < self.upper, torch.nextafter(upper, upper + torch.inf), upper)
        ball = self.ball
        if ball is not None:
            ball = replace(ball, center=ball.center.to(dtype), radius=ball.radius.to(dtype))
        return InputSet(lower, upper, ball)

    def least(self, rows: Rows, *, exact: bool = False) -> Tensor:
        """Lower bounds of rows over the sets, with the leading axes of the rows.

        For a box they are exact. For a ball inside a box they are the larger of the two bounds, or, if `exact`, the
        least value itself (l1, l2), found from its dual: certification by any multiplier is sound.
        """
        coefficients = rows.coefficients
        if self.ball is None:
            return rows.products(coefficients.clamp_min(0), rows.gather(self.lower)) + rows.products(
                coefficients.clamp_max(0), rows.gather(self.upper)
            )
        rows = rows.dense()
        coefficients = rows.coefficients
        center = rows.gather(self.ball.center)
        radius = self.ball.radius.unsqueeze(1) if rows.example is None else self.ball.radius[rows.example]
        down, up = rows.gather(self.lower) - center, rows.gather(self.upper) - center
        gain = torch.minimum(coefficients * down, coefficients * up)
        start = rows.total(coefficients * center)
        if self.ball.norm == "l0":
            return start + _few_pixels(gain, radius, rows.lead)
        box = rows.total(gain)
        movable = torch.where(up > down, coefficients, 0.0).flatten(rows.lead)
        if self.ball.norm == "l2":
            change = torch.maximum(box, -radius * movable.norm(dim=-1))
            if exact:
                limits = (
                    down.expand_as(coefficients).flatten(rows.lead),
                    up.expand_as(coefficients).flatten(rows.lead),
                )
                found = _l2_in_box(movable, *limits, radius)
                change = torch.where(found > change, found, change)  # the dual may overflow for tiny radii
        else:
            change = torch.maximum(box, -radius * movable.abs().amax(-1))
            if exact:
                room = torch.where(coefficients > 0, -down, up).expand_as(coefficients).flatten(rows.lead)
                change = torch.maximum(change, _l1_in_box(movable, room, radius))
        return start + change

    def minimisers(self, rows: Rows) -> Tensor:
        """Points where the rows are least over the box, moved towards the centre of the ball where there is one."""
        low, high = rows.gather(self.lower), rows.gather(self.upper)
        points = torch.where(rows.coefficients > 0, low, high)
        if self.ball is None or self.ball.norm == "l0":
            return points
        center = rows.gather(self.ball.center)
        change = (points - center).flatten(rows.lead)
        size = change.norm(dim=-1) if self.ball.norm == "l2" else change.abs().sum(-1)
        radius = self.ball.radius.unsqueeze(1) if rows.example is None else self.ball.radius[rows.example]
        share = (radius / size.clamp_min(torch.finfo(size.dtype).tiny)).clamp_max(1.0)
        return center + (change * share.unsqueeze(-1)).view_as(points)


def _outwards(values: Tensor, direction: float, reach: Tensor) -> Tensor:
    moved = torch.nextafter(values, torch.full_like(values, direction))
    return torch.where(reach > 0, moved, values)


def _l2_in_box(slopes: Tensor, down: Tensor, up: Tensor, radius: Tensor) -> Tensor:
    """Least change of rows over a ball inside a box, from the dual with the multiplier that a bisection finds.

    The change for a multiplier m is `-m r^2 / 2 + sum_i min_d (s_i d + m d^2 / 2)` over d in [down, up].
    """
    radius = radius.expand(slopes.shape[:-1])
    largest = slopes.abs().amax(-1).clamp_min(torch.finfo(slopes.dtype).tiny)
    low = torch.zeros_like(largest)
    high = slopes.norm(dim=-1) / radius.clamp_min(torch.finfo(slopes.dtype).tiny)
    with torch.no_grad():
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            change = _best_change(slopes, down, up, middle)
            too_far = change.norm(dim=-1) > radius
            low, high = torch.where(too_far, middle, low), torch.where(too_far, high, middle)
    change = _best_change(slopes, down, up, high)
    value: Tensor = (slopes * change + high.unsqueeze(-1) * change**2 / 2).sum(-1) - high * radius**2 / 2
    return value


def _best_change(slopes: Tensor, down: Tensor, up: Tensor, multiplier: Tensor) -> Tensor:
    free = -slopes / multiplier.unsqueeze(-1).clamp_min(torch.finfo(slopes.dtype).tiny)
    return torch.minimum(torch.maximum(free, down), up)


def _l1_in_box(slopes: Tensor, room: Tensor, radius: Tensor) -> Tensor:
    """Least change of rows over an l1 ball inside a box: `-m r - sum_i room_i max(|s_i| - m, 0)` at the best m.

    The best multiplier is the slope of the coordinate in which the budget ends when it is spent greedily.
    """
    size, order = slopes.abs().sort(dim=-1, descending=True)
    spent = room.gather(-1, order).cumsum(-1)
    enough = spent >= radius.expand(slopes.shape[:-1]).unsqueeze(-1)
    first = enough.to(torch.int64).argmax(-1, keepdim=True)
    multiplier = torch.where(enough.any(-1), size.gather(-1, first).squeeze(-1), 0.0)
    beyond = (slopes.abs() - multiplier.unsqueeze(-1)).clamp_min(0)
    return -multiplier * radius - (room * beyond).sum(-1)


def _few_pixels(gain: Tensor, count: Tensor, lead: int) -> Tensor:
    """Sum of the `count` most negative gains; all channels of a pixel change together."""
    pixels = gain.sum(lead).flatten(lead) if gain.ndim - lead >= 3 else gain.flatten(lead)
    ordered = pixels.clamp_max(0).sort(dim=-1).values
    allowed = torch.arange(ordered.shape[-1], device=gain.device) < count.unsqueeze(-1)
    found: Tensor = (ordered * allowed).sum(-1)
    return found
