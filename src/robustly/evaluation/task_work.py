"""The work of an evaluation's tasks in another process than the one that leads it."""

from collections.abc import Callable
from functools import cache

import torch
from torch import nn

from robustly.attacks.core.compiled import CompiledNetwork
from robustly.certification import Certificate
from robustly.data import ImageData
from robustly.evaluation.certificate_queue import FINISH
from robustly.evaluation.certificates import SCREEN, certificate_work, prepared
from robustly.evaluation.checkpoint import Speed
from robustly.evaluation.confirmation import attack_part
from robustly.evaluation.costs import COSTS, TARGETED_ATTACK, cost_part
from robustly.evaluation.costs_8bit import COSTS_8BIT, cost_search_part
from robustly.evaluation.diagnostics import DIAGNOSTIC, cheap_work
from robustly.evaluation.eight_bit import save_part
from robustly.evaluation.evaluate import at_precision
from robustly.evaluation.parts import Arrays, Task, Work
from robustly.evaluation.suites.suite import Suite
from robustly.evaluation.target import EvaluationTarget
from robustly.runtime import raise_if_lost
from robustly.threats import Threat


def work_of_tasks(
    model: nn.Module, data: ImageData, threat: Threat, suite: Suite, seed: int, size: int
) -> Callable[[Speed, Task], Work]:
    """Function that returns the work of a task, at a batch size and precision.

    Args:
        model: model, threat and suite as `as_evaluated` returns them.
        data: labelled images.
        threat: the threat.
        suite: the suite.
        seed: the seed.
        size: number of processes that share the evaluation.
    """

    @cache
    def compiled_once(size: int) -> CompiledNetwork:
        return CompiledNetwork(model, size)

    def target_of(speed: Speed, extent: str) -> EvaluationTarget:
        at_extent = threat if extent == threat.extent_text else threat.with_extent(extent)
        compiled = compiled_once(speed.batch_size) if speed.compiled else None
        return EvaluationTarget(model, data, at_extent, seed, speed.batch_size, compiled=compiled)

    @cache
    def certificate_of(name: str, speed: Speed, extent: str) -> Certificate:
        return prepared(target_of(speed, extent), suite.certificates[name], name)

    def work_of(speed: Speed, task: Task) -> Work:
        target = target_of(speed, task.extent)
        if task.kind == DIAGNOSTIC:
            return cheap_work(target)
        if task.kind in (SCREEN, FINISH):
            return certificate_work(target, certificate_of(task.name, speed, task.extent), task, size)
        if task.kind == COSTS:
            return lambda part: cost_part(target, TARGETED_ATTACK, part)
        if task.kind == COSTS_8BIT:
            return lambda part: cost_search_part(target, part)
        if task.kind == "8bit":
            return lambda part: save_part(target, task.name, part)
        attack = at_precision(suite, speed).attacks[task.name]
        return lambda part: attack_part(target, attack, task.name, part)

    return lambda speed, task: _watched(work_of(speed, task), data.device)


def _watched(work: Work, device: torch.device) -> Work:
    """The work; an error of a device that is lost is raised as that."""

    def run(part: Arrays) -> Arrays:
        try:
            return work(part)
        except Exception as error:
            raise_if_lost(error, device)
            raise

    return run
