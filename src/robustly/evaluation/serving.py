"""The work of a process that shares an evaluation with process 0."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from robustly.attacks import Attack
from robustly.data import ImageData
from robustly.evaluation.certificate_queue import FINISH
from robustly.evaluation.certificates import SCREEN, certificate_work, prepared
from robustly.evaluation.checkpoint import Speed
from robustly.evaluation.confirmation import attack_part
from robustly.evaluation.crew import serve
from robustly.evaluation.curve import GivenCurve
from robustly.evaluation.diagnostics import DIAGNOSTIC, cheap_work
from robustly.evaluation.door import as_evaluated
from robustly.evaluation.eight_bit import save_part
from robustly.evaluation.evaluate import at_precision
from robustly.evaluation.identity import evaluation_identity
from robustly.evaluation.parts import Arrays, Task, Work
from robustly.evaluation.suites.suite import Suite
from robustly.evaluation.target import EvaluationTarget, Mode
from robustly.processes import Group
from robustly.runtime import check_device
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

    def work_of(speed: Speed, task: Task) -> Work:
        return _watched(_work_of(speed, task), data.device)

    def _work_of(speed: Speed, task: Task) -> Work:
        at_extent = threat if task.extent == threat.extent_text else threat.with_extent(task.extent)
        target = EvaluationTarget(model, data, at_extent, seed, speed.batch_size)
        if task.kind == DIAGNOSTIC:
            return cheap_work(target)
        if task.kind in (SCREEN, FINISH):
            certificate = prepared(target, suite.certificates[task.name], task.name)
            return certificate_work(target, certificate, task, group.size)
        attack = at_precision(suite, speed).attacks[task.name]

        def work(part: Arrays) -> Arrays:
            if task.kind == "attack":
                return attack_part(target, attack, task.name, part)
            return save_part(target, task.name, part)

        return work

    serve(group, folder, identity, work_of, number)


def _watched(work: Work, device: torch.device) -> Work:
    """The work; an error of a device that is lost is raised as that."""

    def run(part: Arrays) -> Arrays:
        try:
            return work(part)
        except Exception:
            check_device(device)
            raise

    return run
