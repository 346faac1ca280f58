"""The worst of some random points of a threat set: a baseline without any search."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Int64
from torch import Tensor, nn

from robustly.attacks.core.contract import ANY_THREAT, AttackError, AttackResult, Images, Needs
from robustly.attacks.core.run_search import run_search
from robustly.attacks.core.search import Precision, Search
from robustly.objectives import Goal, Objective, margin
from robustly.randomness import KeyedGenerator
from robustly.threats.contract import Threat


@dataclass(frozen=True)
class RandomDraws:
    """Draw random points of the threat set, and keep the worst.

    The baseline beside every search: Engstrom et al. ("Exploring the landscape of spatial robustness", ICML 2019)
    report the worst of 10 for rotations and shifts, where it beats gradient ascent. The points are those of `PGD`
    without steps.

    A robust example costs 1 + draws forward passes and no backward pass.

    Args:
        draws: number of points, at least 1; examples that are broken draw no more.
        objective: ranks the points that break nothing.
        precision: "full", "ambient" or "bfloat16"; see `PGD`. In bfloat16 every success costs one more pass, in
            full precision.

    Raises:
        AttackError: a setting that is out of range.
    """

    needs: ClassVar[Needs] = ANY_THREAT
    minimum_norm: ClassVar[bool] = False

    draws: int = 100
    objective: Objective = margin
    precision: Precision = "full"

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise AttackError(f"draws must be at least 1, got {self.draws}")

    def __call__(
        self,
        model: nn.Module,
        x: Images,
        y: Int64[Tensor, " n"] | Goal,
        *,
        threat: Threat,
        generator: KeyedGenerator,
    ) -> AttackResult:
        """Attack a batch; see `Attack`."""
        return run_search(
            self._run, model, x, y, threat=threat, generator=generator, needs=self.needs, precision=self.precision
        )

    def _run(self, search: Search, generator: KeyedGenerator) -> None:
        for draw in range(self.draws):
            rows = search.unbroken
            if len(rows) == 0:
                return
            own = generator.select(rows).fold("restart", draw).fold("start")
            points = search.threat_set.select(rows).random_start(own)
            search.value_and_grad(points, rows, self.objective, gradient=False)
