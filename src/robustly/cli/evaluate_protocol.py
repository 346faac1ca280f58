"""`robustly evaluate --suite tafd_v10`: evaluations under all threats of a protocol, and their table."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from rich.console import Console

from robustly.cli.evaluate import carried_out
from robustly.cli.evaluate_plan import PlannedEvaluation
from robustly.cli.evaluate_together import ProtocolRequest, Request, Sharing, Together, serve_evaluations
from robustly.cli.on_ray import OnRay, check_on
from robustly.cli.protocol_plan import ProtocolPlan, protocol_plan
from robustly.cli.protocol_tables import plan_table, result_table
from robustly.cli.subject import Subject, load_subject, run_of_command
from robustly.cli.terminal import PlainConsole
from robustly.cli.together import place_of_this_process
from robustly.evaluation import PROTOCOLS, Protocol
from robustly.evidence import Summary, read_summary
from robustly.evidence.protocol_result import ProtocolResult, protocol_file, protocol_result, write_protocol
from robustly.evidence.schema import SUMMARY
from robustly.evidence.unions import Tested, read_rows
from robustly.experiments.given_models import GivenRun
from robustly.experiments.locks import lock_evaluation
from robustly.experiments.overrides import pairs_of
from robustly.experiments.run_folder import CONFIG, Checkpoint, RunError, open_run
from robustly.models import weights_hash

SUITE = "evaluation.suite"


@dataclass(frozen=True)
class ProtocolOptions:
    """The options of `robustly evaluate` for a protocol.

    Args:
        overwrite: whether earlier evaluations of the protocol are replaced.
        keep: whether they are kept if the protocol is complete already.
        label: name of the protocol's evaluations in the run; None for that of the protocol.
        checkpoint: the weights of the run.
        trained_on: threats of the training that no run states; None if none are named.
        planes: file of principal directions for GPGD; None for those of the run.
        dry_run: whether the columns and their passes are printed, and nothing is done.
        on: Ray cluster that shares the work; None for the processes of the settings.
    """

    overwrite: bool = False
    keep: bool = False
    label: str | None = None
    checkpoint: Checkpoint = "best"
    trained_on: tuple[str, ...] | None = None
    planes: Path | None = None
    dry_run: bool = False
    on: str | None = None


def protocol_of(place: Path | None, overrides: Sequence[str]) -> Protocol | None:
    """The protocol that a command line names as its suite, or else the run; None for another suite.

    Threats on the command line take the place of those of a protocol that compares. A protocol with threats of its
    own is then a suite as any other.

    Args:
        place: the run, or a model that was trained elsewhere.
        overrides: settings.
    """
    given = dict(pairs_of(overrides))
    name = given.get(SUITE)
    if name is None and place is not None and (place / CONFIG).is_file():
        own = open_run(place).evaluation
        name = own.suite if own.stages is None and not any("stages" in key for key in given) else None
    protocol = PROTOCOLS.get(name or "")
    has_threats = "threat" in given or "threats" in given
    return protocol if protocol is not None and (protocol.compares or not has_threats) else None


def run_protocol(
    place: Path | None, protocol: Protocol, overrides: list[str], trust_code: bool, options: ProtocolOptions
) -> int:
    """Evaluate a run under every threat of a protocol, and print the tables; returns the exit code.

    Each threat has an evaluation of its own, in the folder `evaluation_LABEL_KIND`; `protocol_LABEL.json` has the
    numbers over all of them. A command that was stopped keeps the finished evaluations when it is given again.

    Args:
        place: the run, or a model that was trained elsewhere; see `given_run`.
        protocol: the protocol.
        overrides: settings.
        trust_code: whether models that only a file names may be imported.
        options: the options.

    Raises:
        ValueError: wrong settings, weights or data; images that a threat is not defined for.
        OSError: files that cannot be read or written.
    """
    if options.on is not None:
        check_on(options.on, overrides)
    run = run_of_command(place, _without_suite(overrides), takes_shards=True)
    if run.is_new and options.checkpoint == "last":
        raise RunError(
            f"--checkpoint last is for runs that were trained here, and {run.folder} is new: leave it out"
        )
    label = options.label or (protocol.name if options.checkpoint == "best" else f"{protocol.name}_last")
    chosen = any(key in ("threat", "threats") for key, _ in pairs_of(overrides))
    request = Request(
        place,
        tuple(_without_suite(overrides)),
        trust_code,
        options.label,
        options.checkpoint,
        None,
        ProtocolRequest(protocol.name, label, chosen, options.trained_on, options.planes),
    )
    spot = place_of_this_process()
    if spot is not None and spot.rank:
        serve_evaluations(spot, request)
        return 0
    with ExitStack() as held:
        on = options.on
        sharing: Sharing = Together(spot, run.config.runtime, request) if on is None else OnRay(on, request)
        held.callback(sharing.close)  # also if this process refuses: the others of a cluster wait for it
        subject = load_subject(run, trust_code, checkpoint=options.checkpoint)
        plan = protocol_plan(protocol, subject, label, chosen, options.trained_on, options.planes, options.dry_run)
        _announce(plan, subject)
        if options.dry_run:
            PlainConsole().print("nothing was evaluated, and nothing was written")
            return 0
        result = _carried_out(run, plan, request, subject, sharing, options, held)
    _print(PlainConsole(), run, result)
    return 0


def _announce(plan: ProtocolPlan, subject: Subject) -> None:
    console = PlainConsole()
    console.print(plan_table(plan, subject.data))
    reference = [f"trained on: {one.config.threat}, which the others are compared with" for one in plan.trained]
    for line in (*reference, *(f"left out: {one}" for one in plan.terms.left_out)):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _carried_out(
    run: GivenRun,
    plan: ProtocolPlan,
    request: Request,
    subject: Subject,
    sharing: Sharing,
    options: ProtocolOptions,
    held: ExitStack,
) -> ProtocolResult:
    """Carry out the evaluations that are left, and write the numbers over all of them."""
    file = protocol_file(run.folder, plan.terms.label)
    if file.is_file() and not (options.overwrite or options.keep):
        raise RunError(f"{file} exists already: --overwrite replaces it, --keep leaves it as it is")
    identity = weights_hash(subject.model), subject.data.digest()
    if not run.is_new:
        for one in plan.own:
            held.enter_context(lock_evaluation(one.target))
    if options.overwrite:
        file.unlink(missing_ok=True)
    left = [one for one in plan.own if options.overwrite or not _is_finished(one, identity, PlainConsole())]
    done = {one.target.name: read_rows(one.target) for one in plan.evaluations if one not in left}
    if left:
        done |= carried_out(run, left, request, held, None, sharing, subject=subject, advice="")
    return _written(run, plan, done)


def _without_suite(overrides: Sequence[str]) -> list[str]:
    """Settings without the suite, which may not be defined for the threat of the run."""
    return [word for key, value in pairs_of(overrides) if key != SUITE for word in (f"--{key}", value)]


def _is_finished(plan: PlannedEvaluation, identity: tuple[str, str], console: Console) -> bool:
    """Return True if an evaluation is there already, from an earlier call.

    Args:
        plan: the evaluation.
        identity: hashes of the weights and of the images.
        console: prints what is kept.

    Raises:
        RunError: it is of another threat, suite, model, seed, mode or other images.
    """
    if not (plan.target / SUMMARY).is_file():
        if plan.target.exists():
            raise RunError(f"{plan.target} exists already and is not an evaluation: remove it, or give --as NAME")
        return False
    kept = read_summary(plan.target)
    differs = _difference(kept, plan, identity)
    if differs:
        raise RunError(f"{plan.target} has {differs}: --overwrite replaces it, --as NAME gives another name")
    console.print(f"{plan.target} exists already and is kept", soft_wrap=True, markup=False, highlight=False)
    return True


def _difference(kept: Summary, plan: PlannedEvaluation, identity: tuple[str, str]) -> str:
    config, (weights, images) = plan.config, identity
    pairs = {
        "threat": (kept.threat.text, str(config.threat)),
        "suite": (kept.suite.name, config.evaluation.suite),
        "seed": (kept.suite.seed, config.seed),
        "weights": (kept.model.weights_sha256, weights),
        "images": (kept.data.sha256, images),
    }
    found = [name for name, (there, here) in pairs.items() if there != here]
    return f"other {' and '.join(found)}" if found else ""


def _written(run: GivenRun, plan: ProtocolPlan, done: dict[str, Tested]) -> ProtocolResult:
    found = {one.target.name: done[one.target.name] for one in plan.evaluations}
    result = protocol_result(plan.terms, found, [one.target.name for one in plan.trained])
    write_protocol(run.folder, result)
    return result


def _print(console: Console, run: GivenRun, result: ProtocolResult) -> None:
    console.print(result_table(run.folder.resolve().name, result))
    for sentence in result.doubts:
        console.print(f"! {sentence}", soft_wrap=True, highlight=False, markup=False)
    for note in result.terms.notes:
        console.print(f"- {note}", soft_wrap=True, highlight=False, markup=False)
    folder, label = quote(str(run.folder)), result.terms.label
    console.print(
        f"numbers: {protocol_file(run.folder, label)}\nnext: robustly audit {folder} --as {label}, or "
        f"robustly report {folder}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
