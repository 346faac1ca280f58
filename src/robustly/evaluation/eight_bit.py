"""Adversarial images of 8 bits: the search from a success to a misclassified image that a file can hold.

The first success of an attack often lies just behind the boundary, and rounding moves it back. An attacker who
saves files searches until the rounded image is misclassified.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustly.attacks.core.contract import frozen
from robustly.attacks.core.model_access import input_gradient, logits_of
from robustly.evaluation.parts import Arrays, Task
from robustly.evaluation.recording import as_array
from robustly.evaluation.target import EvaluationTarget, attack_generator
from robustly.evidence import EightBitImages, StoredImages
from robustly.evidence.schema import AttackColumns, Flags, Single, Whole
from robustly.objectives import ClassificationGoal, margin
from robustly.randomness import KeyedGenerator
from robustly.threats import LpBall, ThreatSet
from robustly.threats.eight_bit import WHITE, EightBit, in_8_bits

_STEPS = 20  # the step sizes below are relative to a set's own for so many steps
_NEAR = (0.25, 0.5) * 5
_FAR = (2.0,) * 5 + (1.0,) * 5 + (0.5,) * 5 + (0.25,) * 5
_SHARES = (1.0, 1.05, 1.0, 1.15, 1.0, 1.4, 1.0, 2.0)  # of the change of the success, before it is rounded at random


def save_in_8_bits(
    target: EvaluationTarget, name: str, columns: AttackColumns, images: StoredImages
) -> EightBitImages:
    """Search for a misclassified 8-bit image of each example that an attack broke.

    The success is rounded into the threat set. Where that image is classified correctly, gradient ascent on the
    margin starts at the success, and then at a random point; every iterate is rounded and tested. At last points
    on the ray through the success are rounded at random, for models without gradients.

    Args:
        target: the model, the data and the threat.
        name: name of the attack, on which random numbers depend.
        columns: columns of the attack, `broken` by it alone; `broken_8bit` and `passes_8bit` are filled in.
        images: its adversarial images; those outside the threat set are not used.
    """
    data_ids = as_array(target.data.ids)
    row_of = {identity: row for row, identity in enumerate(data_ids.tolist())}
    rows = np.array([row_of[identity] for identity in images.ids.tolist()], dtype=np.int64)
    kept = images.only(columns.broken[rows])
    rows = rows[columns.broken[rows]]
    points = kept.images if kept.theta is None else kept.theta
    saved = [nothing_saved(target)]
    chunks = [as_array(chunk) for chunk in target.chunks(torch.arange(len(rows)))]
    parts = target.crew.share(
        Task("8bit", name, target.threat.extent_text),
        [{"rows": rows[chunk], "points": points[chunk[0] : chunk[-1] + 1]} for chunk in chunks],
        lambda part: save_part(target, name, part),
    )
    for chunk, part in zip(chunks, parts, strict=True):
        here = rows[chunk]
        columns.passes_8bit[here] = part["passes"]
        columns.broken_8bit[here[part["found"]]] = True
        theta = part["theta"] if kept.theta is not None else None
        saved.append(EightBitImages(data_ids[here[part["found"]]], part["levels"], theta))
    return EightBitImages.joined(saved)


def save_part(target: EvaluationTarget, name: str, part: Arrays) -> Arrays:
    """Search for the 8-bit images of one batch: `rows`, and `points` from which to start."""
    device = target.data.device
    rows, points = torch.from_numpy(part["rows"]).to(device), torch.from_numpy(part["points"]).to(device)
    search = _search(target, name, rows, points)
    return {
        "passes": as_array(search.passes),
        "found": as_array(search.found),
        "levels": as_array(search.levels[search.found]),
        "theta": as_array(search.theta[search.found], torch.float32),
    }


@dataclass(frozen=True)
class SearchedAgain:
    """A repeated search.

    Args:
        found: mask of the examples that have a misclassified 8-bit image, `(M,)`.
        passes: forward and backward passes spent on each example, `(M,)`.
    """

    found: Flags
    passes: Whole


def search_again(target: EvaluationTarget, name: str, rows: Tensor, points: Tensor) -> SearchedAgain:
    """Repeat the search, batch by batch.

    Args:
        target: the model, the data and the threat.
        name: name of the attack.
        rows: rows of the examples, `(M,)`.
        points: parameters of its successes, `(M, ...)`.
    """
    places = target.chunks(torch.arange(len(rows), device=rows.device))

    def work(part: Arrays) -> Arrays:
        place = places[int(part["batch"][0])]
        found = _search(target, name, rows[place], points[place])
        return {"found": as_array(found.found), "passes": as_array(found.passes)}

    parts = target.crew.share(
        Task("8bit again", name, target.threat.extent_text),
        [{"batch": np.array([number])} for number in range(len(places))],
        work,
    )
    found = [*parts]
    return SearchedAgain(
        np.concatenate([np.zeros(0, dtype=bool), *(one["found"] for one in found)]),
        np.concatenate([np.zeros(0, dtype=np.int64), *(one["passes"] for one in found)]),
    )


@dataclass(frozen=True)
class Searched:
    """A search for 8-bit images that reach a goal.

    Args:
        found: mask of the examples that have one, `(M,)`.
        passes: forward and backward passes spent on each example, `(M,)`.
        levels: the images found, `(H, ...)` uint8.
        theta: their parameters, `(H, ...)`; None for Lp balls.
    """

    found: Flags
    passes: Whole
    levels: NDArray[np.uint8]
    theta: Single | None


def search_for(
    target: EvaluationTarget, rows: Tensor, start: Tensor, goal: ClassificationGoal, generator: KeyedGenerator
) -> Searched:
    """Search one batch for 8-bit images that reach a goal, as `save_in_8_bits` does for misclassified ones.

    Args:
        target: the model, the data and the threat.
        rows: rows of the examples, `(M,)`.
        start: parameters of successes in floating point, `(M, ...)`.
        goal: the goal of each example, such as a class.
        generator: keyed by the examples.
    """
    search = _searched(target, rows, start, goal, generator)
    return Searched(
        as_array(search.found),
        as_array(search.passes),
        as_array(search.levels[search.found]),
        None if isinstance(search.allowed, LpBall) else as_array(search.theta[search.found], torch.float32),
    )


def nothing_saved(target: EvaluationTarget) -> EightBitImages:
    """The 8-bit images of an attack without successes."""
    return EightBitImages(np.zeros(0, np.int64), np.zeros((0, *target.data.images.shape[1:]), np.uint8))


@dataclass(frozen=True)
class _Search:
    """The search on a batch; the tensors of results are filled in while it runs.

    Args:
        target: the model, the data and the threat.
        allowed: threat sets of the examples.
        goal: misclassification, or a class.
        levels: the 8-bit images found so far, `(N, ...)` uint8.
        theta: their parameters.
        found: mask of the examples that have one, `(N,)`.
        passes: forward and backward passes spent on each example, `(N,)`.
    """

    target: EvaluationTarget
    allowed: ThreatSet
    goal: ClassificationGoal
    levels: Tensor
    theta: Tensor
    found: Tensor
    passes: Tensor

    @property
    def open(self) -> Tensor:
        """Positions of the examples without an image, `(M,)`."""
        return (~self.found).nonzero()[:, 0]

    def test(self, here: Tensor, theta: Tensor) -> None:
        """Round points `(M, ...)` of the examples at the positions `here`; keep the misclassified images."""
        if len(here) == 0:
            return
        saved = in_8_bits(self.allowed.select(here), theta)
        with torch.no_grad():
            logits = logits_of(self.target.model, saved.images())
        self.passes[here] += 1
        hit = saved.inside & self.goal.select(here).reached(logits)
        self.levels[here[hit]], self.theta[here[hit]], self.found[here[hit]] = saved.levels[hit], theta[hit], True

    def ascend(self, here: Tensor, theta: Tensor, sizes: tuple[float, ...]) -> None:
        """Gradient ascent on the margin of the rounded point; the point itself keeps the fractions of a level."""
        for size in sizes:
            if len(here) == 0:
                return
            allowed = self.allowed.select(here)
            saved = in_8_bits(allowed, theta)
            logits, gradient = self._gradient(here, allowed, theta, saved)
            self.passes[here] += 2
            hit = saved.inside & self.goal.select(here).reached(logits)
            self.test(here[hit], theta[hit])  # a verdict is that of a separate forward pass
            going = ~self.found[here] & gradient.flatten(1).any(1)
            allowed, theta, here = allowed.select(going), theta[going], here[going]
            theta = allowed.step(theta, gradient[going], size * allowed.default_step_size(_STEPS))
        self.test(here, theta)

    def _gradient(self, here: Tensor, allowed: ThreatSet, theta: Tensor, saved: EightBit) -> tuple[Tensor, Tensor]:
        """Logits of the rounded images, and the gradient of their margin, taken through the rounding to theta."""
        images = saved.images().requires_grad_()
        logits = logits_of(self.target.model, images)
        gradient = input_gradient(margin(logits, self.goal.select(here)).sum(), images)
        if not isinstance(allowed, LpBall):
            theta = theta.detach().requires_grad_()
            rendered = allowed.apply(theta)
            gradient = input_gradient((rendered * gradient.to(rendered)).sum(), theta)
        return logits.detach(), gradient.to(theta)


def _search(target: EvaluationTarget, name: str, rows: Tensor, start: Tensor) -> _Search:
    """Search from the parameters `(M, ...)` of successes."""
    goal = ClassificationGoal(target.data.labels[rows])
    return _searched(target, rows, start, goal, attack_generator(target, name, rows).fold("8bit"))


def _searched(
    target: EvaluationTarget, rows: Tensor, start: Tensor, goal: ClassificationGoal, generator: KeyedGenerator
) -> _Search:
    """Search from the parameters `(M, ...)` of successes for images that reach a goal."""
    x = target.data.floats(rows)
    allowed, start = target.threat.around(x), start.to(x)
    search = _Search(
        target,
        allowed,
        goal,
        levels=torch.zeros_like(x, dtype=torch.uint8),
        theta=start.clone(),
        found=torch.zeros_like(rows, dtype=torch.bool),
        passes=torch.zeros_like(rows),
    )
    with frozen(target.model):
        search.test(search.open, start)
        search.ascend(search.open, start[search.open], _NEAR)
        search.ascend(search.open, start[search.open], _FAR)
        if not bool(search.found.all()):
            anywhere = allowed.random_start(generator.fold("start"))
            search.ascend(search.open, anywhere[search.open], _FAR)
        for turn, share in enumerate(_SHARES):
            here = search.open
            if len(here):
                draws = generator.fold("rounding", turn).select(here)
                search.test(here, _rounded_at_random(allowed.select(here), start[here], share, draws))
    return search


def _rounded_at_random(allowed: ThreatSet, theta: Tensor, share: float, draws: KeyedGenerator) -> Tensor:
    """A point on the ray from the clean image through theta, with noise that makes its rounding random."""
    point = allowed.identity() + share * (theta - allowed.identity())
    if isinstance(allowed, LpBall):
        return allowed.project(point + (draws.uniform(*theta.shape[1:]).to(theta) - 0.5) / WHITE)
    point = allowed.project(point)
    return allowed.step(point, draws.normal(*theta.shape[1:]).to(theta), allowed.default_step_size(5 * _STEPS))
