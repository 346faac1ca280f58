"""Several processes for `robustly evaluate`: who takes part, and what the others than process 0 do."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from torch.distributed.distributed_c10d import PrefixStore

from robustly.certification.certificates import BoundCertificate
from robustly.cli.allocator import return_freed_weights
from robustly.cli.arguments import READS_WEIGHTS
from robustly.cli.evaluate_plan import PlannedEvaluation, planned_evaluations
from robustly.cli.protocol_plan import protocol_plan
from robustly.cli.subject import Subject, load_subject, run_of_command
from robustly.cli.together import prepare_shards, say_crowding, take_part
from robustly.evaluation import PROTOCOLS
from robustly.evaluation.crew import Leader, Leads
from robustly.evaluation.serving import serve_evaluation
from robustly.evaluation.shards import ServedError, ShardedCrew
from robustly.evaluation.suites.composed import suite_from
from robustly.evaluation.suites.suite import Suite
from robustly.experiments.configuration import RunConfig
from robustly.experiments.locks import partial_of
from robustly.experiments.run_folder import Checkpoint, RunError
from robustly.experiments.surrogates import load_surrogates
from robustly.processes import Group, join_group, start_group
from robustly.runtime import Place, RuntimeConfig

PARTS = "parts"


@dataclass(frozen=True)
class ProtocolRequest:
    """Arguments of `robustly evaluate` for a protocol on which the work of every process depends.

    Args:
        protocol: name of the protocol.
        label: name of its evaluations.
        chosen: whether the settings name the threats, in place of the protocol.
        trained_on: threats of the training that the user names; None for none.
        planes: file of principal directions; None for those of the run.
    """

    protocol: str
    label: str
    chosen: bool
    trained_on: tuple[str, ...] | None
    planes: Path | None

    def plans(self, subject: Subject) -> tuple[PlannedEvaluation, ...]:
        """The evaluations; process 0 has computed principal directions before."""
        protocol = PROTOCOLS[self.protocol]
        plan = protocol_plan(protocol, subject, self.label, self.chosen, self.trained_on, self.planes, dry_run=True)
        return plan.evaluations


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
        protocol: makes the evaluations of a protocol; None for those of the settings. It can be pickled.
    """

    place: Path | None
    overrides: tuple[str, ...]
    trust_code: bool
    label: str | None
    checkpoint: Checkpoint
    extended: Callable[[Suite], Suite] | None
    protocol: ProtocolRequest | None = None


def suite_before_loading(config: RunConfig, extended: Callable[[Suite], Suite] | None) -> Suite:
    """The suite of an evaluation with its certificates; its surrogates are not loaded yet."""
    suite = suite_from(config.evaluation.suite, config.evaluation.stages, config.threat)
    return suite if extended is None else extended(suite)


def suite_of(plan: PlannedEvaluation, subject: Subject, extended: Callable[[Suite], Suite] | None) -> Suite:
    """The suite of a planned evaluation, with its surrogates and certificates."""
    suite = suite_before_loading(plan.config, extended)
    return load_surrogates(suite, plan.config, subject.data, subject.trusts, subject.device)


def refuse_bounds(suites: Sequence[Suite]) -> None:
    """Refuse suites with certificates that read the weights, for a model whose weights are in shards.

    Raises:
        ValueError: a suite has one.
    """
    for suite in suites:
        for name, certificate in suite.certificates.items():
            if isinstance(certificate, BoundCertificate):
                raise ValueError(f"--runtime.strategy fsdp: the certificate {name} {READS_WEIGHTS}; leave it out")


class Sharing(Protocol):
    """Processes or a cluster that share the evaluations of one command."""

    def leaders(self, plans: Sequence[PlannedEvaluation], subject: Subject) -> Mapping[Path, Leads]:
        """Announce evaluations of one model on the same images; returns the leader of each by its folder.

        A single process has none.
        """
        ...

    def divided(self, subject: Subject) -> Subject:
        """The subject whose model the processes hold together, if the settings say so; else the same."""
        ...

    def close(self) -> None:
        """Release the processes or the cluster."""
        ...


class Together:
    """The processes of one command, which start or are joined when the first evaluations are shared.

    Evaluations come in rounds, each on other images.

    Args:
        place: place of this process in a cluster; None to start processes here.
        config: settings.
        request: arguments of the command.

    Raises:
        ValueError: weights in shards are not possible here.
    """

    def __init__(self, place: Place | None, config: RuntimeConfig, request: Request) -> None:
        if config.strategy == "fsdp":
            prepare_shards(config, place)
        self._place, self._config, self._request = place, config, request
        self._group: Group | None = None
        self._crew: ShardedCrew | None = None
        self._rounds = self._evaluations = 0

    def divided(self, subject: Subject) -> Subject:
        """Divide the weights among the processes, which then take part in the passes, if the settings say so.

        Args:
            subject: model and images; the model is on the CPU.

        Raises:
            ShardingError: the model cannot be held in shards.
            ProcessError: another process has stopped, or the store does not answer.
        """
        if self._config.strategy == "ddp":
            return subject
        group = self._joined(self._config.processes)
        assert group is not None
        self._crew = self._crew or ShardedCrew(group)
        self._announce({"part": subject.part})
        return replace(subject, model=self._crew.divided(subject.model, subject.device))

    def leaders(self, plans: Sequence[PlannedEvaluation], subject: Subject) -> Mapping[Path, Leads]:
        """Announce evaluations; returns the leader of each by its folder, none for a single process.

        Args:
            plans: evaluations on the same images.
            subject: model and images; more processes than images are of no use.

        Raises:
            ProcessError: the store does not answer.
        """
        group = self._joined(min(self._config.processes, len(subject.data)))
        if group is None:
            return {}
        if self._crew is not None:  # the others take part in passes alone
            group = Group(0, 1, PrefixStore("alone", group.store))
        else:
            names = [plan.target.name for plan in plans]
            self._announce({"part": plans[0].part, "first": self._evaluations, "names": names})
        found = {
            plan.target: Leader(group, partial_of(plan.target) / PARTS, number)
            for number, plan in enumerate(plans, self._evaluations)
        }
        self._evaluations += len(plans)
        return found

    def _joined(self, size: int) -> Group | None:
        """The processes, which are started at the first call; None for one."""
        if self._group is None and self._place is not None:
            self._group = join_group(self._place)
        if self._group is None and size > 1:
            say_crowding(size)
            self._group = start_group(size, serve_evaluations, [self._request])
        return self._group

    def _announce(self, wanted: Mapping[str, object]) -> None:
        assert self._group is not None
        self._group.store.set(_round(self._rounds), json.dumps(wanted))
        self._rounds += 1

    def close(self) -> None:
        """Release the other processes, and end those that were started here."""
        if self._crew is not None:
            self._crew.close()
        if self._group is None and self._place is not None:
            self._group = join_group(self._place)
        if self._group is not None:
            self._group.store.set(_round(self._rounds), json.dumps(None))
            self._group.close()


def serve_evaluations(place: Place, request: Request) -> None:
    """Take part in the evaluations of a command as another process than 0; prints nothing.

    Raises:
        ProcessError: in a cluster, process 0 does not answer or has other code.
    """
    take_part(place, partial(_serve, request, place))


def _serve(request: Request, place: Place, group: Group) -> None:
    crew = ShardedCrew(group, place)
    try:
        _serve_rounds(request, crew, group)
    finally:
        crew.close()


def _serve_rounds(request: Request, crew: ShardedCrew, group: Group) -> None:
    run, rounds, protocol = None, 0, request.protocol
    while (wanted := json.loads(group.wait_for(_round(rounds)))) is not None:
        run = run or run_of_command(request.place, list(request.overrides), takes_shards=True)
        rounds += 1
        subject = load_subject(run, request.trust_code, checkpoint=request.checkpoint, part=wanted["part"])
        if run.config.runtime.strategy == "fsdp":
            return_freed_weights()
            with suppress(ServedError):
                crew.divided(subject.model, subject.device)
            continue
        made = planned_evaluations(run, request.label) if protocol is None else protocol.plans(subject)
        plans = {plan.target.name: plan for plan in made}
        for number, name in enumerate(wanted["names"], wanted["first"]):
            if name not in plans:
                raise RunError(f"its settings have no evaluation {name}")
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


def _round(number: int) -> str:
    return f"plans/{number}"
