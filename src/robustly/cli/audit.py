"""`robustly audit`."""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from robustly.api.result import suite_of
from robustly.cli.arguments import READS_WEIGHTS, Trust
from robustly.cli.terminal import PlainConsole
from robustly.cli.together import leads, results_of_processes
from robustly.data import load_test
from robustly.evaluation import Audit, Check, EvaluationTarget, Sampling, audit
from robustly.evaluation.audit.statements import Named
from robustly.evaluation.parts import Crew
from robustly.evaluation.shards import ServedError, ShardedCrew, divided
from robustly.evidence import EvidenceError, Summary, read_evidence
from robustly.evidence.audit_record import STATED, write_audit
from robustly.evidence.domains import SPLITS, stated_part
from robustly.evidence.schema import SUMMARY
from robustly.experiments.configuration import RunConfig, build_config
from robustly.experiments.domains_audit import domain_checks
from robustly.experiments.locks import repair_evaluations
from robustly.experiments.rows_audit import rows_checks
from robustly.experiments.run_folder import (
    EVALUATION,
    Checkpoint,
    RunError,
    evaluation_data,
    evaluation_folder,
    load_on_device,
    open_run,
)
from robustly.experiments.seen_attacks import seen_attacks_check
from robustly.experiments.signature import read_private_key, read_public_key, sign, signature_check
from robustly.experiments.surrogates import load_surrogates
from robustly.runtime import RuntimeConfig


@dataclass(frozen=True)
class AuditOptions:
    """The options of `robustly audit`.

    Args:
        sampling: the guarantee.
        label: name of the evaluation if the run has several.
        sign: file of a private key, with which a passed evaluation is signed.
        verify: file of a public key, with which the evaluation must be signed.
        brief: whether checks that passed are counted only.
        runtime: processes that share the work, or the weights.
    """

    sampling: Sampling
    label: str | None = None
    sign: Path | None = None
    verify: Path | None = None
    brief: bool = False
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


def run_audit(folder: Path, options: AuditOptions, trust_code: bool) -> int:
    """Re-check the evaluation of a run; 0 if every check passed, else 1.

    Raises:
        ValueError: the folder has no run, weights or data cannot be read, or a key is not one.
        OSError: a key cannot be read.
    """
    code = max(run_audits(folder, [options], trust_code), default=0)
    others = [file.parent.name.removeprefix(f"{EVALUATION}_") for file in folder.glob(f"{EVALUATION}_*/{SUMMARY}")]
    labels = sorted(label for label in others if "." not in label)  # not parts of an evaluation that was stopped
    if options.label is None and labels and leads():
        PlainConsole().print(
            f"not audited: the other evaluations of the run: {', '.join(labels)} (--as NAME)",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    return code


def run_audits(folder: Path, options: Sequence[AuditOptions], trust_code: bool) -> Iterator[int]:
    """Re-check several evaluations of a run, one after the other; 0 for each where every check passed, else 1.

    In another process of torchrun or SLURM than process 0 there are none.

    Raises:
        ValueError: as `run_audit`.
        OSError: a key cannot be read.
    """
    for one in options:
        for key, read in ((one.sign, read_private_key), (one.verify, read_public_key)):
            if key is not None:
                read(key)  # a wrong file must not cost the user an audit
    open_run(folder)
    if leads():
        repair_evaluations(folder)
    labels = [one.label for one in options]
    for label in labels:
        kept = evaluation_folder(folder, label)
        if not kept.is_dir():
            raise RunError(f"{kept} does not exist: evaluate first (robustly evaluate {folder})")
    config = options[0].runtime if options else RuntimeConfig()
    arguments = (folder, labels, [one.sampling for one in options], trust_code)
    waiting = iter(options)
    for result, notes in results_of_processes(_all_audited, arguments, config):
        yield _finished(folder, next(waiting), result, notes)


def _finished(folder: Path, options: AuditOptions, result: Audit, notes: tuple[str, ...]) -> int:
    """Write and print the outcome of an audit; 0 if every check passed, else 1."""
    console, kept = PlainConsole(), evaluation_folder(folder, options.label)
    if options.verify is not None:
        result = replace(result, checks=(*result.checks, signature_check(folder, kept, options.verify)))
    if (kept / SUMMARY).is_file():
        write_audit(kept, result.record(kept, notes))
    _print(console, result, notes, options.brief)
    if options.sign is not None and result.passed:
        signed = sign(folder, kept, options.sign)
        console.print(f"signed by the key {signed.fingerprint}...", highlight=False)
    return 0 if result.passed else 1


def _all_audited(
    folder: Path, labels: Sequence[str | None], samplings: Sequence[Sampling], trust_code: bool, crew: Crew
) -> Iterator[tuple[Audit, tuple[str, ...]]]:
    config = open_run(folder)
    for label, sampling in zip(labels, samplings, strict=True):
        with suppress(ServedError):
            yield _audited(folder, evaluation_folder(folder, label), config, sampling, trust_code, crew)


def _audited(
    folder: Path, kept: Path, config: RunConfig, sampling: Sampling, trust_code: bool, crew: Crew
) -> tuple[Audit, tuple[str, ...]]:
    """The audit, and remarks for readers."""
    try:
        summary = read_evidence(kept).summary
    except EvidenceError as error:
        return Audit((Check("the evidence is complete and readable", str(error)),), sampling.words()), ()
    if summary.data.settings is None:
        problem = f"{kept} does not state the settings of its data"
        return Audit((Check("the data can be loaded again", problem),), sampling.words()), ()
    used = replace(config, data=build_config({"data": summary.data.settings}).data)
    part = stated_part(summary.data.split)
    data = load_test(used.data, part)
    rows = rows_checks(folder, config, summary, data)
    trusts = Trust(everything=trust_code).allows
    is_divided = isinstance(crew, ShardedCrew)
    if is_divided and summary.metrics.certified is not None:
        raise RunError(f"--runtime.strategy fsdp: the audit of certificates {READS_WEIGHTS}; leave it out")
    checkpoint: Checkpoint = "last" if summary.model.is_last_epoch else "best"
    loaded = load_on_device(folder, used, data, trusts, checkpoint, whole=not is_divided)
    target = EvaluationTarget(divided(loaded.model, crew, loaded.device), loaded.data, config.threat, crew=crew)
    split = "test" if used.data.domains is None else SPLITS[part]
    named = Named(config.model.name, loaded.checkpoint, used.data.tested_title(part), split)
    suite = suite_of(summary)
    try:
        suite = None if suite is None else load_surrogates(suite, used, loaded.data, trusts, loaded.device)
    except RunError as error:
        return Audit((Check("the surrogates can be loaded again", str(error)),), sampling.words()), ()
    result = audit(kept, target, suite, sampling=sampling, named=named)
    domains = domain_checks(kept, config.data, used.data, summary)
    marks = seen_attacks_check(folder, config, summary, suite)
    result = replace(result, checks=(*result.checks, *rows, marks, *domains))
    remarks = [f"{check.name}: {check.note}" for check in result.checks if check.note]
    moved = (
        [] if summary.run == folder.resolve().name else [f"the run was {_short(summary.run)} when it was evaluated"]
    )
    return result, (*moved, *unlike_run(summary, config), *remarks)


def unlike_run(summary: Summary, config: RunConfig) -> list[str]:
    """Settings of an evaluation that are not those of its run, as sentences.

    Evaluations may have settings of their own, such as another threat. A reader should see them.
    """
    evaluation, own = config.evaluation, evaluation_data(config)
    stated = summary.data.settings or {}
    data = replace(config, data=own).as_plain()["data"]
    pairs = {f"data.{key}": (data.get(key), stated.get(key)) for key in {**data, **stated} if key in stated}
    missing = sorted(set(data) - set(stated))
    composed = None if summary.composed is None else {key: dict(value) for key, value in summary.composed.items()}
    stages = None if evaluation.stages is None else {key: dict(value) for key, value in evaluation.stages.items()}
    mode = {evaluation.mode, "worst_case"}  # suites in stages always use the second
    pairs |= {
        "threat": (str(config.threat), summary.threat.text),
        "threat.box": (tuple(config.threat.box), tuple(summary.threat.box)),
        "evaluation.suite": (evaluation.suite, summary.suite.name),
        "evaluation.stages": (stages, composed),
        "evaluation.mode": (evaluation.mode, summary.suite.mode)
        if summary.suite.mode not in mode
        else (None, None),
        "seed": (config.seed, summary.suite.seed),
    }
    curve = summary.metrics.security_curve
    expected = min(evaluation.curve_count or summary.data.count, summary.data.count)
    if curve is not None and curve.count < expected:
        pairs["evaluation.curve_count"] = (expected, curve.count)
    found = [f"this evaluation does not state the settings {', '.join(missing)} of its data"] if missing else []
    if any(part.startswith("subspace:") for part in re.split("[+&]", summary.threat.text)):
        found.append("whether the principal directions are those of the training images is stated, not checked")
    return found + [
        f"{key} is {_short(stated)} in this evaluation, {_short(own)} in the run's settings"
        for key, (own, stated) in sorted(pairs.items())
        if own != stated
    ]


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _print(console: Console, result: Audit, notes: tuple[str, ...], brief: bool) -> None:
    for check in result.checks:
        if brief and check.passed:
            continue
        mark = "[green]ok    [/]" if check.passed else "[red]FAILED[/]"
        tail = f": {check.problem}" if check.problem else ""
        console.print(f"{mark} {escape(check.name + tail)}", highlight=False, soft_wrap=True)
    for note in notes:
        console.print(f"[yellow]note  [/] {escape(note)}", highlight=False, soft_wrap=True)
    verdict = "[green]audit passed" if result.passed else "[red]AUDIT FAILED"
    console.print(f"{verdict}[/]: {sum(check.passed for check in result.checks)} of {len(result.checks)} checks")
    if result.passed:
        console.print(result.guarantee, highlight=False, soft_wrap=True)
    if not brief:
        console.print(f"stated, not checked: {'; '.join(STATED)}", highlight=False, soft_wrap=True)
