"""Callbacks of training."""

from robustly.statistics import Proportion
from robustly.training.engine.checkpoint import Row
from robustly.training.engine.job import Job
from robustly.training.step import Moment


class Observer:
    """Training callbacks; override the methods you need."""

    def pretrained(self, name: str, row: Row, epochs: int) -> None:
        """One of the epochs in which a network is trained alone, before the run starts, is done and saved."""

    def guide_checked(self, accuracy: Proportion) -> None:
        """The accuracy on training images of a guide that was trained before is measured, before the run starts."""

    def started(self, job: Job, finished_epochs: int) -> None:
        """Training begins or continues."""

    def stepped(self, moment: Moment, loss: float, images: int) -> None:
        """A step is done; `images` counts all processes."""

    def epoch_finished(self, row: Row, is_best: bool) -> None:
        """An epoch is done, validated and saved."""
