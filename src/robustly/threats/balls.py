"""The sets of images that an adversary may choose from, one around each image of a batch."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from robustly.randomness import KeyedGenerator
from robustly.threats.projections import project_l0, project_l1, project_l2

Images = Float[Tensor, "n ..."]
PerExample = Float[Tensor, " n"]

_TINY = 1e-12
L1_STEP_SHARE = 0.01  # an l1 step moves this share of the coordinates (Tramer and Boneh 2019)
L0_STEP_SHARE = 0.15  # an l0 step has this l1 length per coordinate (PGD0: 120000/255 for 3,072 coordinates)


def per_example(values: Shaped[Tensor, " n"], like: Images) -> Shaped[Tensor, "n ..."]:
    """Reshape `(N,)` so that it broadcasts against a batch of images."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def laid_out_like(x: Images, values: Images) -> Images:
    """`values` in the number format, on the device and in the memory format (channels-last) of `x`."""
    same = values.stride() == x.stride() and values.dtype == x.dtype and values.device == x.device
    return values if same else torch.empty_like(x).copy_(values)


@runtime_checkable
class Ball(Protocol):
    """A ball of the box around each of N images.

    `project`, `step` and `random_start` return allowed images; `distance` is in the ball's norm.
    """

    x: Images
    radius: PerExample

    def __init__(self, x: Images, radius: PerExample, box: tuple[float, float]) -> None: ...

    def project(self, x_adv: Images) -> Images:
        """The nearest allowed image."""
        ...

    def step(self, x_adv: Images, gradient: Images, step_size: PerExample) -> Images:
        """One projected step of length `step_size` in the steepest direction of the norm."""
        ...

    def random_start(self, generator: KeyedGenerator) -> Images:
        """A random allowed image."""
        ...

    def boundary_start(self, generator: KeyedGenerator) -> Images:
        """A random allowed image at the edge of the ball, up to what the box allows."""
        ...

    def distance(self, x_adv: Images) -> PerExample:
        """How far each image is from the centre."""
        ...

    def contains(self, x_adv: Images) -> Bool[Tensor, " n"]:
        """Whether each image is allowed, up to rounding."""
        ...

    def default_step_size(self, steps: int) -> PerExample:
        """A step size that crosses the ball in `steps` steps with something to spare."""
        ...

    def select(self, index: Tensor) -> "Ball":
        """The balls around some of the images."""
        ...


class LinfBall:
    """Every value may change by at most the radius."""

    def __init__(self, x: Images, radius: PerExample, box: tuple[float, float]) -> None:
        self.x, self.radius, self.box = x, radius, box
        wide = per_example(radius, x)
        self.lower = (x - wide).clamp_min_(box[0])
        self.upper = (x + wide).clamp_max_(box[1])

    def project(self, x_adv: Images) -> Images:  # noqa: D102
        return x_adv.clamp(self.lower, self.upper)

    def step(self, x_adv: Images, gradient: Images, step_size: PerExample) -> Images:  # noqa: D102
        moved = gradient.sign().mul_(per_example(step_size, x_adv)).add_(x_adv)
        return moved.clamp_(self.lower, self.upper)

    def random_start(self, generator: KeyedGenerator) -> Images:  # noqa: D102
        noise = laid_out_like(self.x, generator.uniform(*self.x.shape[1:])).mul_(2.0).sub_(1.0)
        return self.project(self.x + noise.mul_(per_example(self.radius, self.x)))

    def boundary_start(self, generator: KeyedGenerator) -> Images:
        """Uniform noise scaled so that its largest value is the radius (Croce and Hein 2020)."""
        noise = laid_out_like(self.x, generator.uniform(*self.x.shape[1:])).mul_(2.0).sub_(1.0)
        largest = noise.flatten(1).abs().amax(1).clamp_min(_TINY)
        return self.project(self.x + noise * per_example(self.radius / largest, self.x))

    def distance(self, x_adv: Images) -> PerExample:  # noqa: D102
        return (x_adv - self.x).flatten(1).abs().amax(1)

    def contains(self, x_adv: Images) -> Bool[Tensor, " n"]:  # noqa: D102
        return _inside(self.distance(x_adv), self.radius, 1e-6, self.box) & _in_box(x_adv, self.box)

    def default_step_size(self, steps: int) -> PerExample:  # noqa: D102
        return 2.5 * self.radius / max(steps, 1)

    def select(self, index: Tensor) -> "LinfBall":  # noqa: D102
        part = object.__new__(LinfBall)
        part.x, part.radius, part.box = self.x[index], self.radius[index], self.box
        part.lower, part.upper = self.lower[index], self.upper[index]
        return part


class L2Ball:
    """The change may have a Euclidean length of at most the radius."""

    def __init__(self, x: Images, radius: PerExample, box: tuple[float, float]) -> None:
        self.x, self.radius, self.box = x, radius, box

    def project(self, x_adv: Images) -> Images:  # noqa: D102
        return _project_flat(project_l2, self, x_adv)

    def step(self, x_adv: Images, gradient: Images, step_size: PerExample) -> Images:  # noqa: D102
        return self.project(x_adv + _unit(gradient, 2) * per_example(step_size, x_adv))

    def random_start(self, generator: KeyedGenerator) -> Images:
        """Uniform in the ball, then projected on the box."""
        direction = generator.fold("direction").normal(*self.x.shape[1:]).to(self.x)
        share = generator.fold("length").uniform(1)[:, 0].to(self.x) ** (1.0 / self.x[0].numel())
        length = direction.flatten(1).norm(dim=1).clamp_min(_TINY)
        return self.project(self.x + direction * per_example(self.radius * share / length, self.x))

    def boundary_start(self, generator: KeyedGenerator) -> Images:
        """A Gaussian direction of the radius' length (Croce and Hein 2020)."""
        direction = generator.normal(*self.x.shape[1:]).to(self.x)
        length = direction.flatten(1).norm(dim=1).clamp_min(_TINY)
        return self.project(self.x + direction * per_example(self.radius / length, self.x))

    def distance(self, x_adv: Images) -> PerExample:  # noqa: D102
        length: Tensor = torch.linalg.vector_norm((x_adv - self.x).flatten(1), dim=1)
        return length

    def contains(self, x_adv: Images) -> Bool[Tensor, " n"]:  # noqa: D102
        return _inside(self.distance(x_adv), self.radius, 1e-5, self.box) & _in_box(x_adv, self.box)

    def default_step_size(self, steps: int) -> PerExample:  # noqa: D102
        return 2.5 * self.radius / max(steps, 1)

    def select(self, index: Tensor) -> "L2Ball":  # noqa: D102
        return L2Ball(self.x[index], self.radius[index], self.box)


class L1Ball:
    """The changes may add up to at most the radius."""

    def __init__(self, x: Images, radius: PerExample, box: tuple[float, float]) -> None:
        self.x, self.radius, self.box = x, radius, box

    def project(self, x_adv: Images) -> Images:  # noqa: D102
        return _project_flat(project_l1, self, x_adv)

    def step(self, x_adv: Images, gradient: Images, step_size: PerExample) -> Images:
        """Moves the coordinates with the largest gradients, leaving out those that the box lets go no further."""
        flat, point = gradient.flatten(1), x_adv.flatten(1)
        stuck = ((point >= self.box[1]) & (flat > 0)) | ((point <= self.box[0]) & (flat < 0))
        size = flat.abs().masked_fill(stuck, 0.0)
        chosen = max(1, round(L1_STEP_SHARE * flat.shape[1]))
        threshold = size.topk(chosen, dim=1).values[:, -1:]
        direction = flat.sign() * ((size >= threshold) & (size > 0))
        direction = direction / direction.abs().sum(1, keepdim=True).clamp_min(1.0)
        return self.project(x_adv + direction.view_as(x_adv) * per_example(step_size, x_adv))

    def random_start(self, generator: KeyedGenerator) -> Images:
        """Gaussian noise, projected (Croce and Hein 2021)."""
        return self.project(self.x + generator.normal(*self.x.shape[1:]).to(self.x))

    def boundary_start(self, generator: KeyedGenerator) -> Images:
        """As `random_start`: the projection of that much noise lies on the edge."""
        return self.random_start(generator)

    def distance(self, x_adv: Images) -> PerExample:  # noqa: D102
        return (x_adv - self.x).flatten(1).abs().sum(1)

    def contains(self, x_adv: Images) -> Bool[Tensor, " n"]:  # noqa: D102
        return _inside(self.distance(x_adv), self.radius, 1e-5, self.box) & _in_box(x_adv, self.box)

    def default_step_size(self, steps: int) -> PerExample:
        """A fifth of the radius, however many steps (Tramer and Boneh 2019): sparse steps have to be long."""
        return 0.2 * self.radius

    def select(self, index: Tensor) -> "L1Ball":  # noqa: D102
        return L1Ball(self.x[index], self.radius[index], self.box)


class L0Ball:
    """At most as many pixels may change as the radius says; a pixel counts once, whatever its channels."""

    def __init__(self, x: Images, radius: PerExample, box: tuple[float, float]) -> None:
        self.x, self.radius, self.box = x, radius, box

    def project(self, x_adv: Images) -> Images:  # noqa: D102
        pixels = _pixels(self.x)
        delta = project_l0(
            _pixels(x_adv) - pixels, self.box[0] - pixels, self.box[1] - pixels, self.radius[:, None]
        )
        return laid_out_like(self.x, (pixels + delta).view(x_adv.shape)).clamp_(*self.box)

    def step(self, x_adv: Images, gradient: Images, step_size: PerExample) -> Images:
        """A long step along the gradient of unit l1 length; the projection keeps what pays (PGD0)."""
        return self.project(x_adv + _unit(gradient, 1) * per_example(step_size, x_adv))

    def random_start(self, generator: KeyedGenerator) -> Images:
        """Random pixels take random colours."""
        low, high = self.box
        colours = generator.fold("colours").uniform(*self.x.shape[1:]).to(self.x) * (high - low) + low
        rank = generator.fold("pixels").bits(_pixels(self.x).shape[2]).argsort(dim=1).argsort(dim=1)
        chosen = (rank < self.radius[:, None]).unsqueeze(1)
        return laid_out_like(self.x, torch.where(chosen, _pixels(colours), _pixels(self.x)).view(self.x.shape))

    def boundary_start(self, generator: KeyedGenerator) -> Images:
        """As `random_start`, which changes as many pixels as it may."""
        return self.random_start(generator)

    def distance(self, x_adv: Images) -> PerExample:  # noqa: D102
        return (_pixels(x_adv) != _pixels(self.x)).any(1).sum(1).to(x_adv.dtype)

    def contains(self, x_adv: Images) -> Bool[Tensor, " n"]:  # noqa: D102
        return (self.distance(x_adv) <= self.radius) & _in_box(x_adv, self.box)

    def default_step_size(self, steps: int) -> PerExample:  # noqa: D102
        return torch.full_like(self.radius, L0_STEP_SHARE * self.x[:1].numel())

    def select(self, index: Tensor) -> "L0Ball":  # noqa: D102
        return L0Ball(self.x[index], self.radius[index], self.box)


def _unit(gradient: Images, order: int) -> Images:
    """The gradient at unit norm, however small it is: the squares of a confident network's would underflow."""
    largest = gradient.flatten(1).abs().amax(1)
    scaled = gradient / per_example(torch.where(largest > 0, largest, 1.0), gradient)
    length = torch.linalg.vector_norm(scaled.flatten(1), order, dim=1)
    return scaled / per_example(torch.where(largest > 0, length, 1.0), gradient)


def _project_flat(project: Callable[..., Tensor], ball: L1Ball | L2Ball, x_adv: Images) -> Images:
    centre = ball.x.flatten(1)
    low, high = ball.box
    delta = project(x_adv.flatten(1) - centre, low - centre, high - centre, ball.radius[:, None])
    return laid_out_like(ball.x, (centre + delta).view(x_adv.shape)).clamp_(low, high)


def _pixels(x: Images) -> Float[Tensor, "n c p"]:
    """`(N, C, H, W)` as `(N, C, H * W)`; flat inputs `(N, D)` are D pixels of one channel."""
    return x.flatten(2) if x.ndim > 2 else x.unsqueeze(1)


def _inside(
    distance: PerExample, radius: PerExample, relative: float, box: tuple[float, float]
) -> Bool[Tensor, " n"]:
    """Up to rounding, which grows with the values in the box: [0, 255] is coarser than [0, 1]."""
    return distance <= radius * (1 + relative) + 1e-6 * max(1.0, abs(box[0]), abs(box[1]))


def _in_box(x_adv: Images, box: tuple[float, float]) -> Bool[Tensor, " n"]:
    flat = x_adv.flatten(1)
    return ((flat >= box[0]) & (flat <= box[1])).all(1)
