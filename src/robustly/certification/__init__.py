"""Certificates: proofs that no attack can break an example."""

from robustly.certification.contract import Certificate, CertificateResult

__all__ = ["Certificate", "CertificateResult"]
