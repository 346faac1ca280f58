"""Attack standing examples again, and certify all examples again."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from robustly.certification import Certificate
from robustly.evaluation.audit.again import Again, attack_again, differences
from robustly.evaluation.audit.check import Check
from robustly.evaluation.audit.sampling import BROKEN_LEAST, BROKEN_SHARE, Sampling, drawn
from robustly.evaluation.certificates import run_certificate
from robustly.evaluation.curve import curve_radii
from robustly.evaluation.recording import certificate_columns
from robustly.evaluation.suites.suite import Suite, in_full_precision
from robustly.evaluation.target import EvaluationTarget, no_progress
from robustly.evidence import Evidence
from robustly.evidence.schema import AttackColumns, CertificateColumns, Double, EvidenceTable, Flags, Whole
from robustly.evidence.summary import CertificateTerms

_NAMED = 5  # ids that a message names


def rerun_checks(evidence: Evidence, target: EvaluationTarget, suite: Suite, sampling: Sampling) -> Iterator[Check]:
    """Attack a sample of the standing examples and all examples with NaN outputs again, and certify all again.

    The sample depends on the number of standing examples and on `sampling` alone, and every audit draws another.
    """
    table = evidence.table
    order, exact = sampling.order(len(table)), _same_margins(target, table)
    run = suite if evidence.summary.precision != "full" else in_full_precision(suite)
    staged = evidence.summary.suite.mode == "worst_case"
    standing: Flags = table.correct & ~table.worst_case.broken
    for name, attack in run.attacks.items():
        if name not in table.attacks or name in evidence.summary.failures:
            continue  # `suite_check` and `attacks_checks` report these
        columns = table.attacks[name]
        populations = [standing] if staged else [standing, columns.tried & ~columns.broken]
        chosen = np.zeros(len(table), dtype=bool)
        for population in populations:
            chosen[drawn(order, population, sampling.size(int(population.sum())))] = True
        chosen &= columns.tried
        tried = int((chosen & ~columns.broken).sum())
        others = columns.tried & ~np.any(populations, axis=0)
        chosen[drawn(order, others, _part(int(others.sum()), sampling))] = True
        rows = np.flatnonzero(chosen)
        again = attack_again(target, table, name, attack, rows, ~columns.broken & columns.tried)
        yield _standing_check(name, table, columns, again, tried)
        yield Check(f"{name}: passes and margins", differences(again, columns, exact=exact))
        invalid = np.flatnonzero(columns.invalid)
        if len(invalid):
            nothing = attack_again(target, table, name, attack, invalid, np.zeros(len(table), dtype=bool))
            same = bool(nothing.columns.invalid[invalid].all())
            yield Check(
                f"{name}: {len(invalid)} examples without an output attacked again",
                "" if same else "some have one",
            )
    yield from _curve_check(evidence, target, run, sampling, order)
    for name, certificate in suite.certificates.items():
        if name in table.certificates:
            proved, terms = table.certificates[name], evidence.summary.terms[name]
            yield Check(f"certificate {name}", _certificate_problem(target, name, certificate, proved, terms))


def _part(count: int, sampling: Sampling) -> int:
    return count if sampling.everything else max(BROKEN_LEAST, int(np.ceil(BROKEN_SHARE * count)))


def _same_margins(target: EvaluationTarget, table: EvidenceTable) -> bool:
    """Return True if the clean margins are the stated ones, bit by bit, for the first batch."""
    rows = torch.arange(min(target.batch_size, len(table)), device=target.data.images.device)
    logits = target.logits(target.data.floats, rows).cpu()
    label = torch.from_numpy(table.examples.label[: len(rows)])
    own = logits.gather(1, label[:, None])[:, 0]
    rest = logits.scatter(1, label[:, None], -torch.inf).amax(1)
    return bool(np.array_equal((own - rest).numpy(), table.examples.clean_margin[: len(rows)]))


def _standing_check(name: str, table: EvidenceTable, columns: AttackColumns, again: Again, tried: int) -> Check:
    unbroken = int((columns.tried & ~columns.broken).sum())
    problem = ""
    if len(again.fallen):
        problem = f"{len(again.fallen)} broke ({_ids(table, again.fallen)})"
    note = f"broken by no more than rounding: {_ids(table, again.near_ties)}" if len(again.near_ties) else ""
    return Check(f"{name}: {tried} of {unbroken} unbroken examples attacked again", problem, note)


def _ids(table: EvidenceTable, rows: Whole) -> str:
    found = [str(one) for one in table.examples.id[rows[:_NAMED]].tolist()]
    return f"ids {', '.join(found)}" + (", ..." if len(rows) > _NAMED else "")


def _curve_check(
    evidence: Evidence, target: EvaluationTarget, suite: Suite, sampling: Sampling, order: Whole
) -> Iterator[Check]:
    """Attack a sample of the curve's examples again, each at the largest size at which it is stated to stand."""
    table, name = evidence.table, suite.curve
    sizes = [float(radius) for radius in curve_radii(target.threat, suite)]
    if name is None or table.curve is None or not sizes or name not in table.attacks:
        return
    attack = suite.attacks[name]
    if attack.minimum_norm and bool((table.attacks[name].tried | ~table.correct).all()):
        return  # `curve_check` derives it from the rows of the attack
    largest = _largest_standing(table.curve.distance.astype(np.float64), sizes)
    population: Flags = np.isfinite(largest) & table.correct
    sample = drawn(order, population, sampling.size(int(population.sum())))
    fallen, ties = [], []
    for radius, size in zip(curve_radii(target.threat, suite), sizes, strict=True):
        rows = sample[np.isclose(largest[sample], size, rtol=1e-6, atol=0)]
        if len(rows):
            there = replace(target, threat=target.threat.with_extent(radius))
            again = attack_again(there, table, name, attack, rows, population)
            fallen.append(again.fallen)
            ties.append(again.near_ties)
    broke, near = (np.concatenate([np.zeros(0, dtype=np.int64), *parts]) for parts in (fallen, ties))
    yield Check(
        f"security curve: {len(sample)} of {int(population.sum())} unbroken examples attacked again",
        f"{len(broke)} broke ({_ids(table, broke)})" if len(broke) else "",
        f"broken by no more than rounding: {_ids(table, near)}" if len(near) else "",
    )


def _largest_standing(distance: Double, sizes: Sequence[float]) -> Double:
    """The largest size of the grid below each distance; NaN where there is none or the example was not tried."""
    grid = np.array(sizes)
    below = np.searchsorted(grid, np.nan_to_num(distance, nan=0.0, posinf=np.inf) * (1 - 1e-6), side="left")
    found: Double = np.where(below > 0, grid[np.maximum(below - 1, 0)], np.nan)
    return found


def _certificate_problem(
    target: EvaluationTarget,
    name: str,
    certificate: Certificate,
    stated: CertificateColumns,
    terms: CertificateTerms,
) -> str:
    """The difference between a certificate and the stated one, or an empty text.

    Counterexamples have a separate check and need not be found again. Verdicts that are neither verified nor
    falsified may differ, because they depend on the available time.
    """
    result = run_certificate(target, certificate, name, no_progress)
    if result.certifies != terms.certifies:
        return f"it certifies {result.certifies}, not {terms.certifies}"
    if terms.failure_probability is not None and result.failure_probability > terms.failure_probability:
        return f"its failure probability is {result.failure_probability:g}, not {terms.failure_probability:g}"
    again = certificate_columns(result)
    wrong = ~np.isclose(stated.radius, again.radius, rtol=1e-4, atol=1e-6)
    wrong |= (stated.prediction != again.prediction) | (stated.verified & ~again.verified)
    wrong |= stated.verified & ~np.isclose(
        stated.lower_bound, again.lower_bound, rtol=1e-3, atol=1e-5, equal_nan=True
    )
    return f"{int(wrong.sum())} verdicts are not reproduced" if wrong.any() else ""
