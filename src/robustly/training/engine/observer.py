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

    def split(self, moment: Moment, parts: int, *, found: bool) -> None:
        """From a step on, batches pass in more parts, after an error of too little memory.

        Args:
            moment: the step, which is finished.
            parts: the parts, as `training.accumulate: N` sets them.
            found: whether they are those found before the first step of the run (`auto`).
        """

    def stepped(self, moment: Moment, loss: float, images: int) -> None:
        """A step is done; `images` counts all processes."""

    def epoch_finished(self, row: Row, is_best: bool) -> None:
        """An epoch is done, validated and saved."""
