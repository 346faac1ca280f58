"""Time of the parts of an evaluation beside its attacks."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Overhead:
    """Seconds of each part, filled in while the evaluation runs: "tuning", "diagnostics", "curve"."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measured(self, part: str) -> Iterator[None]:
        """Add the duration of a block to a part."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - began
