"""Attack standing examples again."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from robustly.attacks import Attack
from robustly.evaluation.audit.again import LARGEST, Again, attack_again, differences
from robustly.evaluation.audit.check import Check
from robustly.evaluation.audit.rounding import Rounding, too_many_ties
from robustly.evaluation.audit.sampling import BROKEN_LEAST, BROKEN_SHARE, Sampling, drawn
from robustly.evaluation.audit.selection import Closeness, misplaced
from robustly.evaluation.curve import curve_radii
from robustly.evaluation.recording import as_array
from robustly.evaluation.suites.suite import Suite, in_full_precision
from robustly.evaluation.target import EvaluationTarget
from robustly.evidence import Evidence
from robustly.evidence.schema import AttackColumns, Double, EvidenceTable, Flags, Whole
from robustly.objectives import ClassificationGoal, margin

_NAMED = 5  # ids that a message names
_OTHER_SIZES = 0.1  # share of the curve's sample that may break on a machine with other rounding


def rerun_checks(
    evidence: Evidence,
    target: EvaluationTarget,
    suite: Suite,
    sampling: Sampling,
    rounding: Rounding,
    clean: Tensor,
) -> Iterator[Check]:
    """Attack a sample of the standing examples and all examples with NaN outputs again.

    The sample depends on the number of standing examples and on `sampling` alone, and every audit draws another.

    Args:
        evidence: the evidence.
        target: the model, the data and the threat.
        suite: the suite of the evaluation.
        sampling: the guarantee.
        rounding: rounding of the network.
        clean: logits of the clean images, `(N, K)`.
    """
    table = evidence.table
    order, exact = sampling.order(len(table), target.crew), _same_margins(table, clean[: target.batch_size])
    run = suite if evidence.summary.precision != "full" else in_full_precision(suite)
    staged = evidence.summary.suite.mode == "worst_case"
    standing: Flags = table.correct & ~table.worst_case.broken
    sample = drawn(order, standing, sampling.size(int(standing.sum())))
    unbroken, closeness = table.correct, Closeness(-table.examples.clean_margin, -table.examples.clean_margin)
    for name, attack in run.attacks.items():
        if name not in table.attacks or name in evidence.summary.failures:
            continue  # `suite_check` and `attacks_checks` report these
        columns, plan = table.attacks[name], run.plan(name)
        chosen = _chosen(columns, standing, order, sampling, has_own=plan.sentinel or not staged)
        rows, stands = np.flatnonzero(chosen), ~columns.broken & columns.tried
        again = attack_again(target, table, name, attack, rows, stands=stands, rounding=rounding)
        yield _standing_check(name, table, again, int((chosen & stands).sum()), int(stands.sum()))
        yield Check(f"{name}: passes and margins", differences(again, columns, exact=exact))
        if plan.closest < 1 and columns.tried.any():
            yield Check(f"{name}: the closest examples", misplaced(table, plan, unbroken, sample, closeness))
        if columns.invalid.any():
            yield _invalid_check(target, table, name, attack, rounding)
        unbroken = unbroken & ~columns.broken
        closeness = closeness.after(columns.margin, again.columns.margin)
    yield from _curve_check(evidence, target, run, sampling, order, rounding, exact=exact)


def _chosen(columns: AttackColumns, standing: Flags, order: Whole, sampling: Sampling, *, has_own: bool) -> Flags:
    """Mask of the rows on which an attack is repeated.

    Args:
        columns: its rows.
        standing: mask of the rows that no attack broke.
        order: random order of the rows.
        sampling: the guarantee, for the standing rows and for the column of the attack.
        has_own: whether the column of the attack has the guarantee too: in mode `every`, and for a sentinel, which
            decides whether further stages run. Of another stage, only a tenth of the other rows is checked.
    """
    own: Flags = columns.tried & ~columns.broken
    chosen = np.zeros(len(standing), dtype=bool)
    for population in (standing, own) if has_own else (standing,):
        chosen[drawn(order, population, sampling.size(int(population.sum())))] = True
    chosen &= columns.tried
    others = columns.tried & (columns.broken if has_own else ~standing)
    chosen[drawn(order, others, _part(int(others.sum()), sampling))] = True
    spent = np.where(columns.tried, columns.forwards + columns.backwards, -1)
    largest = np.argsort(spent, kind="stable")[-LARGEST:]
    chosen[largest[columns.tried[largest]]] = True
    return chosen


def _invalid_check(
    target: EvaluationTarget, table: EvidenceTable, name: str, attack: Attack, rounding: Rounding
) -> Check:
    invalid, nobody = np.flatnonzero(table.attacks[name].invalid), np.zeros(len(table), dtype=bool)
    again = attack_again(target, table, name, attack, invalid, stands=nobody, rounding=rounding)
    same = bool(again.columns.invalid[invalid].all())
    title = f"{name}: {len(invalid)} examples without an output attacked again"
    return Check(title, "" if same else "some have one")


def _part(count: int, sampling: Sampling) -> int:
    return count if sampling.everything else max(BROKEN_LEAST, int(np.ceil(BROKEN_SHARE * count)))


def _same_margins(table: EvidenceTable, clean: Tensor) -> bool:
    """Return True if the margins of some clean logits `(M, K)`, the first ones, are the stated ones, bit by bit."""
    label = torch.from_numpy(table.examples.label[: len(clean)]).to(clean.device)
    own = as_array(-margin(clean, ClassificationGoal(label)))
    return bool(np.array_equal(own, table.examples.clean_margin[: len(clean)]))


def _standing_check(name: str, table: EvidenceTable, again: Again, tried: int, unbroken: int) -> Check:
    title = f"{name}: {tried} of {unbroken} unbroken examples attacked again"
    return Check(title, *_fallen(table, again.fallen, again.near_ties, tried))


def _fallen(table: EvidenceTable, fallen: Whole, ties: Whole, tried: int) -> tuple[str, str]:
    """The problem with repeated attacks on `tried` standing examples, and a remark on near-ties."""
    problem = f"{len(fallen)} broke ({_ids(table, fallen)})" if len(fallen) else ""
    if not problem and too_many_ties(len(ties), tried):
        problem = f"{len(ties)} broke by no more than rounding ({_ids(table, ties)}): so many ties prove nothing"
    return problem, f"broken by no more than rounding: {_ids(table, ties)}" if len(ties) else ""


def _ids(table: EvidenceTable, rows: Whole) -> str:
    found = [str(one) for one in table.examples.id[rows[:_NAMED]].tolist()]
    return f"ids {', '.join(found)}" + (", ..." if len(rows) > _NAMED else "")


def _curve_check(
    evidence: Evidence,
    target: EvaluationTarget,
    suite: Suite,
    sampling: Sampling,
    order: Whole,
    rounding: Rounding,
    *,
    exact: bool,
) -> Iterator[Check]:
    """Attack a sample of the curve's examples again, each at the largest size at which it is stated to stand.

    The curve is that of one attack. On a machine with other rounding it barely breaks some other examples.
    """
    table, name = evidence.table, suite.curve
    sizes = [float(radius) for radius in curve_radii(target.threat, suite)]
    if name is None or table.curve is None or not sizes or name not in table.attacks:
        return
    attack = suite.attacks[name]
    largest = _largest_standing(table.curve.distance.astype(np.float64), sizes)
    population: Flags = np.isfinite(largest) & table.correct
    sample = drawn(order, population, sampling.size(int(population.sum())))
    allowed = 0 if exact else max(1, int(_OTHER_SIZES * len(sample)))
    title = f"security curve: {len(sample)} of {int(population.sum())} unbroken examples attacked again"
    if attack.minimum_norm and bool((table.attacks[name].tried | ~table.correct).all()):
        found = attack_again(target, table, name, attack, sample, stands=~table.correct, rounding=rounding).columns
        nearer = sample[found.distance[sample].astype(np.float64) <= largest[sample] * (1 + 1e-6)]
        yield Check(title, *_few(table, nearer, allowed))
        return
    fallen, ties = [], []
    for radius, size in zip(curve_radii(target.threat, suite), sizes, strict=True):
        rows = sample[np.isclose(largest[sample], size, rtol=1e-6, atol=0)]
        if len(rows):
            there = replace(target, threat=target.threat.with_extent(radius))
            again = attack_again(there, table, name, attack, rows, stands=population, rounding=rounding)
            fallen.append(again.fallen)
            ties.append(again.near_ties)
    broke, near = (np.concatenate([np.zeros(0, dtype=np.int64), *parts]) for parts in (fallen, ties))
    problem, note = _few(table, broke, allowed)
    yield Check(title, problem, note or _fallen(table, broke[:0], near, len(sample))[1])


def _few(table: EvidenceTable, broke: Whole, allowed: int) -> tuple[str, str]:
    """The problem with examples that broke at a size at which they are stated to stand, or a remark on a few."""
    words = f"{len(broke)} broke ({_ids(table, broke)})" if len(broke) else ""
    if len(broke) > allowed:
        return words, ""
    return "", f"{words}, as after other rounding" if words else ""


def _largest_standing(distance: Double, sizes: Sequence[float]) -> Double:
    """The largest size of the grid below each distance; NaN where there is none or the example was not tried."""
    grid = np.array(sizes)
    below = np.searchsorted(grid, np.nan_to_num(distance, nan=0.0, posinf=np.inf) * (1 - 1e-6), side="left")
    found: Double = np.where(below > 0, grid[np.maximum(below - 1, 0)], np.nan)
    return found
