"""Audit of the attacks: check every stored image, and every row against the images."""

from collections.abc import Iterator

import numpy as np
import torch

from robustly.evaluation.audit.check import Check, Placed, first_id, placed
from robustly.evaluation.audit.eight_bit import eight_bit_checks
from robustly.evaluation.audit.rounding import Rounding
from robustly.evaluation.recording import as_array
from robustly.evaluation.suites.suite import planned_rows
from robustly.evaluation.target import EvaluationTarget
from robustly.evidence import Evidence, EvidenceTable, StoredImages, Summary
from robustly.evidence.schema import AttackColumns, Flags

_MOST_PASSES = 10**9


def attacks_checks(
    evidence: Evidence, target: EvaluationTarget, rounding: Rounding, is_suspicious: bool
) -> Iterator[Check]:
    """All checks of all attacks, and their union.

    Args:
        evidence: the evidence.
        target: the model, the data and the threat.
        rounding: rounding of the network.
        is_suspicious: whether a failed diagnostic requires the stages marked `on_suspicion`.
    """
    summary, table = evidence.summary, evidence.table
    for name, unbroken, expected in _expected(summary, table, is_suspicious):
        if name in summary.failures:
            yield Check(f"{name} ran", f"it failed: {summary.failures[name]}")
            continue
        columns, stored = table.attacks[name], evidence.images.attacks[name]
        problem = _row_problem(table, columns, stored, unbroken=unbroken, expected=expected)
        yield Check(f"{name}: rows and images agree", problem)
        if not problem:
            for title, wrong in _image_problems(columns, placed(stored, table, target), table, target, rounding):
                yield Check(f"{name}: {title}", wrong)
    yield from eight_bit_checks(evidence, target, rounding)
    yield _worst_case(table)


def _expected(summary: Summary, table: EvidenceTable, is_suspicious: bool) -> Iterator[tuple[str, Flags, Flags]]:
    """Name of each attack, the examples unbroken before it, and those that it had to attack."""
    correct = table.correct
    unbroken, closeness = correct, -table.examples.clean_margin
    survivors_only = summary.suite.mode == "worst_case"
    ids = torch.from_numpy(table.examples.id)
    for attack in summary.suite.attacks:
        plan, columns = attack.plan, table.attacks[attack.name]
        expected = np.zeros(len(table), dtype=bool)
        if not plan.on_suspicion or is_suspicious:
            state = torch.from_numpy(unbroken), torch.from_numpy(closeness)
            rows = as_array(planned_rows(plan, *state, ids, summary.suite.seed))
            expected[rows if survivors_only else correct] = True
        yield attack.name, unbroken if survivors_only else correct, expected
        is_suspicious |= plan.sentinel and bool((expected & columns.broken).any())
        closeness = np.fmax(closeness, columns.margin)
        unbroken = unbroken & ~columns.broken


def _row_problem(
    table: EvidenceTable, columns: AttackColumns, stored: StoredImages, *, unbroken: Flags, expected: Flags
) -> str:
    """The problem with the rows of an attack, or an empty text."""
    tried, invalid, broken = columns.tried, columns.invalid, columns.broken
    shown = np.isin(table.examples.id, stored.ids)
    found = tried & ~invalid & np.isfinite(columns.distance)
    if (~unbroken & ~broken).any() or (invalid & ~broken).any() or (invalid & ~tried).any():
        return "misclassified images and NaN outputs must count as broken"
    if not np.array_equal(tried, expected):
        return "the attacked examples are not those that the plan selects from the unbroken ones"
    if (unbroken & ~tried & broken).any():
        return "rows are broken that were not attacked"
    if (tried & ~invalid & broken & ~shown).any():
        return "rows are broken without an image"
    if not np.array_equal(shown, found) or int(shown.sum()) != len(stored):
        differing = shown != found
        where = f", first id {first_id(table, differing)}" if differing.any() else ""
        return f"{int(differing.sum())} rows do not agree with the images{where}"
    return _column_problem(columns, shown)


def _column_problem(columns: AttackColumns, shown: Flags) -> str:
    """The problem with values of rows that were not attacked or have no image, or an empty text."""
    tried = columns.tried
    untouched = AttackColumns.untried(len(tried))
    for column in ("forwards", "backwards", "passes_8bit", "zero_gradients", "margin", "distance", "prediction"):
        values, empty = getattr(columns, column), getattr(untouched, column)
        if not np.array_equal(values[~tried], empty[~tried], equal_nan=column in ("margin", "distance")):
            return f"{column} has values of examples that were not attacked"
        if column not in ("margin", "distance", "prediction") and (values < 0).any():
            return f"{column} is negative"
        if column in ("forwards", "backwards", "passes_8bit", "zero_gradients") and (values > _MOST_PASSES).any():
            return f"{column} is more than any attack takes"
    return "a prediction has no image" if (columns.prediction[~shown] != -1).any() else ""


def _image_problems(
    columns: AttackColumns, shown: Placed, table: EvidenceTable, target: EvaluationTarget, rounding: Rounding
) -> Iterator[tuple[str, str]]:
    """The checks of position, prediction and distance of every stored image of an attack, each with its problem."""
    here, x = shown.here, target.data.floats(shown.rows)
    broken, label = columns.broken[here], table.examples.label[here]
    allowed = target.threat.around(x)
    problem = shown.rendering_problem(allowed)
    yield "images are rendered from their parameters", problem
    if problem:
        return
    inside = as_array(allowed.contains(shown.points))
    stray, hidden = (broken & ~inside) | ~shown.in_box(target), inside & ~broken
    problem = f"{int(stray.sum())} images outside ball or box" if stray.any() else ""
    problem += f"{int(hidden.sum())} images inside it are not counted" if hidden.any() else ""
    yield "images inside the threat set", problem
    prediction = columns.prediction[here]
    correct = rounding.disagree(shown.logits(target), prediction) | (prediction == label)
    where = (
        f"{int(correct.sum())} are not, first id {int(table.examples.id[here[correct]][0])}"
        if correct.any()
        else ""
    )
    yield "images misclassified as stated", where
    measured = as_array(allowed.size(shown.points), torch.float32)
    off = ~np.isclose(columns.distance[here], measured, rtol=1e-4, atol=1e-5)
    yield "distances", f"{int(off.sum())} differ" if off.any() else ""


def _worst_case(table: EvidenceTable) -> Check:
    """Check that the worst case is the union of the attacks."""
    name, wrong = "worst case over the attacks", ~table.correct
    union = wrong | np.any([wrong, *(one.broken for one in table.attacks.values())], axis=0)
    union_8bit = wrong | np.any([wrong, *(one.broken_8bit for one in table.attacks.values())], axis=0)
    pairs = {"broken": (table.worst_case.broken, union), "broken_8bit": (table.worst_case.broken_8bit, union_8bit)}
    for column, (stated, expected) in pairs.items():
        if not np.array_equal(stated, expected):
            return Check(name, f"{column} is not the union of the attacks")
    return Check(name)
