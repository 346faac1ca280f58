"""Accuracy on the domains that a model was trained on, on the one that was left out, and the gap between them.

Two evaluations of one model give the numbers: one on the test images of the left-out domain (the target), one on
those of all others (the sources). The id of an example names its domain, and its evaluation states the domains.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from robustly.evidence.domain_names import STRIDE, Part, parse_domains
from robustly.evidence.metrics import proved_rows
from robustly.evidence.records import EvidenceError, ShareKeys, ShareObject, from_json, read_object, to_json
from robustly.evidence.schema import SUMMARY, Flags
from robustly.evidence.unions import Tested, read_rows
from robustly.files import file_sha256, write_json
from robustly.statistics import Proportion, difference_interval

DOMAINS, SCHEMA = "domains.json", 1
SPLITS: dict[Part, str] = {"target": "target test", "source": "source test"}
"""Names of the test images of both parts in evidence."""
SOURCE_END = "_source"
"""End of the name of the folder with the evaluation on the source domains, after that of the target's."""


@dataclass(frozen=True)
class CertifiedShare:
    """Share of examples that a certificate of the model itself verifies."""

    robust: Annotated[Proportion, ShareKeys("robust")]


@dataclass(frozen=True)
class DomainAccuracy:
    """Accuracies on a domain, or on several together.

    Args:
        name: name of the domain.
        clean: accuracy without an attack.
        robust: share of examples that no attack broke.
        certified: certified accuracy; None without a certificate of the model itself.
    """

    name: str
    clean: Annotated[Proportion, ShareObject("correct")]
    robust: Annotated[Proportion, ShareObject("robust")]
    certified: CertifiedShare | None = None

    @property
    def proved(self) -> Proportion | None:
        """The certified share."""
        return None if self.certified is None else self.certified.robust


@dataclass(frozen=True)
class Gap:
    """Accuracy on the sources minus accuracy on the target, in [-1, 1].

    Args:
        difference: the difference.
        interval: its 95 % interval (Newcombe's hybrid score interval of two independent samples).
    """

    difference: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class DomainResult:
    """The content of `domains.json`.

    Args:
        schema: version of the format.
        left_out: name of the target domain.
        threat: text of the threat.
        suite: name of the suite.
        weights_sha256: hash of the weights.
        target: accuracies on the target.
        sources: accuracies on each source domain.
        source: accuracies on the test images of all source domains together.
        clean_gap: gap of clean accuracy.
        robust_gap: gap of robust accuracy.
        certified_gap: gap of certified accuracy; None unless both parts have a certificate.
        evaluations: SHA-256 of the summaries, by name of the folder.
    """

    schema: int
    left_out: str
    threat: str
    suite: str
    weights_sha256: str
    target: DomainAccuracy
    sources: tuple[DomainAccuracy, ...]
    source: DomainAccuracy
    clean_gap: Gap
    robust_gap: Gap
    certified_gap: Gap | None
    evaluations: Mapping[str, str]


def source_folder(target: Path) -> Path:
    """Folder of the evaluation on the source domains, beside that of the target."""
    return target.with_name(target.name + SOURCE_END)


def stated_part(split: str | None) -> Part:
    """The part of the domains of which an evaluation speaks, from the name of its split."""
    return "source" if split == SPLITS["source"] else "target"


def domain_result(target: Tested, source: Tested, evaluations: Mapping[str, str]) -> DomainResult:
    """Accuracies by domain and the gaps between sources and target.

    Args:
        target: the evaluation on the left-out domain.
        source: the evaluation on the others.
        evaluations: hashes of their summaries, by name of the folder.

    Raises:
        EvidenceError: the evaluations are not of one model under one threat and suite, or not of these domains.
    """
    names, left_out = _stated_domains(target)
    _check_pair(target, source)
    places = {part: one.table.examples.id // STRIDE for part, one in (("target", target), ("source", source))}
    own = names.index(left_out) + 1
    wanted = {"target": {own}, "source": {*range(1, len(names) + 1)} - {own}}
    if any({*found.tolist()} != wanted[part] for part, found in places.items()):
        raise EvidenceError(
            f"the ids of the examples are not of the target {left_out} and of all other domains: evaluate again"
        )
    of_target = _accuracy(left_out, target, np.ones(len(target.table), dtype=np.bool_))
    sources = tuple(
        _accuracy(name, source, places["source"] == place) for place, name in enumerate(names, 1) if place != own
    )
    together = _accuracy("all sources", source, np.ones(len(source.table), dtype=np.bool_))
    proved = (together.proved, of_target.proved)
    summary = target.summary
    return DomainResult(
        schema=SCHEMA,
        left_out=left_out,
        threat=summary.threat.text,
        suite=summary.suite.name,
        weights_sha256=summary.model.weights_sha256,
        target=of_target,
        sources=sources,
        source=together,
        clean_gap=_gap(together.clean, of_target.clean),
        robust_gap=_gap(together.robust, of_target.robust),
        certified_gap=None if proved[0] is None or proved[1] is None else _gap(proved[0], proved[1]),
        evaluations=dict(evaluations),
    )


def result_of_folders(target: Path) -> DomainResult | None:
    """The result of an evaluation on a left-out domain and the one on its sources; None unless both are there.

    Args:
        target: folder of the evaluation on the target.

    Raises:
        EvidenceError: a file is damaged, or the evaluations do not fit together.
    """
    other = source_folder(target)
    if not ((target / SUMMARY).is_file() and (other / SUMMARY).is_file()):
        return None
    first = read_rows(target)
    if first.summary.data.split != SPLITS["target"]:
        return None
    return domain_result(first, read_rows(other), {one.name: file_sha256(one / SUMMARY) for one in (target, other)})


def write_domains(target: Path, result: DomainResult) -> None:
    """Write the result into the folder of the evaluation on the target."""
    write_json(target / DOMAINS, to_json(result))


def domains_problem(target: Path) -> str:
    """The difference of a written result to the evaluations; empty if there is none, or no written result."""
    file = target / DOMAINS
    if not file.is_file():
        return ""
    try:
        stated = from_json(DomainResult, read_object(file), str(file))
        found = result_of_folders(target)
    except EvidenceError as error:
        return str(error)
    if found is None:
        return f"{source_folder(target).name} is missing"
    wrong = [key for key, value in to_json(found).items() if to_json(stated)[key] != value]
    return f"{DOMAINS} states another {', '.join(wrong)} than the evaluations: evaluate again" if wrong else ""


def _stated_domains(tested: Tested) -> tuple[list[str], str]:
    """Names of all domains in their order, and that of the target, from the settings that evidence states."""
    settings: Mapping[str, Any] = tested.summary.data.settings or {}
    try:
        names = [one.name for one in parse_domains(settings["domains"])]
        left_out = settings["leave_out"]
        names.index(left_out)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EvidenceError(f"the evaluation does not state its domains ({error}): evaluate again") from None
    return names, str(left_out)


def _check_pair(target: Tested, source: Tested) -> None:
    one, other = target.summary, source.summary
    wrong = {
        "parts of the domains": (one.data.split, other.data.split) != (SPLITS["target"], SPLITS["source"]),
        "weights": one.model.weights_sha256 != other.model.weights_sha256,
        "threats": one.threat != other.threat,
        "suites": (one.suite.name, one.suite.attacks) != (other.suite.name, other.suite.attacks),
        "modes or seeds": (one.suite.mode, one.suite.seed) != (other.suite.mode, other.suite.seed),
        "classes": one.data.classes != other.data.classes,
        "domains": _stated_domains(target) != _stated_domains(source),
    }
    found = [key for key, is_wrong in wrong.items() if is_wrong]
    if found:
        raise EvidenceError(
            f"the evaluations on target and sources are of different {', '.join(found)}: evaluate again"
        )


def _accuracy(name: str, tested: Tested, rows: Flags) -> DomainAccuracy:
    table, count = tested.table, int(rows.sum())
    proved = proved_rows(table, tested.summary.terms)
    return DomainAccuracy(
        name,
        Proportion(int((table.correct & rows).sum()), count),
        Proportion(int((table.correct & ~table.worst_case.broken & rows).sum()), count),
        None if proved is None else CertifiedShare(Proportion(int((proved & rows).sum()), count)),
    )


def _gap(source: Proportion, target: Proportion) -> Gap:
    return Gap(source.share - target.share, difference_interval(source, target))
