"""Diagnostics of outputs and gradients of the model, at a few passes per image."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from robustly.attacks.core.contract import frozen
from robustly.attacks.core.model_access import logits_of
from robustly.evaluation.diagnostics.probe import VARIES, Probe, spread_of_outputs
from robustly.evaluation.diagnostics.reference import search_by_queries
from robustly.evaluation.diagnostics.significance import TOLERATED, Excess
from robustly.evidence import Finding
from robustly.objectives import difference_of_logits_ratio, margin
from robustly.randomness import KeyedGenerator, derive_seed
from robustly.threats.balls import LpBall
from robustly.threats.contract import has_no_gradient

NO_GRADIENT = "The threat is a finite set without gradients: its elements are tried one by one."
NO_IMAGE = "The model misclassifies all images: there is nothing to test."
VANISHING = 0.01  # share of images whose gradient of cross-entropy may be useless
LEAST_COSINE = 0.5  # smaller cosine: the directions of two gradients differ
GIVEN_TRAINING = "The model was given in training mode"
"""Beginning of sentences on the mode in which the caller gave the model."""


def nan_logits(probe: Probe) -> Finding:
    """Find NaN or infinite logits on clean images."""
    bad = int((~probe.logits.isfinite().all(1)).sum())
    words = f"{bad} of {probe.total} clean images have NaN or infinite logits."
    return Finding("nan_logits", "logits are finite", bad == 0, float(bad), "0 images", words)


def constant_output(probe: Probe) -> Finding:
    """Find a model that returns the same logits for all images."""
    title, threshold = "logits depend on the image", "any difference"
    images = probe.target.data.pixels(probe.rows).flatten(1)
    if bool((images == images[:1]).all()):
        return Finding("constant_output", title, None, None, threshold, "All images of the sample are the same.")
    spread = float((probe.logits - probe.logits[:1]).abs().max().nan_to_num(0.0, 0.0, 0.0))
    words = (
        "The model returns the same logits for every image."
        if spread == 0
        else "The logits of different images differ."
    )
    return Finding("constant_output", title, spread > 0, spread, threshold, words)


def randomized(probe: Probe) -> Finding:
    """Compare five outputs for the same images, in evaluation mode and in the mode of the given model."""
    model, varies = probe.target.model, probe.varies
    first = probe.target.data.floats(probe.first)
    if model_is_training(model) and len(first) > 1:
        with probe.seeded("as given"), _buffers_kept(model), torch.no_grad():
            usual = _given_logits(model, first) is not None  # some return a loss in training mode
            varies |= usual and spread_of_outputs(lambda: logits_of(model, first)) > VARIES
    words = "Five outputs for the same images agree."
    if probe.varies:
        words = (
            "The model's outputs for the same images differ from call to call. Attack "
            "ExpectationOverTransformation(model), the average over its randomness."
        )
    elif varies:
        words = (
            f"{GIVEN_TRAINING}, in which its outputs for the same images differ from call to call; in evaluation "
            "mode they agree. Call model.eval()."
        )
    return Finding(
        "randomized", "outputs for the same image agree", not varies, None, "unit logits within 1e-4", words
    )


def eval_mode(probe: Probe) -> Finding:
    """Compare outputs of a model in training mode with those in evaluation mode."""
    model = probe.target.model
    title, threshold = "evaluation mode", "no difference"
    with frozen(model):
        stubborn = sum(getattr(part, "training", False) for part in model.modules())
    if stubborn:
        words = f"{stubborn} modules stay in training mode after model.eval()."
        return Finding("eval_mode", title, False, float(stubborn), threshold, words)
    first = probe.target.data.floats(probe.first)
    if not model_is_training(model) or len(first) < 2:
        return Finding("eval_mode", title, True, 0.0, threshold, "Training mode is off, or changes nothing.")
    with probe.seeded("as given"), _buffers_kept(model), torch.no_grad():
        given = _given_logits(model, first)
    if given is None:
        words = f"{GIVEN_TRAINING}, in which it returns no logits. The other tests use evaluation mode."
        return Finding("eval_mode", title, False, None, threshold, words)
    with probe.seeded("as given"), frozen(model), torch.no_grad():
        evaluated = logits_of(model, first)
    difference = float((given - evaluated).abs().max().nan_to_num(0.0, 0.0, 0.0))
    matters = difference > VARIES * max(1.0, float(evaluated.abs().max().nan_to_num(0.0, 0.0, 0.0)))
    words = "Training mode is off, or changes nothing."
    if matters:
        words = (
            f"{GIVEN_TRAINING}, in which its outputs differ from those in evaluation mode "
            "(dropout, batch statistics). The other tests use evaluation mode: call model.eval()."
        )
    return Finding("eval_mode", title, not matters, difference, threshold, words)


def _given_logits(model: nn.Module, images: Tensor) -> Tensor | None:
    """Logits in the mode of the given model; None if it raises or returns something else there, such as a loss."""
    try:
        logits = logits_of(model, images)
    except Exception:  # of the user's code
        return None
    return logits if logits.ndim == 2 and len(logits) == len(images) else None


def softmax_output(probe: Probe) -> Finding:
    """Find probabilities instead of logits."""
    sums, low, high = probe.logits.sum(1), probe.logits.amin(), probe.logits.amax()
    found = bool((sums - 1).abs().max() <= 1e-5 and low > -1e-5 and high < 1 + 1e-5)
    words = "Outputs are not probabilities."
    if found:
        words = "Outputs are non-negative and add up to one: remove the final softmax, because attacks need logits."
    return Finding("softmax_output", "outputs are logits", not found, None, "rows that sum to 1", words)


def dynamic(probe: Probe) -> Finding:
    """Find gradient functions called inside the forward pass: optimisation at test time."""
    calls = 0
    watched = {torch.autograd.grad.__code__, torch.autograd.backward.__code__}

    def count_call(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_code in watched

    x = probe.target.data.floats(probe.rows[:2]).requires_grad_()
    with probe.seeded("dynamic"), frozen(probe.target.model):
        before = sys.getprofile()
        sys.setprofile(count_call)
        try:
            logits_of(probe.target.model, x)
        finally:
            if before is None or callable(before):
                sys.setprofile(before)
            else:  # a cProfile.Profile, which cannot be set again but enabled
                before.enable()
    words = "The forward pass takes no gradients."
    if calls:
        words = (
            f"The forward pass takes gradients ({calls} times): the model optimises at test time. Attacks that "
            "differentiate through it may miss adversarial examples that an adaptive attack finds."
        )
    return Finding("dynamic", "no optimisation inside the model", calls == 0, float(calls), "0 calls", words)


def blocked_gradient(probe: Probe) -> Finding:
    """Find logits without a gradient to the image."""
    title, threshold = "gradients pass through the model", "logits require gradients"
    if len(probe.correct) == 0:
        return Finding("blocked_gradient", title, None, None, threshold, NO_IMAGE)
    through = probe.gradients(probe.x[:1], probe.correct[:1], margin)[2]
    words = "Logits are connected to the image."
    if not through:
        search = search_by_queries(probe.target.threat.kind)
        words = (
            "Logits have no gradient to the image (detach, no_grad, or NumPy in the model?), so that gradient "
            f"attacks cannot work: replace the stage by BPDA(stage), and run {search}."
        )
    return Finding("blocked_gradient", title, through, None, threshold, words)


def zero_gradient(probe: Probe) -> Finding:
    """Find exactly zero gradients of DLR at the first point of APGD."""
    title = "gradients are not zero at the start of APGD"
    if len(probe.correct) == 0:
        return Finding("zero_gradient", title, None, None, "", NO_IMAGE)
    if has_no_gradient(probe.target.threat):
        return Finding("zero_gradient", title, None, None, "", NO_GRADIENT)
    seed = derive_seed(probe.target.seed, "diagnostics", "zero_gradient")
    generator = KeyedGenerator(seed, probe.target.data.ids[probe.correct])
    allowed = probe.target.threat.around(probe.x)
    start = allowed.boundary_start(generator) if isinstance(allowed, LpBall) else allowed.random_start(generator)
    gradient, value, _ = probe.gradients(start, probe.correct, difference_of_logits_ratio, allowed)
    # an adversarial start may be a maximum of DLR, with zero gradient
    flat = int(((gradient == 0).flatten(1).all(1) & ~(value > 0)).sum())
    found = Excess(flat, len(start), TOLERATED)
    words = f"{flat} of {len(start)} images have exactly zero gradient at a random point of the threat set "
    words += f"{found.words}."
    if not found.passed:
        search = search_by_queries(probe.target.threat.kind)
        words += f" Gradient attacks do not move: use BPDA, many random starts and {search}."
    return Finding("zero_gradient", title, found.passed, found.share, found.threshold, words)


def quantised_input(probe: Probe) -> Finding:
    """Find images whose gradient is exactly zero although one grey level of noise changes the logits."""
    title = "changes of the logits have a gradient"
    if len(probe.correct) == 0:
        return Finding("quantised_input", title, None, None, "", NO_IMAGE)
    low, high = probe.target.threat.box
    seed = derive_seed(probe.target.seed, "diagnostics", "noise")
    noise = KeyedGenerator(seed, probe.target.data.ids[probe.correct]).uniform(*probe.x.shape[1:]) < 0.5
    near = (probe.x + torch.where(noise, -1.0, 1.0) * (high - low) / 255).clamp(low, high)
    gradient, here = probe.at_images["margin"]
    there = probe.values(near, probe.correct, margin)
    moved = (there - here).abs() > 1e-6 * here.abs().clamp_min(1e-30)
    count = int(((gradient == 0).flatten(1).all(1) & moved).sum())
    found = Excess(count, len(here), TOLERATED)
    words = f"{count} of {len(here)} images have no gradient although noise of one grey level changes their logits "
    words += f"{found.words}."
    if not found.passed:
        words += " The model has a step function (rounding, thresholds): attack through BPDA(stage)."
    return Finding("quantised_input", title, found.passed, found.share, found.threshold, words)


def vanishing_gradients(probe: Probe) -> Finding:
    """D6: find gradients of cross-entropy that are zero, NaN, or useless by rounding.

    Once a probability is 1 in float32, the gradient lacks the part of the label. This is harmless if its direction
    is still that of the gradient computed in float64.
    """
    title = "gradients do not vanish"
    if len(probe.correct) == 0:
        return Finding("D6", title, None, None, "", NO_IMAGE)
    gradient, exact = probe.at_images["cross_entropy"][0], probe.at_images["cross_entropy_64"][0]
    useless = ~(_cosine(gradient, exact) >= LEAST_COSINE)  # true for NaN
    flat = (gradient == 0).flatten(1).all(1)
    ones = int((probe.logits[torch.isin(probe.rows, probe.correct)].softmax(1).amax(1) == 1).sum())
    by_margin = (probe.at_images["margin"][0] == 0).flatten(1).all(1)
    found = Excess(int(useless.sum()), len(useless), VANISHING)
    words = (
        f"The gradient of cross-entropy is useless for {int(useless.sum())} of {len(gradient)} images "
        f"(exactly zero for {int(flat.sum())}); a probability is 1 in float32 for {ones} {found.words}."
    )
    if not found.passed:
        search = search_by_queries(probe.target.threat.kind)
        words += (
            f" No objective has a gradient there: use BPDA, random starts and {search}."
            if bool((by_margin | ~useless).all())
            else " Use margin, DLR or scaled_cross_entropy, which do not saturate."
        )
    return Finding("D6", title, found.passed, found.share, found.threshold, words)


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    """Cosine of each row, zero where a vector is zero. Scaled first, so that squares do not underflow."""
    one, other = (
        flat / flat.abs().amax(1, keepdim=True).clamp_min(1e-300)
        for flat in (first.flatten(1).double(), second.flatten(1).double())
    )
    cosine: Tensor = torch.nn.functional.cosine_similarity(one, other)
    return cosine


def linearity(probe: Probe) -> Finding:
    """D12: rise of the margin over a step of length epsilon, divided by the rise that the gradient predicts."""
    title = "gradients predict the effect of a step"
    threshold = "ratio not significantly outside [0.1, 10] for more than half of the images"
    threat = probe.target.threat
    if len(probe.correct) == 0:
        return Finding("D12", title, None, None, threshold, NO_IMAGE)
    if float(threat.extent) == 0:
        return Finding("D12", title, None, None, threshold, "Epsilon is 0.")
    if has_no_gradient(threat):
        return Finding("D12", title, None, None, threshold, NO_GRADIENT)
    allowed = threat.around(probe.x)
    origin = allowed.identity()
    if isinstance(allowed, LpBall):
        gradient, before = probe.at_images["margin"]
    else:
        gradient, before, _ = probe.gradients(origin, probe.correct, margin, allowed)
    length = allowed.default_step_size(1) if threat.kind == "l0" else allowed.radius
    point = allowed.step(origin, gradient.nan_to_num(0.0, 0.0, 0.0), length)
    predicted = (gradient * (point - origin)).flatten(1).sum(1)
    actual = probe.values(allowed.apply(point), probe.correct, margin) - before
    known = (predicted > 0) & predicted.isfinite() & actual.isfinite()
    if not bool(known.any()):
        words = "No gradient predicts a rise of the margin: see D6 and zero_gradient."
        return Finding("D12", title, None, None, threshold, words)
    ratios = actual[known] / predicted[known]
    ratio = float(ratios.median())
    found = Excess(int(((ratios < 0.1) | (ratios > 10)).sum()), len(ratios), 0.5)
    words = (
        f"A step of length epsilon raises the margin by {ratio:.2g} times the predicted rise (median); the ratio "
    )
    words += f"is outside [0.1, 10] for {found.hits} of {found.count} {found.words}."
    if not found.passed:
        words += " Gradients are poor predictions at this scale: use smaller steps, restarts, and "
        words += f"{search_by_queries(threat.kind)}."
    return Finding("D12", title, found.passed, ratio, threshold, words)


def model_is_training(model: nn.Module) -> bool:
    """Return True if any module is in training mode."""
    return any(getattr(part, "training", False) for part in model.modules())


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Restore buffers, such as running statistics, after forward passes in training mode."""
    kept: list[tuple[Tensor, Tensor]] = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)
