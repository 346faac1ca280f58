"""Lp balls: allowed images around each image of a batch, by norm, box and mask."""

from collections.abc import Callable
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from robustly.randomness import KeyedGenerator
from robustly.threats.contract import Images, PerExample, per_example
from robustly.threats.projections import project_l0, project_l1, project_l2

Mask = Float[Tensor, "..."]
Limit = float | Images

_TINY = 1e-12
L1_STEP_SHARE = 0.01  # an l1 step moves this share of the coordinates (Tramer and Boneh 2019)
L0_STEP_SHARE = 0.15  # an l0 step has this l1 length per coordinate (PGD0: 120000/255 for 3,072 coordinates)


def laid_out_like(x: Images, values: Images) -> Images:
    """Convert `values` to the dtype, the device and the memory format (channels-last) of `x`."""
    same = values.stride() == x.stride() and values.dtype == x.dtype and values.device == x.device
    return values if same else torch.empty_like(x).copy_(values)


class LpBall:
    """A ball around each of N images, cut by the box of valid values and by a mask.

    The parameters of a perturbation are the perturbed image itself: `apply` returns its argument.

    Args:
        x: original images `(N, ...)`.
        radius: `(N,)`, at least 0.
        box: least and largest valid value.
        mask: share of the radius that each value may use, in [0, 1], of a shape that broadcasts to an image: 0
            where nothing may change. Shares between 0 and 1 (one epsilon per pixel) exist under linf only. None
            allows all values to change.
    """

    norm: ClassVar[str]
    rounding: ClassVar[float] = 1e-5

    def __init__(self, x: Images, radius: PerExample, box: tuple[float, float], mask: Mask | None = None) -> None:
        self.x, self.radius, self.box, self.mask = x, radius, box, mask

    @cached_property
    def allowed(self) -> Bool[Tensor, "..."] | None:
        """Mask of the values of an image that may change, in the mask's shape; None for all."""
        return None if self.mask is None else self.mask > 0

    @property
    def low(self) -> Limit:
        """Least allowed values by box and mask."""
        return self.box[0] if self.allowed is None else torch.where(self.allowed, self.box[0], self.x)

    @property
    def high(self) -> Limit:
        """Largest allowed values by box and mask."""
        return self.box[1] if self.allowed is None else torch.where(self.allowed, self.box[1], self.x)

    @property
    def free_values(self) -> int:
        """Number of values of an image that may change."""
        size = self.x[:1].numel()
        return size if self.allowed is None else int(self.allowed.expand(self.x.shape[1:]).sum())

    def apply(self, theta: Images) -> Images:
        """Perturbed images: theta itself."""
        return theta

    def identity(self) -> Images:
        """Original images."""
        return self.x

    def clamp(self, points: Images) -> Images:
        """Nearest points in the box without changes outside the mask; the radius is ignored."""
        if self.allowed is None:
            return points.clamp(*self.box)
        return torch.where(self.allowed, points.clamp(*self.box), self.x)

    def along_free(self, direction: Images) -> Images:
        """Direction or gradient with zeros where the mask forbids changes."""
        return direction if self.allowed is None else direction * self.allowed

    def size(self, theta: Images) -> PerExample:
        """Length of each perturbation in the ball's norm."""
        raise NotImplementedError

    def contains(self, theta: Images) -> Bool[Tensor, " n"]:
        """True where the image is allowed, up to rounding (which grows with the values of the box)."""
        return self._inside(theta) & self.valid(theta)

    def valid(self, theta: Images) -> Bool[Tensor, " n"]:
        """True where the image lies in the box and differs from the original only where the mask allows it."""
        inside = in_box(theta, self.box)
        if self.allowed is None:
            return inside
        return inside & ((theta == self.x) | self.allowed).flatten(1).all(1)

    def default_step_size(self, steps: int) -> PerExample:
        """2.5 radii over the number of steps."""
        return 2.5 * self.radius / max(steps, 1)

    def select(self, index: Tensor) -> "LpBall":
        """Balls around some of the images."""
        return type(self)(self.x[index], self.radius[index], self.box, self.mask)

    def resized(self, radius: PerExample) -> "LpBall":
        """Balls of another radius around the same images."""
        return type(self)(self.x, radius, self.box, self.mask)

    def project(self, theta: Images) -> Images:
        """Nearest allowed image (Euclidean, exact for ball and box together)."""
        raise NotImplementedError

    def step(self, theta: Images, gradient: Images, step_size: PerExample) -> Images:
        """Projected step of length `step_size` in the steepest direction of the norm."""
        raise NotImplementedError

    def random_start(self, generator: KeyedGenerator) -> Images:
        """A random allowed image."""
        raise NotImplementedError

    def boundary_start(self, generator: KeyedGenerator) -> Images:
        """A random allowed image at the edge of the ball, as far as the box allows."""
        raise NotImplementedError

    def _inside(self, theta: Images) -> Bool[Tensor, " n"]:
        return self.size(theta) <= self.radius * (1 + self.rounding) + self._slack

    @property
    def _slack(self) -> float:
        """Rounding of values of the box."""
        return 1e-6 * max(1.0, abs(self.box[0]), abs(self.box[1]))


class LinfBall(LpBall):
    """Ball in which every value changes by at most the radius (times its share in the mask)."""

    norm: ClassVar[str] = "linf"
    rounding: ClassVar[float] = 1e-6

    def __init__(self, x: Images, radius: PerExample, box: tuple[float, float], mask: Mask | None = None) -> None:
        super().__init__(x, radius, box, mask)
        wide = per_example(radius, x) if mask is None else per_example(radius, x) * mask
        self.lower = (x - wide).clamp_min_(box[0])
        self.upper = (x + wide).clamp_max_(box[1])

    def project(self, theta: Images) -> Images:  # noqa: D102
        return theta.clamp(self.lower, self.upper)

    def step(self, theta: Images, gradient: Images, step_size: PerExample) -> Images:  # noqa: D102
        moved = gradient.sign().mul_(per_example(step_size, theta)).add_(theta)
        return moved.clamp_(self.lower, self.upper)

    def random_start(self, generator: KeyedGenerator) -> Images:  # noqa: D102
        noise = laid_out_like(self.x, generator.uniform(*self.x.shape[1:])).mul_(2.0).sub_(1.0)
        return self.project(self.x + noise.mul_(self._reach()))

    def boundary_start(self, generator: KeyedGenerator) -> Images:
        """Uniform noise scaled so that its largest value is the radius (Croce and Hein 2020)."""
        noise = laid_out_like(self.x, generator.uniform(*self.x.shape[1:])).mul_(2.0).sub_(1.0)
        largest = self.along_free(noise).flatten(1).abs().amax(1).clamp_min(_TINY)
        scaled = noise * per_example(self.radius / largest, self.x)
        return self.project(self.x + (scaled if self.mask is None else scaled * self.mask))

    def size(self, theta: Images) -> PerExample:
        """Largest change of a value; with a mask, relative to its share of the radius."""
        change = theta - self.x
        if self.mask is not None:
            change = change / torch.where(self.mask > 0, self.mask, 1.0)
        return change.flatten(1).abs().amax(1)

    def _inside(self, theta: Images) -> Bool[Tensor, " n"]:
        if self.mask is None:
            return super()._inside(theta)
        # per value: relative to a small share of the radius, the rounding of a pixel is large
        within = (theta - self.x).abs() <= self._reach() * (1 + self.rounding) + self._slack
        return within.flatten(1).all(1)

    def select(self, index: Tensor) -> "LinfBall":  # noqa: D102
        part = object.__new__(LinfBall)
        part.x, part.radius, part.box, part.mask = self.x[index], self.radius[index], self.box, self.mask
        part.lower, part.upper = self.lower[index], self.upper[index]
        return part

    def _reach(self) -> Images:
        wide = per_example(self.radius, self.x)
        return wide if self.mask is None else wide * self.mask


class L2Ball(LpBall):
    """Ball in which the perturbation has a Euclidean length of at most the radius."""

    norm: ClassVar[str] = "l2"

    def project(self, theta: Images) -> Images:  # noqa: D102
        return _project_flat(project_l2, self, theta)

    def step(self, theta: Images, gradient: Images, step_size: PerExample) -> Images:  # noqa: D102
        return self.project(theta + unit_length(self.along_free(gradient), 2) * per_example(step_size, theta))

    def random_start(self, generator: KeyedGenerator) -> Images:
        """Uniform in the ball, then projected on the box."""
        direction = self.along_free(generator.fold("direction").normal(*self.x.shape[1:]).to(self.x))
        share = generator.fold("length").uniform(1)[:, 0].to(self.x) ** (1.0 / max(self.free_values, 1))
        length = direction.flatten(1).norm(dim=1).clamp_min(_TINY)
        return self.project(self.x + direction * per_example(self.radius * share / length, self.x))

    def boundary_start(self, generator: KeyedGenerator) -> Images:
        """Gaussian direction with the length of the radius (Croce and Hein 2020)."""
        direction = self.along_free(generator.normal(*self.x.shape[1:]).to(self.x))
        length = direction.flatten(1).norm(dim=1).clamp_min(_TINY)
        return self.project(self.x + direction * per_example(self.radius / length, self.x))

    def size(self, theta: Images) -> PerExample:  # noqa: D102
        length: Tensor = torch.linalg.vector_norm((theta - self.x).flatten(1), dim=1)
        return length


class L1Ball(LpBall):
    """Ball in which the absolute changes sum to at most the radius."""

    norm: ClassVar[str] = "l1"

    def project(self, theta: Images) -> Images:  # noqa: D102
        return _project_flat(project_l1, self, theta)

    def step(self, theta: Images, gradient: Images, step_size: PerExample) -> Images:
        """Step along the coordinates with the largest gradients, except those already at the box."""
        flat, point = self.along_free(gradient).flatten(1), theta.flatten(1)
        stuck = ((point >= self.box[1]) & (flat > 0)) | ((point <= self.box[0]) & (flat < 0))
        size = flat.abs().masked_fill(stuck, 0.0)
        chosen = max(1, round(L1_STEP_SHARE * self.free_values))
        threshold = size.topk(chosen, dim=1).values[:, -1:]
        direction = flat.sign() * ((size >= threshold) & (size > 0))
        direction = direction / direction.abs().sum(1, keepdim=True).clamp_min(1.0)
        return self.project(theta + direction.view_as(theta) * per_example(step_size, theta))

    def random_start(self, generator: KeyedGenerator) -> Images:
        """Gaussian noise, projected (Croce and Hein 2021)."""
        return self.project(self.x + self.along_free(generator.normal(*self.x.shape[1:]).to(self.x)))

    def boundary_start(self, generator: KeyedGenerator) -> Images:
        """Same as `random_start`: the projection of that much noise lies on the edge."""
        return self.random_start(generator)

    def size(self, theta: Images) -> PerExample:  # noqa: D102
        return (theta - self.x).flatten(1).abs().sum(1)

    def default_step_size(self, steps: int) -> PerExample:
        """A fifth of the radius, for any number of steps (Tramer and Boneh 2019): sparse steps have to be long."""
        return 0.2 * self.radius


class L0Ball(LpBall):
    """Ball in which at most `radius` pixels change; a pixel counts once for all its channels."""

    norm: ClassVar[str] = "l0"

    def project(self, theta: Images) -> Images:  # noqa: D102
        pixels = pixels_of(self.x)
        low, high = (_as_pixels(limit, self.x) for limit in (self.low, self.high))
        delta = project_l0(pixels_of(theta) - pixels, low - pixels, high - pixels, self.radius[:, None])
        return laid_out_like(self.x, (pixels + delta).view(theta.shape)).clamp_(*self.box)

    def step(self, theta: Images, gradient: Images, step_size: PerExample) -> Images:
        """Long step along the gradient at unit l1 length; the projection keeps the best pixels (PGD0)."""
        return self.project(theta + unit_length(self.along_free(gradient), 1) * per_example(step_size, theta))

    def random_start(self, generator: KeyedGenerator) -> Images:
        """Random colours at random pixels."""
        low, high = self.box
        colours = generator.fold("colours").uniform(*self.x.shape[1:]).to(self.x) * (high - low) + low
        rank = self.random_pixel_order(generator.fold("pixels")).argsort(dim=1)
        chosen = (rank < self.radius[:, None]).unsqueeze(1)
        changed = torch.where(chosen, pixels_of(self.clamp(colours)), pixels_of(self.x))
        return laid_out_like(self.x, changed.view(self.x.shape))

    def random_pixel_order(self, generator: KeyedGenerator) -> Tensor:
        """Pixels of each image in a random order, `(N, P)`; those that the mask protects come last."""
        bits = generator.bits(pixels_of(self.x).shape[2])
        free = self.free_pixels
        return (
            bits.argsort(dim=1) if free is None else bits.masked_fill(~free, torch.iinfo(bits.dtype).max).argsort(1)
        )

    @cached_property
    def free_pixels(self) -> Bool[Tensor, " p"] | None:
        """Mask of the pixels of which a channel may change, `(P,)`; None for all."""
        if self.allowed is None:
            return None
        return pixels_of(self.allowed.expand(self.x.shape[1:])[None])[0].any(0)

    def boundary_start(self, generator: KeyedGenerator) -> Images:
        """Same as `random_start`, which changes as many pixels as allowed."""
        return self.random_start(generator)

    def size(self, theta: Images) -> PerExample:  # noqa: D102
        return (pixels_of(theta) != pixels_of(self.x)).any(1).sum(1).to(theta.dtype)

    def default_step_size(self, steps: int) -> PerExample:  # noqa: D102
        return torch.full_like(self.radius, L0_STEP_SHARE * self.x[:1].numel())

    def _inside(self, theta: Images) -> Bool[Tensor, " n"]:
        return self.size(theta) <= self.radius


def unit_length(gradient: Images, order: int) -> Images:
    """Gradient at unit norm, first divided by its largest entry: squares of very small gradients underflow."""
    largest = gradient.flatten(1).abs().amax(1)
    scaled = gradient / per_example(torch.where(largest > 0, largest, 1.0), gradient)
    length = torch.linalg.vector_norm(scaled.flatten(1), order, dim=1)
    return scaled / per_example(torch.where(largest > 0, length, 1.0), gradient)


def _project_flat(project: Callable[..., Tensor], ball: L1Ball | L2Ball, theta: Images) -> Images:
    centre = ball.x.flatten(1)
    low, high = (limit if isinstance(limit, float) else limit.flatten(1) for limit in (ball.low, ball.high))
    delta = project(theta.flatten(1) - centre, low - centre, high - centre, ball.radius[:, None])
    return laid_out_like(ball.x, (centre + delta).view(theta.shape)).clamp_(*ball.box)


def pixels_of(x: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, "n c p"]:
    """`(N, C, H, W)` as `(N, C, H * W)`; flat inputs `(N, D)` are D pixels of one channel."""
    return x.flatten(2) if x.ndim > 2 else x.unsqueeze(1)


def _as_pixels(limit: Limit, x: Images) -> float | Float[Tensor, "n c p"]:
    return limit if isinstance(limit, float) else pixels_of(limit)


def in_box(x: Images, box: tuple[float, float]) -> Bool[Tensor, " n"]:
    """True where all values of the image are valid."""
    flat = x.flatten(1)
    return ((flat >= box[0]) & (flat <= box[1])).all(1)
