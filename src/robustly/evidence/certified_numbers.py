"""The numbers of certificates in a summary."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from robustly.evidence.records import Inline, ShareKeys, ShareObject
from robustly.statistics import Proportion


@dataclass(frozen=True)
class CertifiedSummary:
    """Certified accuracy: the share of examples that a certificate of the model itself verifies.

    Args:
        name: names of these certificates.
        radius: size of the threat.
        robust: share of verified examples.
    """

    name: str
    radius: float
    robust: Annotated[Proportion, ShareKeys("robust")]


@dataclass(frozen=True)
class CertificateTerms:
    """The conditions of a certificate, the same for all its rows.

    Args:
        certifies: the certified classifier; "model" for the attacked model itself.
        failure_probability: probability per example that the proof is wrong; 0 for a deterministic proof, None
            if it is missing (schema 2).
    """

    certifies: str
    failure_probability: float | None = 0.0


@dataclass(frozen=True)
class RobustInterval:
    """Bounds of the robust accuracy from both sides: what is proved, and what nothing has broken.

    Args:
        certified: share of examples that a certificate of the model itself verifies.
        attacked: share of examples without a counterexample, of attacks or of these certificates.
        undecided: number of examples between the two.
        epsilon: size of the threat.
        failure_probability: probability, per example, that it is verified by a wrong proof; 0 for deterministic
            proofs, None if it is not recorded.
    """

    certified: Annotated[Proportion, ShareObject("robust")]
    attacked: Annotated[Proportion, ShareObject("robust")]
    undecided: int
    epsilon: float
    failure_probability: float | None = 0.0


@dataclass(frozen=True)
class StageSummary:
    """The rows that one method of a certificate decided, or was the last to try.

    Args:
        count: number of rows.
        verified: of these, the verified ones.
        falsified: of these, those with a counterexample.
        work: their work, in bounded domains or samples.
        seconds: their time; None if it was not measured.
    """

    count: int
    verified: int
    falsified: int
    work: int
    seconds: float | None = None


@dataclass(frozen=True)
class CertificateSummary:
    """The numbers of one certificate.

    Args:
        name: name of the certificate.
        terms: its conditions.
        radius: size of the threat.
        robust: share of verified rows.
        verdicts: number of rows by verdict.
        stages: numbers by deciding method; empty if it is not recorded.
        reasons: number of open rows by the reason that is recorded for them.
    """

    name: str
    terms: Annotated[CertificateTerms, Inline()]
    radius: float
    robust: Annotated[Proportion, ShareKeys("robust")]
    verdicts: Mapping[str, int]
    stages: Mapping[str, StageSummary] = field(default_factory=dict)
    reasons: Mapping[str, int] = field(default_factory=dict)
