"""Perturbed images as 8-bit files hold them: every value a multiple of 1/255."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from robustly.threats.balls import LinfBall, LpBall
from robustly.threats.contract import Images, Theta, ThreatSet

WHITE = 255
_NEAR = 1e-4  # of a level; float32 values of levels are off by less, and balls allow more (`LpBall.contains`)
_ORDERS = {"l1": 1, "l2": 2}


@dataclass(frozen=True)
class EightBit:
    """Images of 8 bits.

    Args:
        levels: values from 0 to 255, `(N, ...)` uint8.
        inside: True where the image is allowed, `(N,)`.
    """

    levels: UInt8[Tensor, "n ..."]
    inside: Bool[Tensor, " n"]

    def images(self) -> Float[Tensor, "n ..."]:
        """The images as inputs of the model, in [0, 1], float32: those of a data set with these pixels."""
        return self.levels.to(torch.float32).div_(WHITE)


def in_8_bits(allowed: ThreatSet, theta: Theta) -> EightBit:
    """Allowed images of 8 bits near perturbed images.

    In an Lp ball every value is rounded to the nearest level. If that leaves the ball, values are rounded towards
    the clean image instead, the nearest of them first, until the image is inside. This succeeds for every
    allowed image if the clean image has 8 bits itself. A clean image of other values has neighbours of 8 bits in
    the ball or not, and under a mask or l0 mostly not: `inside` states the result.

    In other sets the rendered image `apply(theta)` is rounded to the nearest levels, as on saving it. It is allowed
    if `theta` is.

    Args:
        allowed: threat sets of N examples.
        theta: parameters in the sets, `(N, ...)`.
    """
    if not isinstance(allowed, LpBall):
        rendered = allowed.apply(theta).detach()
        return EightBit(_pixels(rendered.double() * WHITE), allowed.contains(theta))
    found = EightBit(_rounded(allowed, theta), torch.ones_like(allowed.radius, dtype=torch.bool))
    return EightBit(found.levels, allowed.contains(found.images().to(theta)))


def _rounded(ball: LpBall, theta: Images) -> UInt8[Tensor, "n ..."]:
    """Levels of images near those of a ball, in the ball if possible."""
    clean, point = ball.x.double() * WHITE, theta.double() * WHITE
    low, high = _limits(ball)
    near = point.round().clamp(low, high)
    order = _ORDERS.get(ball.norm)
    if order is None:  # limits of each value are enough, or (l0) no rounding changes more pixels
        return _pixels(near)
    towards = torch.where(point >= clean, (point + _NEAR).floor(), (point - _NEAR).ceil()).clamp(low, high)
    extra = ((near - clean).abs() ** order - (towards - clean).abs() ** order).clamp_min(0.0).flatten(1)
    spent = ((towards - clean).abs() ** order).flatten(1).sum(1, keepdim=True)
    budget = (ball.radius.double()[:, None] * WHITE) ** order - spent
    # the largest changes by rounding are taken first, as many as the radius allows
    first = (point - towards).abs().flatten(1).argsort(dim=1, descending=True, stable=True)
    fits = extra.gather(1, first).cumsum(1) <= budget
    taken = torch.zeros_like(fits).scatter(1, first, fits)
    return _pixels(torch.where(taken.view_as(near), near, towards))


def _limits(ball: LpBall) -> tuple[Tensor, Tensor]:
    """Least and largest levels that the box, and under linf the ball, allow for each value."""
    low, high = torch.as_tensor(ball.low).to(ball.x), torch.as_tensor(ball.high).to(ball.x)
    if isinstance(ball, LinfBall):
        low, high = ball.lower, ball.upper
    least = (low.double() * WHITE - _NEAR).ceil()
    return least, torch.maximum((high.double() * WHITE + _NEAR).floor(), least)


def _pixels(levels: Float[Tensor, "n ..."]) -> UInt8[Tensor, "n ..."]:
    return levels.round().clamp(0, WHITE).to(torch.uint8)
