"""The outcome of a sentinel: a search of another kind on examples that the stages before it left unbroken."""

from dataclasses import dataclass

from robustly.evaluation.diagnostics.significance import TOLERATED, Excess, tolerated_among
from robustly.evidence import Finding
from robustly.statistics import Proportion


@dataclass(frozen=True)
class SentinelOutcome:
    """The numbers of a sentinel.

    A single success starts the stages marked `on_suspicion`, but is not a sign of masking: of two good searches,
    each misses some examples. Significantly many successes change the headline.

    Args:
        name: name of the attack.
        title: its title.
        broken: number of examples that it broke.
        tried: number of examples that it attacked, a sample of the unbroken ones, at least 1.
        unbroken: number of examples that the stages before it left unbroken.
        total: number of all examples of the evaluation.
    """

    name: str
    title: str
    broken: int
    tried: int
    unbroken: int
    total: int

    @property
    def test(self) -> Excess:
        """Exact test: do the stages before overestimate robust accuracy by more than 1 %?"""
        return Excess(self.broken, self.tried, tolerated_among(self.unbroken, self.total, TOLERATED))

    @property
    def finding(self) -> Finding:
        """The entry among the diagnostics."""
        bound = Proportion(self.broken, self.tried).high
        return Finding(
            id=f"sentinel:{self.name}",
            title=f"{self.title}: a search of another kind breaks no more examples",
            passed=self.test.passed,
            value=self.broken / self.tried,
            threshold=f"not significantly above {100 * TOLERATED:.3g} % of all images",
            words=f"It broke {self.broken} of {self.tried} unbroken images {self.test.words}. With 95 % confidence "
            f"it breaks at most {100 * bound:.1f} % of the unbroken images.",
        )

    @property
    def suspicion(self) -> str:
        """A sentence on adversarial examples that only the sentinel found."""
        return (
            f"{self.title}, a search of another kind, broke {self.broken} of {self.tried} images that no attack "
            "before it broke."
        )

    @property
    def suspicions(self) -> tuple[str, ...]:
        """The sentence, if these examples are significantly many."""
        return () if self.test.passed else (self.suspicion,)
