"""Several processes for `robustly evaluate`: who takes part, and what the others than process 0 do."""

import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from robustly.cli.evaluate_plan import PlannedEvaluation, planned_evaluations
from robustly.cli.subject import Subject, load_subject, run_of_command
from robustly.cli.terminal import PlainConsole
from robustly.evaluation.crew import Leader
from robustly.evaluation.serving import serve_evaluation
from robustly.evaluation.suites.composed import suite_from
from robustly.evaluation.suites.suite import Suite
from robustly.experiments.configuration import RunConfig
from robustly.experiments.locks import partial_of
from robustly.experiments.run_folder import Checkpoint, RunError
from robustly.experiments.surrogates import load_surrogates
from robustly.processes import Group, ProcessError, join_group, start_group
from robustly.runtime import Place, RuntimeConfig, place_in_cluster, use_own_gpu

_PLANS = "plans"
PARTS = "parts"


@dataclass(frozen=True)
class Request:
    """Arguments of `robustly evaluate` on which the work of every process depends.

    Args:
        place: the run, or a model that was trained elsewhere.
        overrides: settings.
        trust_code: whether models that only a file names may be imported.
        label: name of the evaluation.
        checkpoint: the weights.
        extended: adds certificates to the suite; None for the suite as it is. It can be pickled.
    """

    place: Path | None
    overrides: tuple[str, ...]
    trust_code: bool
    label: str | None
    checkpoint: Checkpoint
    extended: Callable[[Suite], Suite] | None


def suite_before_loading(config: RunConfig, extended: Callable[[Suite], Suite] | None) -> Suite:
    """The suite of an evaluation with its certificates; its surrogates are not loaded yet."""
    suite = suite_from(config.evaluation.suite, config.evaluation.stages, config.threat)
    return suite if extended is None else extended(suite)


def suite_of(plan: PlannedEvaluation, subject: Subject, extended: Callable[[Suite], Suite] | None) -> Suite:
    """The suite of a planned evaluation, with its surrogates and certificates."""
    suite = suite_before_loading(plan.config, extended)
    return load_surrogates(suite, plan.config, subject.data, subject.trusts, subject.device)


def place_of_this_process() -> Place | None:
    """Place of this process in a cluster, with a GPU of its own; None if it is on its own."""
    place = place_in_cluster()
    if place is not None:
        use_own_gpu(place)
    return place


@contextmanager
def leading(
    place: Place | None, config: RuntimeConfig, request: Request, plans: Sequence[PlannedEvaluation], images: int
) -> Iterator[Callable[[PlannedEvaluation], Leader | None]]:
    """Lead the processes of a command; yields the leader of each evaluation, None for a single process.

    Args:
        place: place of this process in a cluster; None to start processes here.
        config: settings.
        request: arguments of the command.
        plans: evaluations that are carried out.
        images: number of images; more processes are of no use.

    Raises:
        ProcessError: the store does not answer; in the block: another process has stopped.
    """
    size = min(config.processes, images) if place is None else place.size
    if size < 2:
        yield lambda plan: None
        return
    if place is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if size > cores:
            PlainConsole().print(f"! {size} processes share {cores} cores", highlight=False)
        group = start_group(size, serve_evaluations, [request])
    else:
        group = join_group(place)
    group.store.set(_PLANS, json.dumps([plan.target.name for plan in plans]))
    leaders = {
        plan.target: Leader(group, partial_of(plan.target) / PARTS, number) for number, plan in enumerate(plans)
    }
    try:
        yield lambda plan: leaders[plan.target]
    finally:
        group.close()


def release_others(place: Place | None) -> None:
    """End the other processes of a cluster without work for them."""
    if place is not None:
        join_group(place).store.set(_PLANS, json.dumps([]))


def only_serves(place: Place, config: RunConfig, request: Request) -> bool:
    """Do the work of a process other than 0 of a cluster; returns False for process 0, without work.

    Raises:
        RunError: settings with domains, whose evaluations run in one process.
    """
    if config.data.domains is not None:
        raise RunError("evaluations on domains run in one process: start the command without a launcher")
    if place.rank == 0:
        return False
    serve_evaluations(place, request)
    return True


def serve_evaluations(place: Place, request: Request) -> None:
    """Take part in the evaluations of a command as another process than 0; prints nothing."""
    try:
        use_own_gpu(place)
        group = join_group(place)
    except ProcessError:
        return  # process 0 has ended in the meantime
    with suppress(RuntimeError, KeyboardInterrupt):  # process 0 has ended, and its store with it
        try:
            with redirect_stdout(StringIO()), redirect_stderr(StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _serve(group, request)
        except (ValueError, OSError) as error:
            group.refuse(str(error))


def _serve(group: Group, request: Request) -> None:
    wanted = json.loads(group.wait_for(_PLANS))
    run = run_of_command(request.place, list(request.overrides))
    plans = {plan.target.name: plan for plan in planned_evaluations(run, request.label)}
    subject = load_subject(run, request.trust_code, checkpoint=request.checkpoint)
    for number, name in enumerate(wanted):
        plan = plans[name]
        settings = plan.config.evaluation
        serve_evaluation(
            subject.model,
            subject.data,
            plan.config.threat,
            suite_of(plan, subject, request.extended),
            mode=settings.mode,
            seed=plan.config.seed,
            batch_size=settings.batch_size,
            curve_count=settings.curve_count,
            curve=settings.curve,
            group=group,
            folder=partial_of(plan.target) / PARTS,
            number=number,
        )
