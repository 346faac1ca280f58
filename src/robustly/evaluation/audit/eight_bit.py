"""Audit of the verdicts in 8 bits: every stored image, every row, and the search for rows without an image."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from robustly.evaluation.audit.check import Check, Placed, first_id, placed
from robustly.evaluation.audit.rounding import Rounding
from robustly.evaluation.eight_bit import search_again
from robustly.evaluation.recording import as_array
from robustly.evaluation.target import EvaluationTarget, places
from robustly.evidence import Evidence, EvidenceTable
from robustly.evidence.schema import RULES_SINCE, AttackColumns, Flags
from robustly.threats import LpBall
from robustly.threats.eight_bit import WHITE

_RENDERING = 0.5 / WHITE + 1e-4  # rounding of a rendered image to the nearest level, and of the rendering
_MOST = 100  # passes by which one search may differ: it takes no more
_OTHER_PATHS = 0.1  # share of the searches that may take other passes, by other rounding of the arithmetic


def eight_bit_checks(evidence: Evidence, target: EvaluationTarget, rounding: Rounding) -> Iterator[Check]:
    """Check the verdicts in 8 bits of each attack.

    A stored image is certain: it must lie in the threat set and be misclassified. A row that is broken only in
    floating point is a result of a search, which is run again and must not find an image. In evidence of schemas
    before 4 each success is rounded towards the clean image, and no other image counts.
    """
    table, survivors_only = evidence.table, evidence.summary.suite.mode == "worst_case"
    before = ~table.correct
    for name, columns in table.attacks.items():
        if evidence.summary.schema < RULES_SINCE:
            yield _older_rule(evidence, target, name, rounding)
            continue
        problem = _problem(evidence, target, name, before, rounding)
        yield Check(f"{name}: images of 8 bits are misclassified, and rows agree with them", problem)
        if not problem:
            yield _search_again(evidence, target, name)
        if survivors_only:
            before = before | columns.broken_8bit
    extra = sorted(set(evidence.images.eight_bit) - set(table.attacks))
    if extra:
        yield Check("images of 8 bits belong to attacks", f"there is no attack {', '.join(extra)}")


def _problem(evidence: Evidence, target: EvaluationTarget, name: str, before: Flags, rounding: Rounding) -> str:
    """The problem with an attack's images of 8 bits, or an empty text."""
    table, saved = evidence.table, evidence.images.eight_bit.get(name)
    if saved is None:
        return "no images of 8 bits are stored"
    shown = placed(saved.inputs(), table, target)
    has_image = np.zeros(len(table), dtype=bool)
    has_image[shown.here] = True
    problem = _rows_problem(table, table.attacks[name], has_image, before)
    if not problem and int(has_image.sum()) != len(saved):
        problem = "an example has two images"
    return problem or _images_problem(shown, table, target, rounding)


def _rows_problem(table: EvidenceTable, columns: AttackColumns, has_image: Flags, before: Flags) -> str:
    searched = columns.tried & columns.broken & ~columns.invalid
    for wrong, words in (
        (has_image & ~searched, "images of examples that the attack did not break"),
        (columns.broken_8bit != (before | has_image | columns.invalid), "verdicts that the images do not show"),
        ((columns.passes_8bit > 0) != searched, "pass counts without a search, or searches without a pass"),
    ):
        if wrong.any():
            return f"{int(wrong.sum())} {words}, first id {first_id(table, wrong)}"
    return "negative pass counts" if bool((columns.passes_8bit < 0).any()) else ""


def _images_problem(shown: Placed, table: EvidenceTable, target: EvaluationTarget, rounding: Rounding) -> str:
    if len(shown.here) == 0:
        return ""
    allowed = target.threat.around(target.data.floats(shown.rows))
    if isinstance(allowed, LpBall):
        if shown.theta is not None:
            return "parameters are stored, but the threat moves the image itself"
        inside = as_array(allowed.contains(shown.images))
    else:
        if shown.theta is None or shown.theta.shape != allowed.identity().shape:
            return "the parameters of the threat are missing or of another shape"
        near = (allowed.apply(shown.theta) - shown.images).abs() <= _RENDERING
        inside = as_array(allowed.contains(shown.theta) & near.flatten(1).all(1))
    stray = ~inside | ~shown.in_box(target)
    if stray.any():
        return f"{int(stray.sum())} images outside the threat set, first id {_id(table, shown, stray)}"
    logits = shown.logits(target)
    correct = (as_array(logits.argmax(1)) == table.examples.label[shown.here]) & ~rounding.tied(logits)
    where = f", first id {_id(table, shown, correct)}" if correct.any() else ""
    return f"{int(correct.sum())} images are classified correctly{where}" if correct.any() else ""


def _id(table: EvidenceTable, shown: Placed, wrong: Flags) -> int:
    return int(table.examples.id[shown.here[wrong]][0])


def _search_again(evidence: Evidence, target: EvaluationTarget, name: str) -> Check:
    """Repeat the search from every success of an attack.

    None of the examples without an image may have one now. The passes are those of the evaluation, but for some
    searches that end otherwise because another machine rounds otherwise.
    """
    table, columns = evidence.table, evidence.table.attacks[name]
    shown = placed(evidence.images.attacks[name], table, target)
    shown = shown.only(torch.from_numpy(columns.broken[shown.here]).to(shown.rows.device))
    has_image = np.isin(table.examples.id[shown.here], evidence.images.eight_bit[name].ids)
    title = f"{name}: 8-bit images of {int((~has_image).sum())} examples that have none searched again"
    if shown.rendering_problem(target.threat.around(target.data.floats(shown.rows))):
        return Check(title, "the parameters of the successes do not fit")
    again = search_again(target, name, shown.rows, shown.points)
    fallen = again.found & ~has_image
    if fallen.any():
        return Check(title, f"{int(fallen.sum())} found, first id {_id(table, shown, fallen)}")
    stated = columns.passes_8bit[shown.here]
    off = int((again.passes != stated).sum()) > max(1, _OTHER_PATHS * len(stated))
    off |= abs(int(again.passes.sum()) - int(stated.sum())) > max(_MOST, 2 * _OTHER_PATHS * int(again.passes.sum()))
    return Check(title, "the searches took another number of passes" if off else "")


def _older_rule(evidence: Evidence, target: EvaluationTarget, name: str, rounding: Rounding) -> Check:
    """Check verdicts of schemas before 4: each success rounded towards the clean image."""
    table, columns, data = evidence.table, evidence.table.attacks[name], target.data
    shown = placed(evidence.images.attacks[name], table, target)
    place = places(shown.rows, len(data))
    rounded = target.logits(
        lambda chunk: _towards_clean(shown.images[place[chunk]], data.floats(chunk)), shown.rows
    )
    truth = (as_array(rounded.argmax(1)) != table.examples.label[shown.here]) & columns.broken[shown.here]
    differ = (columns.broken_8bit[shown.here] != truth) & ~rounding.tied(rounded)
    count = int(differ.sum()) + int((columns.broken_8bit & ~columns.broken).sum())
    rule = f"by the older rule of schema {evidence.summary.schema} (the first success, rounded)"
    return Check(f"{name}: verdicts in 8 bits {rule}", f"{count} differ" if count else "")


def _towards_clean(x_adv: Tensor, x: Tensor) -> Tensor:
    """Images with every change rounded towards zero to 8 bits."""
    change = ((x_adv - x) * WHITE).double()
    levels = (x * WHITE + (change + change.sign() * 1e-4).trunc()).round()
    return levels.clamp(0, WHITE).to(x.dtype) / WHITE
