"""The work of a process that shares an evaluation with process 0."""

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor, nn

from robustly.attacks import Attack
from robustly.data import ImageData
from robustly.evaluation.crew import serve
from robustly.evaluation.curve import GivenCurve
from robustly.evaluation.door import as_evaluated
from robustly.evaluation.identity import evaluation_identity
from robustly.evaluation.suites.suite import Suite
from robustly.evaluation.target import Mode
from robustly.evaluation.task_work import work_of_tasks
from robustly.processes import Group
from robustly.threats import Threat


def serve_evaluation(
    model: nn.Module | Callable[[Tensor], object],
    data: ImageData,
    threat: Threat,
    suite: Suite | str | Attack | Sequence[Attack | str],
    *,
    mode: Mode,
    seed: int,
    batch_size: int | None,
    curve_count: int | None,
    curve: GivenCurve,
    group: Group,
    folder: Path,
    number: int,
) -> None:
    """Carry out parts of the diagnostics, attacks and certificates of an evaluation until process 0 ends it.

    Args:
        model: see `evaluate`, as the others.
        data: labelled images.
        threat: the threat.
        suite: the suite.
        mode: the mode.
        seed: the seed.
        batch_size: the given batch size.
        curve_count: examples of the security curve.
        curve: the given curve.
        group: the processes.
        folder: folder of the parts; see `robustly.evaluation.crew.Leader`.
        number: number of the evaluation among those of one command.

    Raises:
        AdapterError: as `evaluate`.
        EvaluationError: as `evaluate`.
    """
    model, threat, suite = as_evaluated(model, data, threat, suite, curve)
    identity = evaluation_identity(
        model, data, threat, suite, mode=mode, seed=seed, batch_size=batch_size, curve_count=curve_count
    )

    serve(group, folder, identity, work_of_tasks(model, data, threat, suite, seed, group.size), number)
