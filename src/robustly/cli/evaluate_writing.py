"""Finished evaluations: the names in their summary, their folder, and the table of several threats."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from robustly.cli.subject import Subject
from robustly.cli.terminal import PlainConsole
from robustly.cli.union_table import union_table
from robustly.evidence import Evidence, Summary, write_evidence
from robustly.evidence.domains import SPLITS
from robustly.evidence.partial_unions import largest_union
from robustly.evidence.provenance import Seen
from robustly.evidence.unions import Tested
from robustly.experiments.given_models import GivenRun
from robustly.experiments.locks import partial_of
from robustly.files import whole_folder


def written(evidence: Evidence, target: Path) -> Evidence:
    """Replace the folder of an evaluation by new evidence, which is returned, and remove its parts.

    Raises:
        OSError: the folder cannot be written.
    """
    with whole_folder(target, spent=partial_of(target)) as staging:
        write_evidence(evidence, staging)
    return evidence


def named_summary(
    found: Summary,
    subject: Subject,
    marks: Mapping[str, Seen] | None,
    stages: Mapping[str, Mapping[str, object]] | None,
) -> Summary:
    """The summary with the names of run and model, settings that load the same data again, and what was seen."""
    config = replace(subject.run.config, data=subject.source)
    return replace(
        found,
        run=subject.run.folder.resolve().name,
        model=replace(found.model, name=config.model.name, checkpoint=subject.checkpoint),
        data=replace(
            found.data,
            source=config.data.tested_title(subject.part),
            split="test" if config.data.domains is None else SPLITS[subject.part],
            settings=config.as_plain()["data"],
            trained_on=subject.seen.trained_on,
            selected_on=subject.seen.selected_on,
        ),
        composed=stages,
        seen_attacks=marks,
    )


def print_union(run: GivenRun, found: Mapping[str, Tested]) -> None:
    """Print the table of all threats, and the evaluations that are left out of it."""
    console = PlainConsole()
    union, left_out = largest_union(found)
    if union is not None:
        console.print(union_table(run.folder.resolve().name, union))
    for one in left_out:
        console.print(f"! {one.evaluation} is left out: {one.reason}", markup=False, soft_wrap=True)
