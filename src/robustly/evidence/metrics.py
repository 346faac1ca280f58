"""The numbers of an evaluation, computed from its per-example table alone."""

from collections.abc import Mapping, Sequence

import numpy as np

from robustly.evidence.certified_numbers import (
    CertificateSummary,
    CertificateTerms,
    CertifiedSummary,
    RobustInterval,
    StageSummary,
)
from robustly.evidence.schema import AttackColumns, CertificateColumns, EvidenceTable, Flags, Texts, Verdict, Whole
from robustly.evidence.summary import AttackSummary, ClassSummary, Metrics, SecurityCurve, WorstCaseSummary
from robustly.statistics import Proportion, binomial_tail

MODEL = "model"
"""Value of `certifies` for certificates of the attacked model itself."""
_CHANCE = 1e-6
STAGES = ("clean", "attack", "ibp", "crown_ibp", "forward", "crown", "alpha", "branch", "split", "milp")
"""Names of the verifier's methods, from cheap to costly; others follow by name."""


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
        interval=_interval(table, {name: certificates[name] for name in of_model}, limit),
        certificates=tuple(
            _certificate(name, table.certificates[name], terms, limit) for name, terms in certificates.items()
        ),
        per_class=_per_class(table.examples.label, correct, worst, classes),
        security_curve=_curve(table, curve, of_model),
        invalid=int(np.any(invalid, axis=0).sum()) if invalid else 0,
    )


def contradictions(table: EvidenceTable, name: str, terms: CertificateTerms) -> Flags:
    """Mask of the rows that a certificate proves and other evidence refutes, `(N,)`; only one of the model can be.

    A row is refuted if an adversarial example is stored at a certified size, or if the row is verified and broken
    by an attack, or verified and falsified by another certificate.
    """
    if terms.certifies != MODEL:
        return np.zeros(len(table), dtype=bool)
    nearest = np.full(len(table), np.inf)
    refuted = np.zeros(len(table), dtype=bool)
    found = [attack.distance for attack in table.attacks.values()]
    for distance in [*found, *([] if table.curve is None else [table.curve.distance])]:
        nearest = np.fmin(nearest, distance.astype(np.float64))
    for attack in table.attacks.values():
        refuted |= attack.broken & attack.tried & np.isfinite(attack.distance)
    for certificate in table.certificates.values():
        refuted |= certificate.falsified
    columns = table.certificates[name]
    beyond = columns.radius * (1 - 1e-5) > nearest + 1e-6
    contradicted: Flags = ((columns.prediction == table.examples.label) & beyond) | (columns.verified & refuted)
    return contradicted


def contradiction_problem(table: EvidenceTable, certificates: Mapping[str, CertificateTerms]) -> str:
    """The problem with certificates that other evidence refutes, or an empty text.

    A deterministic proof must never be refuted. One that may be wrong with a stated probability must not be refuted
    more often than binomial chance explains, at a level of one in a million.
    """
    for name, terms in certificates.items():
        columns = table.certificates[name]
        wrong = int(contradictions(table, name, terms).sum())
        claims = int(((columns.radius > 0) & (columns.prediction == table.examples.label) | columns.verified).sum())
        risk = terms.failure_probability or 0.0
        if wrong and binomial_tail(wrong, claims, risk) < _CHANCE:
            chance = f", far more than its failure probability of {risk:g} explains" if risk else ""
            return f"{wrong} examples are certified by {name} at a size at which they are broken{chance}"
    return ""


def certified_at(table: EvidenceTable, certificate: CertificateColumns, size: float) -> Flags:
    """Mask of the rows whose label is proved up to a size, `(N,)`.

    A radius that is the size in single precision reaches it: the threat has this size there.
    """
    reached = (certificate.radius >= size) | (certificate.radius == float(np.float32(size)))
    proved: Flags = reached & (certificate.prediction == table.examples.label)
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
    return CertificateSummary(
        name,
        terms,
        limit,
        _share(columns.verified),
        verdicts,
        _stages(columns),
        _reasons(columns.reason[columns.open]),
    )


def _interval(
    table: EvidenceTable, certificates: Mapping[str, CertificateTerms], limit: float
) -> RobustInterval | None:
    if not certificates:
        return None
    columns = [table.certificates[name] for name in certificates]
    refuted = np.any([table.worst_case.broken, *(one.falsified for one in columns)], axis=0)
    verified = _verified(columns, refuted)
    risks = [one.failure_probability for one in certificates.values()]
    known = [risk for risk in risks if risk is not None]
    # any of the certificates may be the wrong one of a row
    risk = min(1.0, float(sum(known))) if len(known) == len(risks) else None
    undecided = int((~verified & ~refuted).sum())
    return RobustInterval(_share(verified), _share(~refuted), undecided, limit, risk)


def proved_rows(table: EvidenceTable, certificates: Mapping[str, CertificateTerms]) -> Flags | None:
    """Mask of the rows that `Metrics.proved` counts, `(N,)`; None without a certificate of the model itself.

    Args:
        table: the evidence table.
        certificates: the conditions of each certificate by its name.
    """
    columns = [table.certificates[name] for name, terms in certificates.items() if terms.certifies == MODEL]
    if not columns:
        return None
    return _verified(columns, np.any([table.worst_case.broken, *(one.falsified for one in columns)], axis=0))


def _verified(columns: Sequence[CertificateColumns], refuted: Flags) -> Flags:
    verified: Flags = np.any([one.verified for one in columns], axis=0) & ~refuted
    return verified


def _stages(columns: CertificateColumns) -> dict[str, StageSummary]:
    found = {}
    for name in sorted(set(columns.stage.tolist()) - {""}, key=stage_rank):
        here = columns.stage == name
        seconds = columns.seconds[here]
        measured = not np.isnan(seconds).any()
        found[name] = StageSummary(
            count=int(here.sum()),
            verified=int((columns.verified & here).sum()),
            falsified=int((columns.falsified & here).sum()),
            work=int(columns.work[here].sum()),
            seconds=float(seconds.sum()) if measured else None,
        )
    return found


def stage_rank(name: str) -> tuple[int, str]:
    """Sort key of the name of a stage: from cheap to costly, others after them."""
    return (STAGES.index(name) if name in STAGES else len(STAGES), name)


def _reasons(reasons: Texts) -> dict[str, int]:
    """The number of each reason, the most frequent first."""
    words, counts = np.unique(reasons[reasons != ""], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {str(words[i]): int(counts[i]) for i in order}


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
