"""Certificates: proofs that no attack can break an example."""

from robustly.certification.contract import (
    Certificate,
    CertificateResult,
    ChecksModel,
    InStages,
    Prepares,
    ProvesAgain,
    verdicts_of_radii,
)
from robustly.certification.deadline import Deadline
from robustly.evidence import Verdict

__all__ = [
    "Certificate",
    "CertificateResult",
    "ChecksModel",
    "Deadline",
    "InStages",
    "Prepares",
    "ProvesAgain",
    "Verdict",
    "verdicts_of_radii",
]
