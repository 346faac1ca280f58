"""The union over those evaluations of a run that fit together, and the reasons why others are left out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from robustly.evidence.domains import stated_part
from robustly.evidence.records import EvidenceError
from robustly.evidence.schema import WorstCaseColumns, column_fields
from robustly.evidence.storage import Evidence
from robustly.evidence.unions import Tested, ThreatUnion, read_rows, union_of_threats


@dataclass(frozen=True)
class LeftOut:
    """An evaluation that is not part of a union, and the reason as the end of a sentence."""

    evaluation: str
    reason: str


def largest_union(evidences: Mapping[str, Evidence | Tested]) -> tuple[ThreatUnion | None, tuple[LeftOut, ...]]:
    """The union over the evaluations of one model on the same images that has the most threats.

    Of several such sets, the one with the most images is used. Evaluations under one threat count together: an
    example is unbroken if none of their attacks broke it.

    Args:
        evidences: evaluations by name.

    Returns:
        The union, or None if no two threats were evaluated on the same images; and the evaluations that are left
        out. With a single evaluation nothing is left out.
    """
    groups: list[list[str]] = []
    for name, one in evidences.items():
        group = next((group for group in groups if not _difference(evidences[group[0]], one)), None)
        if group is None:
            groups.append([name])
        else:
            group.append(name)
    if not groups:
        return None, ()
    chosen = max(groups, key=lambda group: (len(_by_threat(evidences, group)), len(evidences[group[0]].table)))
    first = evidences[chosen[0]]
    left_out = tuple(
        LeftOut(name, f"{_difference(first, one)} {chosen[0]}")
        for name, one in evidences.items()
        if name not in chosen
    )
    threats = _by_threat(evidences, chosen)
    union = union_of_threats([_joint(group) for group in threats.values()]) if len(threats) > 1 else None
    return union, left_out


def union_of_folders(folders: Sequence[Path]) -> tuple[ThreatUnion | None, tuple[LeftOut, ...]]:
    """`largest_union` over evaluations on disk; those that cannot be read are left out.

    Args:
        folders: folders of evaluations, whose names are the names of the evaluations.
    """
    found, damaged = {}, []
    for folder in folders:
        try:
            one = read_rows(folder)
            if stated_part(one.summary.data.split) == "target":  # the sources are other images by design
                found[folder.name] = one
        except EvidenceError as error:
            damaged.append(LeftOut(folder.name, f"it cannot be read: {str(error).rstrip('.')}"))
    union, left_out = largest_union(found)
    return union, (*left_out, *damaged)


def _by_threat(
    evidences: Mapping[str, Evidence | Tested], names: Sequence[str]
) -> dict[str, list[Evidence | Tested]]:
    found: dict[str, list[Evidence | Tested]] = {}
    for name in names:
        found.setdefault(evidences[name].summary.threat.text, []).append(evidences[name])
    return found


def _difference(one: Evidence | Tested, other: Evidence | Tested) -> str:
    """The difference of two evaluations, in words that the name of the first follows; empty without one."""
    if one.summary.model.weights_sha256 != other.summary.model.weights_sha256:
        return "its weights are not those of"
    if len(one.table) != len(other.table):
        return f"it has {len(other.table):,} images, not the {len(one.table):,} of"
    same = one.summary.data.sha256 == other.summary.data.sha256
    columns = [(table.examples.id, table.examples.label) for table in (one.table, other.table)]
    if not same or not all(np.array_equal(mine, theirs) for mine, theirs in zip(*columns, strict=True)):
        return "its images or labels are not those of"
    return ""


def _joint(evidences: Sequence[Evidence | Tested]) -> Evidence | Tested:
    """Several evaluations under one threat as one: broken is what any of them broke."""
    first = evidences[0]
    if len(evidences) == 1:
        return first
    flags = {
        name: np.any([getattr(one.table.worst_case, name) for one in evidences], axis=0)
        for name in column_fields(WorstCaseColumns)
    }
    suites = ", ".join(dict.fromkeys(one.summary.suite.name for one in evidences))
    masking = tuple(dict.fromkeys(sentence for one in evidences for sentence in one.summary.masking))
    summary = replace(first.summary, suite=replace(first.summary.suite, name=suites), masking=masking)
    return Tested(replace(first.table, worst_case=WorstCaseColumns(**flags)), summary)
