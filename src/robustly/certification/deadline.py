"""Wall-clock limits, which exist in the queue only: budgets of methods count work."""

import time
from dataclasses import dataclass

_LEAST = 2.0


@dataclass(frozen=True)
class Deadline:
    """A moment at which work stops.

    Args:
        at: value of `time.monotonic()` at that moment; infinite for none.
    """

    at: float = float("inf")

    @classmethod
    def after(cls, seconds: float | None) -> "Deadline":
        """The deadline that many seconds from now; None for none."""
        return cls() if seconds is None else cls(time.monotonic() + seconds)

    @property
    def passed(self) -> bool:
        """True once the moment is over."""
        return time.monotonic() >= self.at

    @property
    def left(self) -> float:
        """Seconds that are left, at least 0."""
        return max(0.0, self.at - time.monotonic())

    def share(self, count: int) -> "Deadline":
        """The deadline of the next of `count` equal parts of the time that is left, of at least `_LEAST` seconds.

        With less nothing would be decided, so that those who come last get none.
        """
        return self if self.at == float("inf") else self.sooner(max(self.left / count, _LEAST))

    def sooner(self, seconds: float) -> "Deadline":
        """The earlier of this deadline and the one that many seconds from now."""
        return Deadline(min(self.at, time.monotonic() + seconds))


NEVER = Deadline()
