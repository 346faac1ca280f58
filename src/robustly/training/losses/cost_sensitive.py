"""Cost-sensitive adversarial training: costly confusions weigh more."""

from dataclasses import dataclass

import torch

from robustly.cost_matrix import check_costs, costs_problem, read_costs
from robustly.training.losses.terms import check_at_least_zero, label_loss
from robustly.training.parts import Part, Terms
from robustly.training.step import Step


@dataclass(frozen=True)
class CostSensitiveLoss(Part):
    """CE(z', y) + a log(1 + sum_j C_yj exp(z'_j - z'_y)): robustness against confusions that have a cost.

    The loss of Zhang and Evans, "Cost-sensitive robustness against adversarial examples", ICLR 2019, at
    adversarial logits z' in place of its bounds of z_j - z_y. Examples of a class without costs have the
    cross-entropy alone; if every confusion costs 1, the second term is a CE(z', y) too.

    Args:
        costs: cost matrix C; see `robustly.cost_matrix.read_costs`. A file is read in the first step of a run, and
            its numbers are kept in every checkpoint.
        weight: a, weight of the second term, at least 0.
    """

    reads = ("adversarial",)

    costs: str = "all"
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_at_least_zero(weight=self.weight)
        check_costs(self.costs)

    @property
    def classes(self) -> int:
        """Least number of classes of the cost matrix."""
        return check_costs(self.costs)

    def check_classes(self, classes: int) -> str | None:
        """Refuse costs of other classes."""
        return costs_problem(self.costs, classes)

    def __call__(self, step: Step) -> Terms:
        """Return the terms "adversarial" and, if it has weight, "cost"."""
        z = step.adversarial_logits
        terms: Terms = {"adversarial": label_loss(z, step.labels)}
        if self.weight > 0:
            y = step.labels.hard
            kept = step.remember(self)
            if "costs" not in kept:
                kept["costs"] = torch.from_numpy(read_costs(self.costs, z.shape[1]).array)
            shares = kept["costs"].to(z)[y].log()  # -inf: no part in the sum, and no gradient
            gaps = z - z.gather(1, y[:, None])
            one = gaps.new_zeros(len(gaps), 1)
            terms["cost"] = self.weight * torch.cat([one, gaps + shares], dim=1).logsumexp(1)
        return terms
