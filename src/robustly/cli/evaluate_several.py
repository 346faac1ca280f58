"""Evaluations of several runs, each a task of a Ray cluster."""

import shutil
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustly.cli.domain_tables import report_domains
from robustly.cli.evaluate import as_given, is_kept
from robustly.cli.evaluate_plan import PlannedEvaluation, planned_evaluations
from robustly.cli.evaluate_tables import print_evaluation
from robustly.cli.evaluate_together import suite_before_loading
from robustly.cli.evaluate_writing import named_summary, print_union, written
from robustly.cli.on_ray import check_on, cluster_at, with_device
from robustly.cli.subject import Subject, first_threat, keep_run, load_subject, run_of_command
from robustly.cli.terminal import PlainConsole
from robustly.data import ImageData
from robustly.evaluation.door import check_fit
from robustly.evaluation.ray_tasks import Outcome, WholeEvaluation, carry_out_whole, send, send_images
from robustly.evaluation.ray_tasks import Subject as Evaluated
from robustly.evaluation.suites.suite import Suite
from robustly.evidence.collapse import collapse_words
from robustly.evidence.provenance import Seen
from robustly.evidence.unions import read_rows
from robustly.experiments.configuration import RunConfig
from robustly.experiments.given_models import GivenRun
from robustly.experiments.locks import lock_evaluation
from robustly.experiments.run_folder import Checkpoint, RunError, open_run
from robustly.experiments.seen_attacks import seen_attacks
from robustly.experiments.surrogates import load_surrogates
from robustly.ray_cluster import RETRIES, Cluster, Room
from robustly.ray_connection import ClusterError
from robustly.runtime import RuntimeConfig

_POLL = 0.5


@dataclass(frozen=True)
class SeveralOptions:
    """Options for the evaluations of several runs; see `run_evaluation`."""

    overrides: tuple[str, ...]
    on: str
    trust_code: bool = False
    overwrite: bool = False
    label: str | None = None
    keep: bool = False
    extended: Callable[[Suite], Suite] | None = None
    checkpoint: Checkpoint = "best"


@dataclass(frozen=True)
class _Begun:
    """An evaluation that a worker carries out.

    Args:
        plan: the evaluation.
        subject: names of the run and the images; its model and all images but one are left out.
        marks: attacks that the run was trained on.
        again: begins it again on another worker.
    """

    plan: PlannedEvaluation
    subject: Subject
    marks: Mapping[str, Seen] | None
    again: Callable[[], Any]


def evaluate_several(places: Sequence[Path], options: SeveralOptions) -> int:
    """Evaluate several runs, each under every threat of its settings, on a Ray cluster; returns the exit code.

    Each evaluation is one task, on the device of its worker. Models and images are sent, and the evidence comes
    back: the nodes need no file of the runs. An evaluation that fails does not stop the others; it is named at the
    end, and the exit code is 2.

    Args:
        places: the runs, or models that were trained elsewhere.
        options: the options.

    Raises:
        ValueError: settings of a run are wrong; nothing was begun then.
        ClusterError: the cluster does not answer, or its nodes have other code.
        OSError: files that cannot be read or written.
    """
    check_on(options.on, options.overrides)
    console = PlainConsole()
    runs = _runs(places, options)
    label = "last" if options.label is None and options.checkpoint == "last" else options.label
    plans = {run.folder: planned_evaluations(run, label) for run in runs}
    failures: dict[Path, str] = {}
    with ExitStack() as held:
        for run in runs:
            for plan in plans[run.folder] if not run.is_new else ():
                held.enter_context(lock_evaluation(plan.target))
        left = {
            folder: [
                plan for plan in some if not is_kept(plan, options.overwrite, options.keep, options.checkpoint)
            ]
            for folder, some in plans.items()
        }
        count = sum(map(len, left.values()))
        waiting = deque(
            (run, [plan for plan in left[run.folder] if plan.part == part])
            for run in runs
            for part in dict.fromkeys(plan.part for plan in left[run.folder])
        )
        if waiting:
            cluster = held.enter_context(cluster_at(options.on))
            at_once = min(count, cluster.slots())
            console.print(f"{count} evaluations of {len(runs)} runs, {at_once} at a time", highlight=False)
            try:
                failures = _carried_out(console, cluster, waiting, options, held)
            except KeyboardInterrupt:
                console.print("\nstopped; the same command with --keep continues with the others", highlight=False)
                raise
    for run in runs:
        _report(run, plans[run.folder], failures)
    for target, reason in failures.items():
        console.print(f"! {target}: {reason}", markup=False, highlight=False, soft_wrap=True)
    done = f"{count - len(failures)} of {count} evaluations finished"
    console.print(done, highlight=False)
    return 2 if failures else 0


def _runs(places: Sequence[Path], options: SeveralOptions) -> list[GivenRun]:
    """The runs of the command line.

    Raises:
        ValueError: wrong settings, or the same run twice.
    """
    runs = []
    for place in places:
        try:
            run = run_of_command(place, list(options.overrides))
            if options.extended is not None:
                run = replace(run, config=first_threat(run, "certify"))
        except ValueError as error:
            raise RunError(str(error) if str(place) in str(error) else f"{place}: {error}") from error
        if run.is_new and options.checkpoint == "last":
            raise RunError(f"--checkpoint last is for runs that were trained here, and {run.folder} is new")
        runs.append(run)
    twice = [str(folder) for folder, number in Counter(run.folder.resolve() for run in runs).items() if number > 1]
    if twice:
        raise RunError(f"{twice[0]} is named twice")
    return runs


def _carried_out(
    console: PlainConsole,
    cluster: Cluster,
    waiting: deque[tuple[GivenRun, list[PlannedEvaluation]]],
    options: SeveralOptions,
    held: ExitStack,
) -> dict[Path, str]:
    """Carry out evaluations and write their folders; returns the reasons of those that failed."""
    running: dict[Any, _Begun] = {}
    refused: Counter[Path] = Counter()
    failures: dict[Path, str] = {}
    images, room = _Images(cluster), Room(cluster)
    try:
        while waiting or running:
            slots = room.slots()
            while waiting and slots and len(running) <= slots:
                run, plans = waiting.popleft()
                try:
                    running |= _begun(cluster, images, run, plans, options, held)
                except (ValueError, FileNotFoundError) as error:
                    failures |= {plan.target: str(error) for plan in plans}
            for reference in cluster.finished([*running], _POLL) if running else ():
                one = running.pop(reference)
                target = one.plan.target
                try:
                    found: Outcome = cluster.result(reference)
                except ClusterError as error:  # such as a network that no node has the memory for
                    failures[target] = str(error)
                    _forget(one.subject.run)
                    continue
                refused[target] += bool(found.refusal)
                if found.refusal and refused[target] > RETRIES:
                    raise ClusterError(f"a worker of the Ray cluster cannot take part: {found.refusal}")
                if found.refusal:
                    running[one.again()] = one
                elif found.error:
                    failures[target] = found.error.partition(": ")[2] if found.is_wrong_input else found.error
                    _forget(one.subject.run)
                else:
                    _finish(console, one, found)
    finally:
        cluster.cancel([*running])
    return failures


class _Images:
    """Images in the object store; runs on the same images share them."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self._last = cluster, ("", None)

    def sent(self, data: ImageData) -> Any:
        """Reference of the images."""
        digest = f"{data.digest()} {data.classes} {data.source}"
        if self._last[0] != digest:
            self._last = (digest, send_images(self._cluster, data))
        return self._last[1]


def _begun(
    cluster: Cluster,
    images: _Images,
    run: GivenRun,
    plans: Sequence[PlannedEvaluation],
    options: SeveralOptions,
    held: ExitStack,
) -> dict[Any, _Begun]:
    """Load a run and begin its evaluations on the same images, by the references of their results.

    Raises:
        ValueError: weights, data or settings do not fit.
    """
    device = run.config.runtime.device
    needs_gpu = device == "cuda" or (device == "auto" and cluster.has_gpus)
    fitting = with_device(cluster, needs_gpu)
    runtime = RuntimeConfig(device="cuda" if needs_gpu else "cpu", compile=run.config.runtime.compile)
    here = replace(run, config=replace(run.config, runtime=RuntimeConfig(device="cpu")))
    subject = load_subject(here, options.trust_code, checkpoint=options.checkpoint, part=plans[0].part)
    suites = [suite_before_loading(plan.config, options.extended) for plan in plans]
    for plan, suite in zip(plans, suites, strict=True):
        check_fit(subject.data, plan.config.threat, suite)
    keep_run(run)
    trained = run.config if run.is_new else open_run(run.folder)
    first = torch.arange(1, device=subject.data.device)
    names = replace(subject, model=nn.Identity(), data=subject.data.select(first))
    found = {}
    for plan, given in zip(plans, suites, strict=True):
        if run.is_new:
            held.enter_context(lock_evaluation(plan.target))
        config, settings = plan.config, plan.config.evaluation
        suite = load_surrogates(given, config, subject.data, subject.trusts, subject.device)
        is_last = options.checkpoint == "last"
        marks = seen_attacks(run.folder, trained, config.threat.kind, suite, last_epoch=is_last)
        evaluated = Evaluated(subject.model, config.threat, suite, settings.curve, config.seed)
        sent = send(fitting, evaluated, images.sent(subject.data))
        whole = WholeEvaluation(settings.mode, settings.batch_size, settings.curve_count, runtime)

        def begin(sent: object = sent, whole: WholeEvaluation = whole) -> Any:
            return fitting.submit(carry_out_whole, sent, whole)

        found[begin()] = _Begun(plan, names, marks, begin)
    return found


def _finish(console: PlainConsole, one: _Begun, found: Outcome) -> None:
    """Write the evidence of an evaluation and print its table."""
    evidence, plan = found.value, one.plan
    stages = plan.config.evaluation.stages
    evidence = replace(evidence, summary=named_summary(evidence.summary, one.subject, one.marks, stages))
    written(evidence, plan.target)
    collapse = collapse_words(evidence.table.examples, evidence.summary.data.classes)
    print_evaluation(console, evidence.summary, one.subject.run.folder, plan.target, collapse)


def _forget(run: GivenRun) -> None:
    """Remove the folder of a new run without an evaluation."""
    if run.is_new and not any(run.folder.glob("evaluation*/summary.json")):
        shutil.rmtree(run.folder, ignore_errors=True)


def _report(run: GivenRun, plans: Sequence[PlannedEvaluation], failures: Mapping[Path, str]) -> None:
    """Print the tables of a run under several threats or with domains, if all its evaluations are there."""
    if any(plan.target in failures for plan in plans):
        return
    config: RunConfig = run.config
    of_target = as_given([plan for plan in plans if plan.part == "target"], config)
    if len(of_target) > 1:
        print_union(run, {plan.target.name: read_rows(plan.target) for plan in of_target})
    if config.data.domains is not None:
        report_domains(run.folder, [plan.target for plan in of_target])
