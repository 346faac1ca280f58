"""Certificates in suites, by name."""

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from robustly.certification.certificates import BoundCertificate
from robustly.certification.problem import METHODS, Budget
from robustly.evaluation.suites.suite import Suite
from robustly.evidence.provenance import SuiteCertificate
from robustly.settings import SettingsError, changed, check_keys, choose, nearest

CERTIFICATES: Mapping[str, BoundCertificate] = {
    "certify": BoundCertificate("auto"),
    "ibp": BoundCertificate("ibp"),
    "crown": BoundCertificate("crown"),
    "alpha_crown": BoundCertificate("alpha_crown"),
    "bab": BoundCertificate("bab"),
}
_OWN = ("method", "halvings", "seconds")
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
    """A suite with certificates behind its attacks.

    Raises:
        SettingsError: the suite has one of them already.
    """
    for name in names:
        suite = _with(suite, name, CERTIFICATES[name])
    return suite


def with_certificate(suite: Suite, certificate: BoundCertificate) -> Suite:
    """A suite with a certificate behind its attacks, under the name that `CERTIFICATES` has for its method.

    Raises:
        SettingsError: the suite has it already.
    """
    names = {one.method: name for name, one in CERTIFICATES.items()}
    return _with(suite, names[certificate.method], certificate)


def as_recorded(suite: Suite, records: Iterable[SuiteCertificate]) -> Suite:
    """A suite whose certificates have the work, halvings and time that an evaluation records for them.

    Args:
        suite: the suite of the name that the evaluation records.
        records: the recorded certificates; others than those by bounds, and another method than that of the name,
            leave the certificate as it is.

    Raises:
        SettingsError: recorded settings that no certificate can have.
    """
    certificates = dict(suite.certificates)
    for one in records:
        named, given = certificates.get(one.name), dict(one.settings)
        budget = given.pop("budget", None)
        if isinstance(named, BoundCertificate) and given.get("method") == named.method:
            work = budget if isinstance(budget, Mapping) else {}
            plain = {key: value for key, value in {**given, **work}.items() if key not in ("kind", "double")}
            certificates[one.name] = certificate_of(one.name, plain)
    return replace(suite, certificates=certificates)


def certificate_of(where: str, given: Any) -> BoundCertificate:
    """A certificate from settings: the name of a method, or a mapping.

    Args:
        where: key of the settings, for messages.
        given: a method, or a mapping of `method`, `halvings`, `seconds`, and settings of `Budget` (`domains`,
            `iterations`, ...).

    Raises:
        SettingsError: an unknown key, or a value of another type or out of range.
    """
    plain = {"method": given} if isinstance(given, str) else given
    if not isinstance(plain, Mapping):
        raise SettingsError(f"{where}: expected a method or its settings, got {given!r}")
    work = [item.name for item in fields(Budget)]
    check_keys(plain, [*_OWN, *work], where)
    choose(dict.fromkeys(METHODS), plain.get("method", "auto"), f"{where}.method")
    own = {key: value for key, value in plain.items() if key in _OWN}
    budget = changed(Budget(), {key: value for key, value in plain.items() if key in work}, where, work)
    found: BoundCertificate = changed(BoundCertificate(budget=budget), own, where, _OWN)
    return found


def _with(suite: Suite, name: str, certificate: BoundCertificate) -> Suite:
    if name in suite.certificates:
        raise SettingsError(f"the suite {suite.name!r} has the certificate {name!r} already")
    return replace(
        suite, name=SIGN.join([suite.name, name]), certificates={**suite.certificates, name: certificate}
    )
