"""Evidence tables and summaries made by hand."""

from typing import Any

import numpy as np

from robustly.evidence import Evidence, EvidenceImages, EvidenceTable, StoredImages, Summary, Verdict
from robustly.evidence.metrics import metrics
from robustly.evidence.provenance import DataRecord, ModelRecord, Plan, SuiteAttack, SuiteRecord, ThreatRecord
from robustly.evidence.schema import (
    AttackColumns,
    CertificateColumns,
    ExampleColumns,
    WorstCaseColumns,
    column_fields,
)


def examples(label: list[int], prediction: list[int], first_id: int = 0) -> ExampleColumns:
    return ExampleColumns(
        id=np.arange(len(label)) + first_id,
        label=np.array(label),
        clean_prediction=np.array(prediction),
        clean_margin=np.where(np.array(label) == np.array(prediction), 1, -1).astype(np.float32),
    )


def attack(count: int, **columns: Any) -> AttackColumns:
    """The columns of an attack; those that are not given are as if it was not run."""
    plain = AttackColumns.untried(count)
    given = {
        name: np.array(columns.get(name, getattr(plain, name)), dtype=column.dtype)
        for name, column in column_fields(AttackColumns).items()
    }
    return AttackColumns(**given)


def certificate(verdict: list[Verdict], radius: list[float], prediction: list[int]) -> CertificateColumns:
    count = len(radius)
    return CertificateColumns(
        np.array(verdict, dtype=np.int8),
        np.array(radius),
        np.array(prediction),
        np.full(count, np.nan),
        stage=np.full(count, ""),
        reason=np.full(count, ""),
        work=np.zeros(count, dtype=np.int64),
        seconds=np.full(count, np.nan),
    )


def worst_case(broken: list[int]) -> WorstCaseColumns:
    flags = np.array(broken, dtype=bool)
    return WorstCaseColumns(flags, flags.copy())


def evaluation(
    threat: str, held: list[int], *, weights: str = "w", sha256: str = "s", first_id: int = 0
) -> Evidence:
    """An evaluation of one attack that leaves some examples unbroken; all are classified correctly without it."""
    count = len(held)
    broken = [1 - one for one in held]
    columns = attack(count, broken=broken, broken_8bit=broken, tried=[1] * count)
    table = EvidenceTable(examples([0] * count, [0] * count, first_id), {"pgd": columns}, worst_case(broken))
    kind, _, text = threat.partition(":")
    summary = Summary(
        model=ModelRecord("net", 1, weights),
        data=DataRecord("data", count, sha256, ("cat",)),
        threat=ThreatRecord(threat, kind, "In words.", (0.0, 1.0), float(text), text, "input units", kind),
        suite=SuiteRecord("strong", "every", 0, 10, (SuiteAttack("pgd", "PGD", {}, Plan()),), ()),
        metrics=metrics(table, certificates={}, classes=("cat",), limit=float(text), curve=[]),
    )
    none = StoredImages(np.zeros(0, dtype=np.int64), np.zeros((0, 1, 2, 2), dtype=np.float32))
    return Evidence(table, EvidenceImages({"pgd": none}, none), summary)
