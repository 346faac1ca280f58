"""Certificates: proofs that no attack can break an example."""

from robustly.certification.contract import (
    Certificate,
    CertificateResult,
    ChecksModel,
    ProvesAgain,
    verdicts_of_radii,
)
from robustly.evidence import Verdict

__all__ = ["Certificate", "CertificateResult", "ChecksModel", "ProvesAgain", "Verdict", "verdicts_of_radii"]
