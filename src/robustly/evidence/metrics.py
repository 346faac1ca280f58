"""The numbers of an evaluation, computed from its per-example table alone."""

from collections.abc import Mapping, Sequence

import numpy as np

from robustly.evidence.schema import AttackColumns, CertificateColumns, EvidenceTable, Flags, Verdict, Whole
from robustly.evidence.summary import (
    AttackSummary,
    CertificateSummary,
    CertificateTerms,
    CertifiedSummary,
    ClassSummary,
    Metrics,
    SecurityCurve,
    WorstCaseSummary,
)
from robustly.statistics import Proportion

MODEL = "model"
"""Value of `certifies` for certificates of the attacked model itself."""


def metrics(
    table: EvidenceTable,
    *,
    certificates: Mapping[str, CertificateTerms],
    classes: Sequence[str],
    limit: float,
    curve: Sequence[tuple[str, float]],
) -> Metrics:
    """Clean, per-attack, worst-case, certified, per-class and security-curve numbers.

    Args:
        table: the evidence table.
        certificates: the conditions of each certificate by its name.
        classes: class names.
        limit: size of the evaluated threat, in its own unit.
        curve: text and size of each point of the security curve, ascending from 0; empty without a curve.
    """
    of_model = [name for name, terms in certificates.items() if terms.certifies == MODEL]
    correct, worst = table.correct, ~table.worst_case.broken
    invalid = [attack.invalid for attack in table.attacks.values()]
    return Metrics(
        clean=_share(correct),
        attacks={name: _attack(columns) for name, columns in table.attacks.items()},
        worst_case=WorstCaseSummary(_share(worst), _share(~table.worst_case.broken_8bit)),
        certified=_certified(table, of_model, limit),
        certificates=tuple(
            _certificate(name, table.certificates[name], terms, limit) for name, terms in certificates.items()
        ),
        per_class=_per_class(table.examples.label, correct, worst, classes),
        security_curve=_curve(table, curve, of_model),
        invalid=int(np.any(invalid, axis=0).sum()) if invalid else 0,
    )


def contradictions(table: EvidenceTable, certificates: Mapping[str, CertificateTerms]) -> Flags:
    """Mask of the rows that a certificate of the model proves and other evidence refutes, `(N,)`.

    A row is refuted if an adversarial example is stored at a certified size, or if the row is verified and broken
    by an attack, or verified and falsified by another certificate.
    """
    nearest = np.full(len(table), np.inf)
    refuted = np.zeros(len(table), dtype=bool)
    for attack in table.attacks.values():
        distance = attack.distance.astype(np.float64)
        nearest = np.minimum(nearest, np.where(np.isnan(distance), np.inf, distance))
        refuted |= attack.broken & attack.tried & np.isfinite(distance)
    for certificate in table.certificates.values():
        refuted |= certificate.falsified
    found = np.zeros(len(table), dtype=bool)
    for name, terms in certificates.items():
        if terms.certifies == MODEL:
            columns = table.certificates[name]
            beyond = columns.radius * (1 - 1e-5) > nearest + 1e-6
            found |= (columns.prediction == table.examples.label) & beyond
            found |= columns.verified & refuted
    return found


def certified_at(table: EvidenceTable, certificate: CertificateColumns, size: float) -> Flags:
    """Mask of the rows whose label is proved up to a size, `(N,)`; sizes are compared in single precision."""
    proved: Flags = (certificate.radius.astype(np.float32) >= size) & (
        certificate.prediction == table.examples.label
    )
    return proved


def _share(hits: Flags) -> Proportion:
    return Proportion(int(hits.sum()), len(hits))


def _attack(columns: AttackColumns) -> AttackSummary:
    tried = int(columns.tried.sum())
    return AttackSummary(
        robust=_share(~columns.broken),
        robust_8bit=_share(~columns.broken_8bit),
        mean_forwards=int(columns.forwards.sum()) / max(tried, 1),
        mean_backwards=int(columns.backwards.sum()) / max(tried, 1),
        mean_passes_8bit=int(columns.passes_8bit.sum()) / max(tried, 1),
        tried=tried,
    )


def _certified(table: EvidenceTable, names: Sequence[str], limit: float) -> CertifiedSummary | None:
    if not names:
        return None
    verified = np.any([table.certificates[name].verified for name in names], axis=0)
    return CertifiedSummary(" or ".join(names), limit, _share(verified))


def _certificate(
    name: str, columns: CertificateColumns, terms: CertificateTerms, limit: float
) -> CertificateSummary:
    verdicts = {one.word: int((columns.verdict == one).sum()) for one in Verdict}
    return CertificateSummary(name, terms, limit, _share(columns.verified), verdicts)


def _per_class(label: Whole, correct: Flags, worst: Flags, classes: Sequence[str]) -> tuple[ClassSummary, ...]:
    members = [(name, label == index) for index, name in enumerate(classes)]
    return tuple(
        ClassSummary(name, _share(correct[of_class]), _share(worst[of_class]))
        for name, of_class in members
        if of_class.any()
    )


def _curve(
    table: EvidenceTable, points: Sequence[tuple[str, float]], certificates: Sequence[str]
) -> SecurityCurve | None:
    if table.curve is None or not points:
        return None
    sizes = [size for _, size in points]
    distance = table.curve.distance
    tried = ~np.isnan(distance)
    # at size 0 misclassified images are broken, at any other size those that broke at or below it
    unbroken = [table.correct[tried], *(distance[tried] > size for size in sizes[1:])]
    shares = [_share(one) for one in unbroken]
    certified = None
    if certificates:
        columns = [table.certificates[name] for name in certificates]
        proved = [np.any([certified_at(table, one, size) for one in columns], axis=0) for size in sizes]
        certified = tuple(float(one.mean()) for one in proved)
    return SecurityCurve(
        count=int(tried.sum()),
        epsilon=tuple(sizes),
        epsilon_text=tuple(text for text, _ in points),
        accuracy=tuple(one.share for one in shares),
        low=tuple(one.low for one in shares),
        high=tuple(one.high for one in shares),
        certified=certified,
    )
