"""Sample of images for all diagnostics, with gradients and attacks."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import isnan

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from robustly.attacks.adaptive import forked_randomness, reseed
from robustly.attacks.core.contract import Attack, AttackResult, Images, frozen
from robustly.attacks.core.model_access import logits_of
from robustly.attacks.pgd import PGD, Keep
from robustly.attacks.registry import fgsm
from robustly.evaluation.diagnostics.reference import reference_attacks
from robustly.evaluation.target import EvaluationTarget
from robustly.objectives import ClassificationGoal, Objective, cross_entropy, margin
from robustly.randomness import KeyedGenerator, derive_seed
from robustly.threats import ThreatModel
from robustly.threats.contract import Theta, Threat, ThreatSet

AT_IMAGES: dict[str, Objective] = {
    "margin": margin,
    "cross_entropy": cross_entropy,
    "cross_entropy_64": lambda logits, goal: cross_entropy(logits.double(), goal),
}
COMPARED = 32  # images that a model is called with several times
VARIES = 1e-4  # L2 distance of L2-normalised logits above which two outputs differ


@dataclass(frozen=True)
class Budget:
    """The budget of the expensive diagnostics.

    Args:
        steps: steps of each PGD run.
        unbounded_steps: steps of PGD without a bound.
        restarts: starts of D9, in total.
        queries: queries per image of Square, or of sparse-RS under l0.
        few: number of images for random search and finite differences.
        points: points per image of random search.
        directions: number of directions of finite differences.
    """

    steps: int = 40
    unbounded_steps: int = 100
    restarts: int = 10
    queries: int = 1000
    few: int = 20
    points: int = 10_000
    directions: int = 32


@dataclass(frozen=True, eq=False)
class Probe:
    """A sample of the target's images, with outputs, gradients and attacks.

    The model runs in evaluation mode. The random numbers of randomised models are seeded, and PyTorch's own
    generators are restored.

    Args:
        target: the model, the data and the threat.
        count: number of images, from the first.
        budget: budget of the expensive diagnostics.
    """

    target: EvaluationTarget
    count: int = 200
    budget: Budget = Budget()

    @cached_property
    def rows(self) -> Int64[Tensor, " n"]:
        """Rows of the sample."""
        data = self.target.data
        return torch.arange(min(self.count, len(data)), device=data.device)

    @property
    def first(self) -> Int64[Tensor, " b"]:
        """The first rows, for comparisons of a model with itself."""
        return self.rows[: min(self.target.batch_size, COMPARED)]

    @cached_property
    def logits(self) -> Float[Tensor, "n k"]:
        """Clean logits of the sample."""
        with self.seeded("clean"):
            return self.target.logits(self.target.data.floats, self.rows)

    @cached_property
    def correct(self) -> Int64[Tensor, " m"]:
        """The correctly classified rows. Only these are attacked."""
        labels = self.target.data.labels[self.rows]
        return self.rows[(self.logits.argmax(1) == labels) & self.logits.isfinite().all(1)]

    @cached_property
    def x(self) -> Images:
        """The correctly classified images."""
        return self.target.data.floats(self.correct)

    @property
    def total(self) -> int:
        """Size of the sample."""
        return len(self.rows)

    def goal(self, rows: Int64[Tensor, " m"]) -> ClassificationGoal:
        """The goal of the adversary on some rows."""
        return ClassificationGoal(self.target.data.labels[rows])

    @contextmanager
    def seeded(self, purpose: str) -> Iterator[None]:
        """Seed the random numbers of the model; restores PyTorch's own generators at the end."""
        device = self.target.data.device
        with forked_randomness(device):
            reseed(derive_seed(self.target.seed, "diagnostics", purpose), device)
            yield

    @cached_property
    def varies(self) -> bool:
        """True if outputs for the same images differ, in evaluation mode."""
        first = self.target.data.floats(self.first)
        with self.seeded("varies"), frozen(self.target.model), torch.no_grad():
            return spread_of_outputs(lambda: logits_of(self.target.model, first)) > VARIES

    def gradients(
        self, points: Theta, rows: Int64[Tensor, " m"], objective: Objective, allowed: ThreatSet | None = None
    ) -> tuple[Theta, Float[Tensor, " m"], bool]:
        """Gradient and value of an objective at one point for each of some rows.

        Args:
            points: images, or with `allowed` the parameters of a threat, `(M, ...)`.
            rows: rows of the points.
            objective: the objective.
            allowed: the threat sets of the rows, which render the images.

        Returns:
            Gradients, which may be NaN; values; and False if the model has no gradient to its input.
        """
        (found,) = self._slopes(points, rows, [objective], allowed)
        return found

    @cached_property
    def at_images(self) -> dict[str, tuple[Images, Float[Tensor, " m"]]]:
        """Gradient and value of three objectives at the correct images, from one forward pass, by name."""
        found = self._slopes(self.x, self.correct, list(AT_IMAGES.values()))
        return {name: (gradient, value) for name, (gradient, value, _) in zip(AT_IMAGES, found, strict=True)}

    def _slopes(
        self,
        points: Theta,
        rows: Int64[Tensor, " m"],
        objectives: Sequence[Objective],
        allowed: ThreatSet | None = None,
    ) -> list[tuple[Theta, Float[Tensor, " m"], bool]]:
        """The result of `gradients` for several objectives, from one forward pass."""
        gradients = [[torch.zeros_like(points[:0])] for _ in objectives]
        values, through = [[points.new_zeros(0)] for _ in objectives], [True] * len(objectives)
        for first in range(0, len(points), self.target.batch_size):
            part = slice(first, first + self.target.batch_size)
            with self.seeded("slopes"), frozen(self.target.model):
                here = points[part].detach().clone().requires_grad_()
                images = here if allowed is None else _part_of(allowed, part).apply(here)
                logits, goal = logits_of(self.target.model, images), self.goal(rows[part])
                for place, objective in enumerate(objectives):
                    value, gradient = objective(logits, goal), None
                    if value.requires_grad:
                        again = place + 1 < len(objectives)
                        (gradient,) = torch.autograd.grad(value.sum(), here, allow_unused=True, retain_graph=again)
                    through[place] &= gradient is not None
                    gradients[place].append(torch.zeros_like(here) if gradient is None else gradient)
                    values[place].append(value.detach().to(here.dtype))
        joined = zip(gradients, values, through, strict=True)
        return [(torch.cat(slopes), torch.cat(found), passed) for slopes, found, passed in joined]

    def broken_by_one_step(self, factor: float = 1.0) -> Bool[Tensor, " m"]:
        """Mask of the correct rows that one step along the gradient of cross-entropy breaks: FGSM.

        Args:
            factor: length of the step, as a factor of epsilon.
        """
        threat = self.target.threat if factor == 1.0 else self.target.threat.scaled(factor)
        if not isinstance(threat, ThreatModel) or threat.norm == "l0":
            return self.attack(fgsm(), "fgsm", self.correct, threat)[0]
        ball = threat.around(self.x)
        gradient = ball.along_free(self.at_images["cross_entropy"][0].nan_to_num(0.0, 0.0, 0.0))
        points = ball.step(self.x, gradient, ball.radius)
        return ~(self.values(points, self.correct, _is_correct) > 0)

    def values(self, points: Images, rows: Int64[Tensor, " m"], objective: Objective) -> Float[Tensor, " m"]:
        """Value of an objective at one point for each of some rows."""
        parts = [points.new_zeros(0)]
        for first in range(0, len(points), self.target.batch_size):
            part = slice(first, first + self.target.batch_size)
            with self.seeded("values"), frozen(self.target.model), torch.no_grad():
                parts.append(
                    objective(logits_of(self.target.model, points[part]), self.goal(rows[part])).to(points)
                )
        return torch.cat(parts)

    def attack(
        self, attack: Attack, purpose: str, rows: Int64[Tensor, " m"], threat: Threat | None = None
    ) -> tuple[Bool[Tensor, " m"], Images]:
        """Mask of rows that an attack broke, and the images that it returned."""
        data, found = self.target.data, list[AttackResult]()
        seed = derive_seed(self.target.seed, "diagnostics", purpose)
        for chunk in self.target.chunks(rows):
            with self.seeded(purpose):
                found.append(
                    attack(
                        self.target.model,
                        data.floats(chunk),
                        self.goal(chunk),
                        threat=threat or self.target.threat,
                        generator=KeyedGenerator(seed, data.ids[chunk]),
                    )
                )
        if not found:
            return torch.zeros(0, dtype=torch.bool, device=rows.device), data.floats(rows)
        return torch.cat([part.broken for part in found]), torch.cat([part.x_adv for part in found])

    def pgd(
        self, steps: int | None = None, objective: Objective = cross_entropy, restarts: int = 1, keep: Keep = "best"
    ) -> PGD:
        """PGD with the step size of the full budget, stopped after `steps`."""
        relative = None if self.target.threat.kind in ("l1", "l0") else 2.5 / self.budget.steps
        return PGD(
            self.budget.steps if steps is None else steps,
            objective,
            relative_step_size=relative,
            restarts=restarts,
            keep=keep,
        )

    @cached_property
    def broken_by_pgd(self) -> Bool[Tensor, " m"]:
        """Mask of rows that PGD with cross-entropy and one random start breaks."""
        return self.attack(self.pgd(), "pgd", self.correct)[0]

    @cached_property
    def broken_by_fgsm(self) -> Bool[Tensor, " m"]:
        """Mask of rows that one step of length epsilon breaks."""
        return self.broken_by_one_step()

    @cached_property
    def unbroken(self) -> Int64[Tensor, " m"]:
        """The rows that neither PGD nor any gradient attack of the suite `standard` breaks."""
        rows = self.correct[~self.broken_by_pgd]
        for name, attack in reference_attacks(self.target.threat.kind).items():
            rows = rows[~self.attack(attack, name, rows)[0]]
        return rows


def _is_correct(logits: Tensor, goal: ClassificationGoal) -> Tensor:
    """1 where the label is predicted and all logits are finite, else 0."""
    return ((logits.argmax(1) == goal.y) & logits.isfinite().all(1)).float()


def _part_of(allowed: ThreatSet, part: slice) -> ThreatSet:
    return allowed.select(torch.arange(len(allowed.x), device=allowed.x.device)[part])


def spread_of_outputs(call: Callable[[], Tensor], times: int = 5) -> float:
    """The largest L2 distance between L2-normalised outputs of repeated calls; infinite if their classes differ."""
    outputs = [call() for _ in range(times)]
    classes = [given.argmax(1) for given in outputs]
    if any(not torch.equal(classes[0], other) for other in classes[1:]):
        return float("inf")
    unit = [torch.nn.functional.normalize(given.double(), dim=1) for given in outputs]
    largest = max((float((unit[0] - other).norm(dim=1).max()) for other in unit[1:]), default=0.0)
    return 0.0 if isnan(largest) else largest
