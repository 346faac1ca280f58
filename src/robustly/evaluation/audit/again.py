"""Attack some rows again, and compare what is found with what is stated."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robustly.attacks import Attack
from robustly.attacks.core.contract import frozen
from robustly.attacks.core.model_access import input_gradient, logits_of
from robustly.evaluation.audit.check import Placed, placed
from robustly.evaluation.audit.rounding import Rounding
from robustly.evaluation.confirmation import attack_rows
from robustly.evaluation.recording import as_array
from robustly.evaluation.target import EvaluationTarget, no_progress
from robustly.evidence import EvidenceTable
from robustly.evidence.schema import AttackColumns, Flags, Single, Whole
from robustly.objectives import ClassificationGoal, margin

_PUSHES = 20  # steps that move an adversarial example further behind the boundary
LARGEST = 5
"""Rows with the most passes that are attacked again, so that no single row carries a mean."""
_FACTOR = 10  # of their passes: a random search may be far faster or slower after other rounding
_OTHER_SUCCESSES = 0.5  # share of the broken rows whose search may end at another success, by rounding
_PROBE = 1  # forward passes by which two batches differ: the first one tests the copy in bfloat16


@dataclass(frozen=True)
class Again:
    """An attack repeated on some rows.

    Args:
        rows: the attacked rows, ascending, `(M,)`.
        columns: the columns of the repetition; rows that were not attacked are empty.
        fallen: rows that are stated to be unbroken and are clearly broken.
        near_ties: rows that are stated to be unbroken and are broken by no more than rounding, even after further
            steps.
    """

    rows: Whole
    columns: AttackColumns
    fallen: Whole
    near_ties: Whole


def attack_again(
    target: EvaluationTarget,
    table: EvidenceTable,
    name: str,
    attack: Attack,
    rows: Whole,
    *,
    stands: Flags,
    rounding: Rounding,
) -> Again:
    """Repeat an attack.

    Args:
        target: the model, the data and the threat.
        table: the rows of the evidence, for ids.
        name: name of the attack, on which its random numbers depend.
        attack: the attack.
        rows: rows to attack, ascending, `(M,)`.
        stands: mask of the rows that are stated to be unbroken, `(N,)`.
        rounding: rounding of the network.
    """
    device = target.data.device
    found = attack_rows(target, attack, torch.from_numpy(rows).to(device), name, no_progress)
    fell: Flags = found.columns.broken & stands
    clear = fell & found.columns.invalid
    shown = placed(found.images, table, target)
    here = torch.from_numpy(fell[shown.here]).to(device)
    if bool(here.any()):
        broken = shown.only(here)
        clear[broken.here] = as_array(_clearly_broken(target, broken, rounding))
    return Again(rows, found.columns, np.flatnonzero(clear), np.flatnonzero(fell & ~clear))


def _clearly_broken(target: EvaluationTarget, shown: Placed, rounding: Rounding) -> Tensor:
    """Mask of images that are misclassified by more than rounding, perhaps after further steps, `(M,)`."""
    data = target.data
    label, allowed = data.labels[shown.rows], target.threat.around(data.floats(shown.rows))
    theta, size = shown.points, allowed.default_step_size(4 * _PUSHES)
    clear = torch.zeros(len(label), dtype=torch.bool, device=label.device)
    low, high = target.threat.box
    for _ in range(_PUSHES):
        images = allowed.apply(theta).detach()
        logits = target.verdict(images, label)
        valid = ((images >= low) & (images <= high)).flatten(1).all(1) & allowed.contains(theta)
        gap = margin(logits, ClassificationGoal(label))
        clear |= valid & (gap > rounding.tolerance(logits))
        if bool(clear.all()):
            break
        with torch.enable_grad(), frozen(target.model):
            moved = theta.detach().clone().requires_grad_(True)
            ascent = margin(logits_of(target.model, allowed.apply(moved)), ClassificationGoal(label))
            gradient = input_gradient(ascent.sum(), moved)
        theta = allowed.project(allowed.step(theta, gradient, size))
    return clear


def differences(again: Again, stated: AttackColumns, *, exact: bool) -> str:
    """The difference between passes, margins and zero gradients and the stated ones, or an empty text.

    A search that finds nothing takes the same passes everywhere. Its best margin may differ between machines,
    because rounding changes its path.

    Args:
        again: the repetition.
        stated: the columns of the evidence.
        exact: whether this machine computes the same clean margins, bit by bit, as the one of the evaluation.
    """
    rows, mine = again.rows, again.columns
    if len(rows) == 0:
        return ""
    both = rows[~mine.broken[rows] & ~stated.broken[rows]]
    share = 0.1 if exact else 0.3
    spent = mine.forwards + mine.backwards, stated.forwards + stated.backwards
    problem = _pass_problem(again, stated, spent, both, exact=exact)
    if problem:
        return problem
    fell = rows[mine.broken[rows] & stated.broken[rows]]
    off = ~_close(mine.margin[fell], stated.margin[fell], exact)
    if exact and off.sum() > max(_OTHER_SUCCESSES * len(fell), 2):
        return f"{int(off.sum())} of {len(fell)} broken rows have another margin, as with another seed"
    off = ~_close(mine.margin[both], stated.margin[both], exact)
    if off.sum() > max(share * len(both), 1):
        return f"{int(off.sum())} of {len(both)} unbroken rows have another margin"
    flat = np.abs(mine.zero_gradients[both] - stated.zero_gradients[both]) > np.maximum(2, 0.1 * spent[0][both])
    if flat.sum() > max(share * len(both), 1):
        return f"{int(flat.sum())} of {len(both)} unbroken rows have another number of zero gradients"
    return ""


def _pass_problem(
    again: Again, stated: AttackColumns, spent: tuple[Whole, Whole], both: Whole, *, exact: bool
) -> str:
    """The difference between passes and the stated ones, or an empty text.

    Args:
        again: the repetition.
        stated: the columns of the evidence.
        spent: passes of the repetition and stated ones, `(N,)` each.
        both: rows that are unbroken in both.
        exact: see `differences`.
    """
    rows, share = again.rows, 0.1 if exact else 0.3
    off = np.abs(spent[0][both] - spent[1][both]) > np.maximum(_PROBE, 0 if exact else 0.02 * spent[0][both])
    if off.sum() > share * len(both) or _sums_differ(spent[0][both], spent[1][both], share):
        return f"{int(off.sum())} of {len(both)} unbroken rows took another number of passes"
    fell = rows[again.columns.broken[rows] & stated.broken[rows]]
    if len(fell) >= 10 and _sums_differ(spent[0][fell], spent[1][fell], 2 * share):
        return f"{len(fell)} broken rows took another number of passes"
    largest = rows[np.argsort(spent[1][rows], kind="stable")[-LARGEST:]]
    if int(spent[1][largest].sum()) > _FACTOR * int(spent[0][largest].sum()):
        return "the rows with the most passes took far fewer"
    return ""


def _sums_differ(mine: Whole, stated: Whole, share: float) -> bool:
    return abs(int(mine.sum()) - int(stated.sum())) > share * int(mine.sum()) + _PROBE * len(mine)


def _close(mine: Single, stated: Single, exact: bool) -> Flags:
    """Mask of equal margins: to 5 % of the margin's spread, or 25 % on another machine; NaN equals NaN."""
    known = mine[np.isfinite(mine)]
    scale = float(np.abs(known).mean()) if len(known) else 0.0
    close: Flags = np.isclose(mine, stated, rtol=0, atol=(0.05 if exact else 0.25) * scale, equal_nan=True)
    return close
