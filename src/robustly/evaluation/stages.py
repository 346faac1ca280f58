"""Run the attacks of a suite in order, each on the examples that its plan selects."""

import time
import warnings
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from robustly.attacks import Attack
from robustly.evaluation.checkpoint import AttackEvidence, EvaluationCheckpoint
from robustly.evaluation.confirmation import attack_rows, untried
from robustly.evaluation.eight_bit import nothing_saved, save_in_8_bits
from robustly.evaluation.parts import WorkError
from robustly.evaluation.recording import as_array
from robustly.evaluation.sentinel import SentinelOutcome
from robustly.evaluation.suites.suite import Suite, planned_rows
from robustly.evaluation.target import EvaluationTarget, Mode, Progress
from robustly.evidence import EightBitImages, Finding, StoredImages
from robustly.evidence.provenance import Plan
from robustly.evidence.schema import AttackColumns, ExampleColumns, Flags, Single, WorstCaseColumns
from robustly.processes import ProcessError
from robustly.runtime import raise_if_lost


class EvaluationError(ValueError):
    """A model or data set that cannot be evaluated; the message gives the reason."""


@dataclass
class Stages:
    """The results of the attacks of a suite, filled in attack by attack.

    Args:
        worst_case: the union over the attacks so far.
        closeness: highest margin of each example so far.
        attacks: columns of each attack.
        images: images of each attack.
        eight_bit: images of 8 bits of each attack.
        seconds: duration of each attack.
        unconfirmed: number of successes that a second forward pass did not confirm.
        failures: error messages of attacks that raised.
        findings: outcomes of sentinels.
        suspicions: sentences on sentinels that broke more examples than chance explains.
        is_suspicious: whether a sentinel broke any example, so that the stages marked `on_suspicion` run.
    """

    worst_case: WorstCaseColumns
    closeness: Single
    attacks: dict[str, AttackColumns] = field(default_factory=dict)
    images: dict[str, StoredImages] = field(default_factory=dict)
    eight_bit: dict[str, EightBitImages] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    unconfirmed: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    suspicions: list[str] = field(default_factory=list)
    is_suspicious: bool = False


def run_stages(
    target: EvaluationTarget,
    suite: Suite,
    examples: ExampleColumns,
    *,
    mode: Mode,
    suspicions: list[str],
    checkpoint: EvaluationCheckpoint | None,
    progress: Progress,
) -> Stages:
    """Run the attacks of a suite in their order.

    If an attack raises an error, the error is recorded and the evaluation continues without its results.

    Args:
        target: the model, the data and the threat.
        suite: the attacks.
        examples: the columns of the clean pass.
        mode: see `evaluate`.
        suspicions: reasons from the diagnostics to run the stages marked `on_suspicion`.
        checkpoint: storage of finished attacks.
        progress: callback.

    Raises:
        EvaluationError: every attack failed.
        DeviceError: the device does not answer any more.
    """
    wrong = ~examples.correct
    done = Stages(WorstCaseColumns(wrong, wrong), -examples.clean_margin)
    for name, attack in suite.attacks.items():
        plan = suite.plan(name)
        suspected = bool(suspicions) or done.is_suspicious
        rows = _rows_to_attack(target, plan, examples, done, mode=mode, suspected=suspected)
        found = _finished(target, name, attack, rows, checkpoint, progress, done.failures)
        if plan.sentinel and len(rows):
            _watch(done, name, suite.title(name), found.columns.broken[as_array(rows)])
        _add(done, name, found, wrong if mode == "every" else None)
    if suite.attacks and len(done.failures) == len(suite.attacks):
        raise EvaluationError(f"every attack failed, the first with: {next(iter(done.failures.values()))}")
    return done


def _rows_to_attack(
    target: EvaluationTarget, plan: Plan, examples: ExampleColumns, done: Stages, *, mode: Mode, suspected: bool
) -> Tensor:
    device = target.data.device
    if plan.on_suspicion and not suspected:
        return torch.zeros(0, dtype=torch.int64, device=device)
    if mode == "every":
        return torch.from_numpy(np.flatnonzero(examples.correct)).to(device)
    unbroken, closeness = torch.from_numpy(~done.worst_case.broken), torch.from_numpy(done.closeness)
    return planned_rows(plan, unbroken.to(device), closeness.to(device), target.data.ids, target.seed)


def _finished(
    target: EvaluationTarget,
    name: str,
    attack: Attack,
    rows: Tensor,
    checkpoint: EvaluationCheckpoint | None,
    progress: Progress,
    failures: dict[str, str],
) -> AttackEvidence:
    """Load the evidence of an attack from the checkpoint, or run the attack; empty if it raises an error."""
    stored = checkpoint.load(name) if checkpoint is not None else None
    if stored is not None:
        if np.array_equal(np.flatnonzero(stored.columns.tried), as_array(rows)):
            return stored
        # an attack before it failed in one of the two processes
        warnings.warn(f"the attack {name!r} runs again: before the stop it ran on other images", stacklevel=4)
    began = time.perf_counter()
    try:
        found = attack_rows(target, attack, rows, name, progress)
        saved = save_in_8_bits(target, name, found.columns, found.images)
    except ProcessError:
        raise
    except Exception as error:
        raise_if_lost(error, target.data.device)
        failures[name] = str(error) if isinstance(error, WorkError) else f"{type(error).__name__}: {error}"
        found = untried(target)
        return AttackEvidence(found.columns, found.images, 0, time.perf_counter() - began, nothing_saved(target))
    seconds = time.perf_counter() - began
    finished = AttackEvidence(found.columns, found.images, found.unconfirmed, seconds, saved)
    if checkpoint is not None:
        checkpoint.save(name, finished)
        target.crew.forget_parts()
        return checkpoint.load(name) or finished  # from the disk: memory need not hold the images of all attacks
    return finished


def _add(done: Stages, name: str, found: AttackEvidence, wrong: Flags | None) -> None:
    """Add the results of an attack.

    Args:
        done: results of the attacks before it.
        name: name of the attack.
        found: results of the attack.
        wrong: examples that count as broken before it, if it was not run on the unbroken ones only.
    """
    own, before = found.columns, done.worst_case
    own.broken[:] |= before.broken if wrong is None else wrong
    own.broken_8bit[:] |= before.broken_8bit if wrong is None else wrong
    done.worst_case = WorstCaseColumns(before.broken | own.broken, before.broken_8bit | own.broken_8bit)
    done.closeness = np.fmax(done.closeness, own.margin)
    done.attacks[name], done.images[name], done.seconds[name] = own, found.images, found.seconds
    done.eight_bit[name] = found.eight_bit
    done.unconfirmed += found.unconfirmed


def _watch(done: Stages, name: str, title: str, broken: Flags) -> None:
    """Record the outcome of a sentinel on examples that the stages before it left unbroken."""
    before = done.worst_case.broken
    fooled = int(broken.sum())
    outcome = SentinelOutcome(name, title, fooled, len(broken), int((~before).sum()), len(before))
    done.findings.append(outcome.finding)
    done.suspicions += outcome.suspicions
    done.is_suspicious |= fooled > 0
