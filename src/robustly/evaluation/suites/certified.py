"""Certificates in suites, by name."""

from collections.abc import Mapping
from dataclasses import replace

from robustly.certification.certificates import BoundCertificate
from robustly.evaluation.suites.suite import Suite
from robustly.settings import SettingsError, nearest

CERTIFICATES: Mapping[str, BoundCertificate] = {
    "certify": BoundCertificate("auto"),
    "ibp": BoundCertificate("ibp"),
    "crown": BoundCertificate("crown"),
    "alpha_crown": BoundCertificate("alpha_crown"),
    "bab": BoundCertificate("bab"),
}
SIGN = "+"
"""Stands between a suite and the certificates that follow it: "quick+certify"."""


def split_certificates(given: str) -> tuple[str, list[str]]:
    """The suite of a text, and the names of the certificates behind it.

    Raises:
        SettingsError: an unknown certificate, or one that is given twice.
    """
    suite, *names = (part.strip() for part in given.split(SIGN))
    for name in names:
        if name not in CERTIFICATES:
            raise SettingsError(
                f"unknown certificate {name!r}{nearest(name.lower(), list(CERTIFICATES))}; certificates: "
                f"{', '.join(CERTIFICATES)}"
            )
        if names.count(name) > 1:
            raise SettingsError(f"the certificate {name!r} is given twice")
    return suite, names


def with_certificates(suite: Suite, names: list[str]) -> Suite:
    """A suite with certificates behind its attacks."""
    if not names:
        return suite
    return replace(
        suite,
        name=SIGN.join([suite.name, *names]),
        certificates={**suite.certificates, **{name: CERTIFICATES[name] for name in names}},
    )
