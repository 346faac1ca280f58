"""Contract check of threats."""

import torch
from torch import Tensor

from robustly.randomness import KeyedGenerator
from robustly.testing.networks import require
from robustly.threats import Described, Threat, ThreatSet
from robustly.threats.contract import has_no_gradient

IMAGES = (3, 6, 5)


def check_threat(threat: Threat, *, shape: tuple[int, ...] = IMAGES, count: int = 5) -> None:
    """Check a threat against the contract of `robustly.threats.Threat` and `ThreatSet`.

    Finite sets, which list candidates (`EditSet`), are not checked for gradients and steps.

    Args:
        threat: the threat, with one extent above 0 for all examples.
        shape: of an input that it is defined for.
        count: inputs in a batch, at least 3.

    Raises:
        AssertionError: the first property that does not hold.
    """
    low, high = threat.box
    x = low + (high - low) * KeyedGenerator(0, torch.arange(count)).uniform(*shape)
    x[0] = x[0].round() if (low, high) == (0.0, 1.0) else x[0]  # values at the edge of the box
    before, state = x.clone(), torch.get_rng_state()
    allowed = threat.around(x)
    _check_value(threat, allowed)
    _check_identity(allowed, x)
    _check_moves(threat, allowed, x)
    _check_sizes(allowed)
    _check_limits(threat, allowed, x)
    if not has_no_gradient(threat):
        _check_gradient(threat, x)
        _check_ascent(threat, x)
    _check_independence(threat, x)
    _check_scaling(threat, x)
    _check_formats(threat, x)
    _check_words(allowed)
    require(torch.equal(x, before), "the inputs are changed in place")
    require(torch.equal(torch.get_rng_state(), state), "the global random state is changed")


def _draws(count: int) -> KeyedGenerator:
    return KeyedGenerator(3, torch.arange(count))


def _check_value(threat: Threat, allowed: ThreatSet) -> None:
    require(isinstance(threat, Threat), f"{type(threat).__name__} lacks a method or property of Threat")
    require(isinstance(allowed, ThreatSet), f"{type(allowed).__name__} lacks a method or property of ThreatSet")
    require(
        isinstance(allowed, threat.set_type),
        f"around() returns a {type(allowed).__name__}, set_type is another class",
    )
    require(hash(threat) == hash(threat.scaled(1.0)), "equal threats have different hashes")
    require(threat == threat.scaled(1.0), "a threat scaled by 1 differs from itself")
    require(threat != threat.scaled(0.5), "a threat scaled by 1/2 equals itself")
    require(":" in str(threat), f"the text form {str(threat)!r} is not KIND:SIZE")
    require(threat.words().endswith("."), "words() is not a sentence")


def _check_identity(allowed: ThreatSet, x: Tensor) -> None:
    identity = allowed.identity()
    require(len(identity) == len(x), "identity() does not have one entry per example")
    require(torch.equal(allowed.apply(identity), x), "apply(identity()) differs from the inputs")
    require((allowed.size(identity) == 0).all(), "the identity has a size other than 0")
    require(allowed.contains(identity).all(), "the identity is not contained")


def _check_moves(threat: Threat, allowed: ThreatSet, x: Tensor) -> None:
    draws = _draws(len(x))
    start = allowed.random_start(draws)
    stepped = nowhere = start
    if not hasattr(allowed, "candidates"):
        gradient = draws.fold("gradient").normal(*start.shape[1:]).to(start)
        stepped = allowed.step(start, gradient, allowed.default_step_size(5))
        nowhere = allowed.step(start, torch.zeros_like(gradient), allowed.default_step_size(5))
    far = allowed.project(start + 100 * draws.fold("far").normal(*start.shape[1:]).to(start))
    low, high = threat.box
    for theta, what in (
        (start, "a start"),
        (stepped, "a step"),
        (far, "a projection"),
        (nowhere, "a zero gradient"),
    ):
        require(
            theta.shape == start.shape and theta.dtype == start.dtype, f"{what} changes shape or dtype of theta"
        )
        require(allowed.contains(theta).all(), f"{what} leaves the set")
        images = allowed.apply(theta)
        require(images.shape == x.shape and images.dtype == x.dtype, f"apply() changes shape or dtype after {what}")
        inside = bool(((images >= low) & (images <= high)).all())
        require(inside, f"apply() leaves the box after {what}")
        require(
            torch.allclose(allowed.project(theta), theta, atol=1e-5), f"project() moves {what}, which is allowed"
        )
    require(not torch.equal(start, allowed.identity()), "a random start changes nothing")
    require(torch.equal(start, allowed.random_start(draws)), "the same random numbers give another start")


def _check_sizes(allowed: ThreatSet) -> None:
    draws = _draws(len(allowed.x))
    theta = allowed.random_start(draws)
    size = allowed.size(theta)
    require(
        size.shape == (len(theta),) and bool((size >= 0).all()), "size() is not a number of at least 0 per example"
    )
    require(allowed.radius.shape == size.shape, "radius is not (N,)")
    require((allowed.default_step_size(5) > 0).all(), "the default step size is not positive")
    require((size <= allowed.radius * 1.00001 + 1e-5).all(), "an allowed perturbation is larger than the radius")


def _check_limits(threat: Threat, allowed: ThreatSet, x: Tensor) -> None:
    """Compare contains() with size() for allowed points of the threat in the set of half its extent."""
    start = allowed.random_start(_draws(len(x)))
    half = threat.scaled(0.5).around(x)
    size, contained = half.size(start), half.contains(start)
    require((size > 0).any(), "size() is 0 after a random start")
    larger, smaller = size > half.radius * 1.01 + 1e-5, size < half.radius * 0.99 - 1e-5
    require(not (contained & larger).any(), "contains() accepts a perturbation larger than the radius")
    require(contained[smaller].all(), "contains() rejects a perturbation smaller than the radius")
    require(not allowed.contains(torch.full_like(start, torch.nan)).any(), "contains() accepts NaN")


def _check_ascent(threat: Threat, x: Tensor) -> None:
    """Step along the gradient of a linear objective of the inputs, in double precision."""
    allowed, draws = threat.around(x.double()), _draws(len(x))
    theta = allowed.random_start(draws).detach().requires_grad_()
    images = allowed.apply(theta)
    weight = draws.fold("weight").normal(*x.shape[1:]).to(images)
    (gradient,) = torch.autograd.grad((images * weight).sum(), theta)
    start = theta.detach()
    small, large = (allowed.step(start, gradient, share * allowed.radius) for share in (1e-3, 1.0))
    rise = ((allowed.apply(small) - images.detach()) * weight).sum()
    require(rise > 0, "a small step along the gradient does not raise the objective")
    shorter = (small - start).abs().amax() < (large - start).abs().amax()
    require(shorter, "a step of a thousandth of the radius is as long as one of the radius")


def _check_gradient(threat: Threat, x: Tensor) -> None:
    """Compare the gradient through apply() with central differences, in double precision."""
    allowed, draws, distance = threat.around(x.double()), _draws(len(x)), 1e-6
    jitter = 1e-4 * draws.fold("jitter").normal(*allowed.identity().shape[1:]).double()
    start = allowed.random_start(draws) + jitter  # away from the corners of projections and of the box
    theta = start.detach().requires_grad_()
    weight = draws.fold("weight").normal(*x.shape[1:]).to(theta)
    along = draws.fold("along").normal(*theta.shape[1:]).to(theta)

    def value(points: Tensor) -> Tensor:
        return (allowed.apply(points) * weight).flatten(1).sum(1)

    total = value(theta).sum()
    require(total.requires_grad, "no gradient flows through apply()")
    (gradient,) = torch.autograd.grad(total, theta, allow_unused=True)
    require(gradient is not None, "no gradient flows through apply()")
    predicted = (gradient * along).flatten(1).sum(1)
    measured = (value(start + distance * along) - value(start - distance * along)) / (2 * distance)
    near = torch.isclose(predicted, measured, rtol=1e-3, atol=1e-6)
    require(
        int((~near).sum()) <= 1, "the gradient through apply() disagrees with finite differences"
    )  # kinks are allowed


def _check_independence(threat: Threat, x: Tensor) -> None:
    everyone = torch.arange(len(x))
    whole = threat.around(x)
    start = whole.random_start(_draws(len(x)))
    for rows in (everyone.flip(0), everyone[::2], everyone[1:2]):
        own, part = threat.select(rows).around(x[rows]), whole.select(rows)
        theta = own.random_start(KeyedGenerator(3, rows))
        near = torch.allclose(theta, start[rows], atol=1e-6)
        require(near, "a start depends on the other examples of the batch or their order")
        same = torch.allclose(part.apply(theta), whole.apply(start)[rows], atol=1e-6)
        require(same, "select() gives other sets than around() for the same examples")
        require(torch.allclose(part.size(theta), own.size(theta)), "select() gives other sizes than around()")


def _check_scaling(threat: Threat, x: Tensor) -> None:
    still = threat.scaled(0.0).around(x)
    theta = still.random_start(_draws(len(x)))
    require(torch.allclose(still.apply(theta), x, atol=1e-6), "a threat of extent 0 changes inputs")
    extents = threat.extents_at((0.0, 0.5, 1.0))
    require(
        extents == sorted(extents) and all(extent > 0 for extent in extents),
        "extents_at() is not ascending or has 0",
    )
    require(threat.with_extent(extents[-1]) == threat, "with_extent() of the own extent gives another threat")
    if len(extents) == 1:  # whole numbers up to 1
        return
    smaller = threat.with_extent(extents[0])
    require((smaller.around(x).radius < threat.around(x).radius).all(), "a smaller extent gives no smaller radius")


def _check_words(allowed: ThreatSet) -> None:
    """Check the words of the identity and of a start, where the set describes perturbations."""
    if not isinstance(allowed, Described):
        return
    count, start = len(allowed.x), allowed.random_start(_draws(len(allowed.x)))
    require(allowed.describe(allowed.identity()) == ["unchanged"] * count, "the identity is not called unchanged")
    words = allowed.describe(start)
    require(len(words) == count and all(words), "describe() does not give one phrase per example")
    require("unchanged" not in words, "a random start is called unchanged")


def _check_formats(threat: Threat, x: Tensor) -> None:
    double = threat.around(x.double())
    theta = double.random_start(_draws(len(x)))
    require(double.apply(theta).dtype == torch.float64, "float64 inputs are returned in another dtype")
    require(double.contains(theta).all(), "a start of float64 inputs leaves the set")
    nothing = threat.around(x[:0])
    require(len(nothing.identity()) == 0, "an empty batch does not work")
