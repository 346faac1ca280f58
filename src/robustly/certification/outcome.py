"""Result of a verification method for one property."""

from dataclasses import dataclass

from torch import Tensor

from robustly.certification.deadline import Deadline
from robustly.evidence import Verdict

OUT_OF_TIME = "the time limit was reached"


@dataclass(frozen=True)
class Outcome:
    """The result of one method for one property.

    Args:
        verdict: verified, falsified, unknown or timeout.
        lower_bound: best proved lower bound of the worst margin over the whole input set; -inf if there is none.
        counterexample: an input `(1, *shape)` that violates the property, if falsified.
        stage: method that decided, or the last one tried: "attack", "ibp", "crown", "alpha", "branch", "split",
            "milp".
        work: work spent, in bounded domains.
        reason: why the property stayed open, in a few words; empty if it is decided.
    """

    verdict: Verdict
    lower_bound: float
    counterexample: Tensor | None
    stage: str
    work: int
    reason: str = ""


def spent(deadline: Deadline, lower_bound: float, stage: str, work: int) -> Outcome:
    """The outcome of a method whose time or budget of domains is spent."""
    if deadline.passed:
        return Outcome(Verdict.TIMEOUT, lower_bound, None, stage, work, OUT_OF_TIME)
    return Outcome(Verdict.UNKNOWN, lower_bound, None, stage, work, "the budget of domains was spent")
