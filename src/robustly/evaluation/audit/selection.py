"""Audit of the plans that select examples by their margins: the stated margins must put the examples in order."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from robustly.evaluation.recording import as_array
from robustly.evaluation.suites.suite import planned_rows
from robustly.evidence import EvidenceTable
from robustly.evidence.provenance import Plan
from robustly.evidence.schema import Flags, Single, Whole

_NOISE = 0.25  # of the margin at the cut-off: rounding changes the path of a search
_MISPLACED = 1  # examples of the sample that may lie on the wrong side by more than that


@dataclass(frozen=True)
class Closeness:
    """The highest margin of each example before a stage.

    Args:
        stated: by the evidence, `(N,)`.
        found: by the attacks of this audit, `(N,)`; exact for the rows that every attack was repeated on.
    """

    stated: Single
    found: Single

    def after(self, stated: Single, found: Single) -> "Closeness":
        """The same after an attack with these margins."""
        return Closeness(np.fmax(self.stated, stated), np.fmax(self.found, found))


def misplaced(table: EvidenceTable, plan: Plan, unbroken: Flags, sample: Whole, closeness: Closeness) -> str:
    """The problem with the examples that a plan selected as the closest to the boundary, or an empty text.

    Within a random sample, the selected examples must be those with the highest margins. An example with a forged
    margin would be left out, so that a long search does not attack it.

    Args:
        table: the rows of the evidence.
        plan: the plan of the stage.
        unbroken: mask of the examples that are unbroken before the stage, `(N,)`.
        sample: rows on which every attack was repeated, `(M,)`.
        closeness: margins before the stage.
    """
    sample = sample[unbroken[sample]]
    if plan.closest == 1 or len(sample) == 0:
        return ""
    everyone = replace(plan, sample=None, sample_share=1.0)
    state = torch.from_numpy(unbroken), torch.from_numpy(closeness.stated)
    closest = as_array(planned_rows(everyone, *state, torch.from_numpy(table.examples.id), 0))
    selected, found = np.isin(sample, closest), np.nan_to_num(closeness.found[sample], nan=-np.inf)
    count = int(selected.sum())
    if count in (0, len(sample)):
        return ""
    cutoff = float(np.sort(found)[-count])
    noise = _NOISE * abs(cutoff)
    wrong = (selected & (found < cutoff - noise)) | (~selected & (found > cutoff + noise))
    if wrong.sum() <= _MISPLACED:
        return ""
    return f"{int(wrong.sum())} of {len(sample)} examples have margins that the attacks do not give them"
