"""Labels of the data set, hard or smoothed."""

from dataclasses import dataclass

from robustly.training.parts import Part
from robustly.training.step import Labels, Step


@dataclass(frozen=True)
class DataLabels(Part):
    """The labels of the data set."""

    def __call__(self, step: Step) -> Labels:
        """Return the labels of the batch."""
        return Labels(step.y)


@dataclass(frozen=True)
class SmoothedLabels(Part):
    """Labels of the data with `smoothing` of their weight spread evenly over all classes, the true one included.

    The attack uses the hard label (Pang et al., "Bag of tricks for adversarial training", ICLR 2021,
    find 0.1 to 0.2 useful and more than 0.3 harmful).

    Args:
        smoothing: in [0, 1).
    """

    smoothing: float = 0.1

    def __post_init__(self) -> None:
        check_smoothing(self.smoothing)

    def __call__(self, step: Step) -> Labels:
        """Return the labels of the batch with their smoothing."""
        return Labels(step.y, smoothing=self.smoothing)


def check_smoothing(smoothing: float) -> None:
    """Refuse a share of smoothing outside [0, 1).

    Raises:
        ValueError: it lies outside.
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must lie in [0, 1), got {smoothing}")
