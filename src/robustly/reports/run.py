"""The content of a run folder, as reports use it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robustly.evidence import EvidenceTable, Summary
from robustly.evidence.audit_record import AuditRecord, Signature
from robustly.evidence.corruption_result import CorruptionResult
from robustly.evidence.costs import CostSummary
from robustly.evidence.domains import DomainResult
from robustly.evidence.partial_unions import LeftOut
from robustly.evidence.protocol_result import ProtocolResult
from robustly.evidence.provenance import ThreatRecord
from robustly.evidence.storage import Pictures
from robustly.evidence.summary import SecurityCurve
from robustly.evidence.unions import ThreatUnion
from robustly.reports.analysis import Analysis


class ReportError(ValueError):
    """A run folder that cannot be reported. The message is one sentence for users."""


@dataclass(frozen=True)
class Status:
    """The state of training at its end or interruption, from `status.json`."""

    state: str | None = None
    best_epoch: int | None = None
    seconds: float | None = None
    message: str = ""
    threads: int | None = None


@dataclass(frozen=True)
class Training:
    """Metrics of a training run.

    Args:
        columns: `metrics.csv` as columns of equal length, NaN where a cell is empty.
        status: `status.json`.
        alone: columns of the epochs before the run (`model.pretrain`), by the network that was trained in them.
    """

    columns: Mapping[str, NDArray[np.float64]]
    status: Status = Status()
    alone: Mapping[str, Mapping[str, NDArray[np.float64]]] = field(default_factory=dict)

    def column(self, name: str) -> NDArray[np.float64] | None:
        """A column, or None if it is missing or has no number."""
        values = self.columns.get(name)
        return None if values is None or not np.isfinite(values).any() else values

    @property
    def collapsed(self) -> int | None:
        """The class that every validation image was predicted as in the best epoch; None if there were several."""
        values, best = self.column("validation_collapsed_class"), self.status.best_epoch
        if values is None or best is None or not 1 <= best <= len(values) or not np.isfinite(values[best - 1]):
            return None
        return int(values[best - 1])


@dataclass(frozen=True)
class ThreatTest:
    """The evaluation of a run under one of several threats, as far as figures over all of them need it.

    Args:
        threat: the threat.
        images: hash of the images.
        attack: title of the attack of the security curve; empty without one.
        curve: the security curve, or None.
    """

    threat: ThreatRecord
    images: str
    attack: str = ""
    curve: SecurityCurve | None = None

    @classmethod
    def of(cls, summary: Summary) -> "ThreatTest":
        """The parts of an evaluation."""
        curve, suite = summary.metrics.security_curve, summary.suite
        attack = "" if curve is None or suite.curve is None else suite.title(suite.curve)
        return cls(summary.threat, summary.data.sha256, attack, curve)


WEAK_GUIDE = 0.6
"""Accuracy of a guide on the training labels below which a page warns, as training does."""


@dataclass(frozen=True)
class RunEvidence:
    """All parts of a run folder; a part without a file is None.

    Args:
        path: the folder.
        name: name of the run.
        config: settings of the run.
        training: training metrics.
        evaluation: summary of the evaluation.
        table: rows of the evaluation.
        pictures: some images of the evaluation.
        notes: contradictions between the files.
        analysis: gradients, loss surfaces, the union of threats.
        audit: the last audit of the evaluation; None if it was not audited as it is now.
        signature: the signature of the evaluation, which no report verifies.
        union: accuracy under several threats, from all evaluations of the run; None without two threats.
        left_out: evaluations that are not part of the union.
        tests: the evaluations of the union, one for each threat; none if the union is that of the analysis.
        costs: the costs of confusions under attack; None without them.
        check: command with which a reader audits the evaluation; empty for `robustly audit` of the folder.
        corruptions: accuracy under common corruptions.
        protocols: accuracy under the threats of each protocol that the run was evaluated by.
        domains: accuracy by domain, if one was left out of training and all are evaluated.
        source_audit: the last audit of the evaluation on the other domains.
    """

    path: Path
    name: str
    config: Mapping[str, object] | None
    training: Training | None
    evaluation: Summary | None
    table: EvidenceTable | None
    pictures: Pictures | None
    notes: tuple[str, ...] = ()
    analysis: Analysis | None = None
    audit: AuditRecord | None = None
    signature: Signature | None = None
    check: str = ""
    union: ThreatUnion | None = None
    left_out: tuple[LeftOut, ...] = ()
    tests: tuple[ThreatTest, ...] = ()
    corruptions: CorruptionResult | None = None
    costs: CostSummary | None = None
    protocols: tuple[ProtocolResult, ...] = ()
    domains: DomainResult | None = None
    source_audit: AuditRecord | None = None

    @property
    def weak_guide(self) -> float | None:
        """Accuracy of the guide in the last epoch, if it is low and the model learned from it there; else None."""
        values = None if self.training is None else self.training.column("guide_accuracy")
        if values is None or not np.isfinite(values[-1]) or values[-1] >= WEAK_GUIDE:
            return None
        method = (self.config or {}).get("method")
        labels = method.get("labels") if isinstance(method, Mapping) else None
        warm_up = labels.get("warm_up") if isinstance(labels, Mapping) else None
        return None if isinstance(warm_up, int | float) and len(values) <= warm_up else float(values[-1])


def distinct_names(named: Sequence[tuple[str, Path]]) -> list[str]:
    """Distinct names; runs with the same name get the name of their folder, or a number.

    Args:
        named: name and folder of every run.
    """
    often = Counter(name for name, _ in named)
    longer = [
        name if often[name] == 1 else f"{folder.resolve().parent.name}/{folder.resolve().name}"
        for name, folder in named
    ]
    often = Counter(longer)
    return [name if often[name] == 1 else f"{name} ({i + 1})" for i, name in enumerate(longer)]
