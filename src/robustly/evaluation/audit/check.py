"""One thing that an audit looks at."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One thing that was re-checked.

    Args:
        name: what, in a few words.
        problem: what is wrong, or an empty text.
    """

    name: str
    problem: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problem
