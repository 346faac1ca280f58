"""The attacks of a suite, one after the other: who sees which example, and what each leaves as evidence."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from robustly.attacks import Attack
from robustly.evaluation.checkpoint import Finished, Partial
from robustly.evaluation.confirmation import attack_rows, empty_columns
from robustly.evaluation.diagnostics import Finding
from robustly.evaluation.suites.suite import Suite
from robustly.evaluation.target import EvaluationTarget, Mode, Progress
from robustly.statistics import Proportion


class EvaluationError(ValueError):
    """A model or data set that cannot be evaluated; the message says why."""


@dataclass(frozen=True)
class Stages:
    """What the attacks of a suite found.

    Args:
        table: the evidence table with the columns of every attack and of the worst case.
        images: adversarial images and their ids.
        seconds: by attack.
        unconfirmed: successes that a second look did not confirm.
        failures: attacks that raised, with the message.
        findings: what sentinels say of the stages before them.
        suspicions: sentences on why those stages may have missed something.
    """

    table: dict[str, Tensor]
    images: dict[str, Tensor]
    seconds: dict[str, float]
    unconfirmed: int
    failures: dict[str, str]
    findings: list[Finding]
    suspicions: list[str]


def run_stages(
    target: EvaluationTarget,
    suite: Suite,
    table: Mapping[str, Tensor],
    *,
    mode: Mode,
    suspicions: list[str],
    partial: Partial | None,
    progress: Progress,
) -> Stages:
    """Run the attacks of a suite in their order.

    An attack that raises costs its own numbers and no others: the failure is recorded, and what it would have
    broken stands as far as this evaluation knows.

    Args:
        subject: what is evaluated.
        suite: with what.
        table: the columns of the clean pass.
        mode: see `evaluate`.
        suspicions: reasons known beforehand to run the stages that wait for one.
        partial: where finished attacks are kept.
        hear: progress.

    Raises:
        EvaluationError: every attack failed.
    """
    wrong = table["clean_prediction"] != table["label"]
    done = Stages(dict(table), {}, {}, 0, {}, [], [])
    unbroken, standing_8bit, closeness = ~wrong, ~wrong, -table["clean_margin"]
    unconfirmed = 0
    for name, attack in suite.attacks.items():
        plan = suite.plan(name)
        if plan.on_suspicion and not (suspicions or done.suspicions):
            rows = torch.zeros(0, dtype=torch.int64, device=wrong.device)
        elif mode == "every":
            rows = (~wrong).nonzero()[:, 0]
        else:
            rows = plan.rows(unbroken, closeness, target.data.ids, target.seed)
        found = _finished(target, name, attack, rows, partial, progress, done.failures)
        broken_before = ~unbroken if mode == "worst_case" else wrong
        broken_8bit_before = ~standing_8bit if mode == "worst_case" else wrong
        columns = {key: value.to(wrong.device) for key, value in found.columns.items()}
        if plan.sentinel and len(rows):
            fooled = int(columns[f"{name}.broken"][rows].sum())
            done.findings.append(_sentinel(name, suite.title(name), fooled, len(rows)))
            if fooled:
                done.suspicions.append(
                    f"{suite.title(name)}, a search of another kind, broke {fooled} of {len(rows)} images that "
                    "every attack before it had left standing."
                )
        closeness = torch.fmax(closeness, columns[f"{name}.margin"])
        columns[f"{name}.broken"] = columns[f"{name}.broken"] | broken_before
        columns[f"{name}.broken_8bit"] = columns[f"{name}.broken_8bit"] | broken_8bit_before
        unbroken = unbroken & ~columns[f"{name}.broken"]
        standing_8bit = standing_8bit & ~columns[f"{name}.broken_8bit"]
        done.table.update(columns)
        done.images.update({key: value.to(wrong.device) for key, value in found.images.items()})
        done.seconds[name] = found.seconds
        unconfirmed += found.unconfirmed
    if suite.attacks and len(done.failures) == len(suite.attacks):
        raise EvaluationError(f"every attack failed, the first with: {next(iter(done.failures.values()))}")
    done.table.update({"worst_case.broken": ~unbroken, "worst_case.broken_8bit": ~standing_8bit})
    return Stages(done.table, done.images, done.seconds, unconfirmed, done.failures, done.findings, done.suspicions)


def _finished(
    target: EvaluationTarget,
    name: str,
    attack: Attack,
    rows: Tensor,
    partial: Partial | None,
    progress: Progress,
    failures: dict[str, str],
) -> Finished:
    """What an attack finds, or found before the evaluation was killed, or nothing where it raises."""
    stored = partial.load(name) if partial is not None else None
    if stored is not None:
        return stored
    began = time.perf_counter()
    try:
        columns, images, unconfirmed = attack_rows(target, attack, rows, name, progress)
    except Exception as error:
        failures[name] = f"{type(error).__name__}: {error}"
        columns, images = empty_columns(target, name)
        return Finished(columns, images, 0, time.perf_counter() - began)
    finished = Finished(columns, images, unconfirmed, time.perf_counter() - began)
    if partial is not None:
        partial.save(name, finished)
    return finished


def _sentinel(name: str, title: str, fooled: int, count: int) -> Finding:
    bound = Proportion(fooled, count).interval[1]
    return Finding(
        id=f"sentinel:{name}",
        title=f"{title}: the attacks before left nothing for a search of another kind",
        passed=fooled == 0,
        value=fooled / count,
        threshold="0 broken",
        words=f"{fooled} of {count} images that stood until then fell; with 95 % confidence at most "
        f"{100 * bound:.1f} % of the survivors would.",
    )
