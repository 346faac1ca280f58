"""Multi steepest descent (MSD): one ascent under several threats, which takes the best step of all of them."""

from dataclasses import dataclass

import torch

from robustly.attacks import AttackResult
from robustly.attacks.core.contract import ModelMode
from robustly.attacks.core.run_search import run_search
from robustly.attacks.core.search import Search
from robustly.attacks.pgd import Start
from robustly.objectives import ClassificationGoal, cross_entropy
from robustly.randomness import KeyedGenerator
from robustly.threats import LpBall, Threat, ThreatModel
from robustly.threats.balls import laid_out_like
from robustly.threats.contract import Theta, per_example
from robustly.training.inner.several import attack_under, note_shares, search_of
from robustly.training.parts import Part
from robustly.training.step import LabelOrigin, Step


@dataclass(frozen=True)
class MsdInner(Part):
    """MSD: from a common point and one gradient, a steepest step under each threat; the best of them is taken.

    Each image moves to the candidate of highest cross-entropy, and the best point on the way is returned, not the
    last. Every candidate is projected into its own ball, so that the ascent jumps between the balls, and the result
    lies in at least one of them. With m threats a step costs one backward pass and m + 1 forward passes: one for
    the gradient, m for the candidates. With one threat it is PGD, whose last point is returned. Maini, Wong and
    Kolter, "Adversarial robustness against the union of multiple perturbation models", ICML 2020 (arXiv 1909.04068,
    algorithm 1). Their l1 step takes 5 to 20 coordinates at random, ours 1 % of all.

    `threat_share_NAME` in `metrics.csv` is the share of the steps that were taken under a threat.

    Args:
        steps: gradient steps.
        relative_step_size: length of a step as a share of each threat's size; without it, each threat's own default
            (2.5 sizes / steps for linf and l2, a fifth of the size for l1).
        start: "none" (the image, as in the paper); or "random", "gaussian" or "halfway", in the first threat set.
        mode: the model's mode under attack: "eval", "train" or "train_nostat".
        against: origin of the labels that the attack works against: the label source or the data set.

    Raises:
        ValueError: a setting out of range.
    """

    steps: int = 10
    relative_step_size: float | None = None
    start: Start = "none"
    mode: ModelMode = "eval"
    against: LabelOrigin = "labels"

    def __post_init__(self) -> None:
        search_of(self)

    def check_threats(self, threats: tuple[Threat, ...]) -> str | None:
        """Refuse threats whose steps do not move the image itself."""
        others = [str(one) for one in threats if not issubclass(one.set_type, LpBall)]
        if others and len(threats) > 1:
            return (
                f"msd is defined for Lp threats, whose steps start at a common image, and {', '.join(others)} is "
                "none: use max, avg, stochastic_multi or eat"
            )
        return None

    def __call__(self, step: Step) -> AttackResult:
        """Attack the batch of a step under all threats at once."""
        if len(step.threats) == 1:
            return attack_under(step, self, 0)
        pgd, sets = search_of(self), [threat.around(step.x) for threat in step.threats]
        taken = torch.zeros(len(sets), len(step.y), dtype=torch.int64, device=step.x.device)

        def run(search: Search, generator: KeyedGenerator) -> None:
            rows = search.unbroken

            def values_at(theta: Theta) -> torch.Tensor:
                return search.value_and_grad(theta, rows, cross_entropy, gradient=False).value

            theta = pgd.started(sets[0], generator.fold("restart", 0))
            theta = theta if self.start == "none" else sets[0].project(theta)
            for number in range(self.steps):
                here = search.value_and_grad(theta, rows, cross_entropy)
                if number == 0:
                    search.theta, search.highest = theta, here.value
                moved = torch.stack([one.step(theta, here.gradient, pgd.step_sizes(one)) for one in sets])
                values = torch.stack([values_at(laid_out_like(step.x, one)) for one in moved])
                best = values.argmax(0)
                theta = laid_out_like(step.x, moved[best, rows])
                taken[best, rows] += 1
                value = values[best, rows]
                higher = value > search.highest
                search.highest = torch.where(higher, value, search.highest)
                search.theta = torch.where(per_example(higher, theta), theta, search.theta)

        low, high = step.threat.box
        found = run_search(
            run,
            step.attacked,
            step.x,
            ClassificationGoal(step.labels_from(self.against)),
            threat=ThreatModel("linf", high - low, (low, high)),  # the whole box: each ball has its own limits
            generator=step.generator.fold("inner"),
            mode=self.mode,
            precision="ambient",
            verdicts=False,
        )
        note_shares(step, list(taken.to(step.x.dtype) / max(self.steps, 1)))
        return found
