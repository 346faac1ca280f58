"""Certificates behind names of suites and as stages, and the sentence on their time."""

import re
from dataclasses import replace

import pytest

from half_space import THREAT, half_space, images
from robustly.certification.certificates import BoundCertificate
from robustly.certification.problem import Budget
from robustly.evaluation.announcement import announcement
from robustly.evaluation.suites import as_suite
from robustly.evaluation.suites.certified import as_recorded, with_certificate
from robustly.evaluation.suites.composed import suite_from
from robustly.evaluation.suites.suite import settings
from robustly.evidence.provenance import SuiteCertificate
from robustly.settings import SettingsError
from robustly.threats import parse_threat

PROOFS = {"method": "auto", "domains": 50, "alpha_iterations": 5, "seconds": 60, "halvings": 1}


def test_a_stage_is_an_attack_or_a_certificate() -> None:
    suite = suite_from("mine", {"a": {"attack": "pgd", "steps": 3}, "p": {"certificate": PROOFS}}, "linf")
    assert [*suite.attacks] == ["a"]
    expected = BoundCertificate("auto", Budget(domains=50, alpha_iterations=5), halvings=1, seconds=60)
    assert suite.certificates == {"p": expected}
    assert suite_from("m", {"p": {"certificate": "crown"}}, "linf").certificates == {"p": BoundCertificate("crown")}


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ({"certificate": "crwn"}, r"stages\.p\.certificate\.method.*'crwn'"),
        ({"certificate": {"domain": 5}}, r"stages\.p\.certificate.*domain"),
        ({"certificate": {"domains": "many"}}, r"stages\.p\.certificate\.domains"),
        ({"certificate": {"seconds": -1}}, "the time for branch and bound is -1"),
        ({"certificate": 7}, r"stages\.p\.certificate: expected a method or its settings, got 7"),
        ({"certificate": "crown", "attack": "pgd"}, r"stages\.p.*attack"),
        ({"steps": 7}, r"stages\.p: expected 'attack' and its settings, or 'certificate'"),
    ],
)
def test_wrong_settings_of_a_certificate_are_named(stage: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        suite_from("mine", {"p": stage}, "linf")


def test_names_of_certificates_follow_those_of_suites() -> None:
    suite = as_suite("pgd_10+crown+bab", "linf")
    assert (suite.name, [*suite.certificates]) == ("pgd_10+crown+bab", ["crown", "bab"])
    own = suite_from("mine+crown", {"a": {"attack": "pgd"}}, "linf")
    assert (own.name, [*own.certificates]) == ("mine+crown", ["crown"])
    with pytest.raises(SettingsError, match=r"unknown certificate 'crwn', did you mean 'crown'"):
        as_suite("quick+crwn", "linf")
    with pytest.raises(SettingsError, match="has the certificate 'crown' already"):
        with_certificate(suite, BoundCertificate("crown"))
    renewed = suite_from(with_certificate(as_suite("quick", "linf"), BoundCertificate()).name, None, "linf")
    assert [*renewed.certificates] == ["certify"], "an audit finds the certificate by the name of the suite"


def test_an_audit_takes_work_and_time_from_the_record() -> None:
    certificate = BoundCertificate("crown", Budget(domains=7), halvings=2, seconds=5.0)
    suite = with_certificate(as_suite("pgd_10", "linf"), certificate)
    record = SuiteCertificate("crown", "crown", "model", settings(certificate))
    renewed = as_recorded(as_suite(suite.name, "linf"), [record])
    assert renewed.certificates == suite.certificates
    other = replace(record, settings={**record.settings, "method": "ibp"})
    named = as_suite(suite.name, "linf")
    assert as_recorded(named, [other]) == named, "a record of another method than the name states is not taken"


def test_an_evaluation_of_no_change_is_announced_as_such() -> None:
    model, data, suite = half_space(), images(), as_suite("pgd", THREAT)
    lines = [announcement(model, data, parse_threat(text), suite) for text in ("linf:0", "linf:0.1")]
    assert lines[0].startswith("! linf:0 allows no change: its accuracy is that without an attack\nsuite pgd")
    assert lines[1].startswith("suite pgd")


def test_the_time_of_proofs_is_announced() -> None:
    model, data = half_space(), images()

    def words(method: str, seconds: float | None = None) -> str:
        suite = with_certificate(as_suite("pgd_10", "linf"), BoundCertificate(method, seconds=seconds))  # type: ignore
        return announcement(model, data, THREAT, suite).splitlines()[-1]

    bounds = r"certificate crown: about [\d.]+ (s|min) at most here for the bounds of 20 images"
    assert re.fullmatch(bounds, words("crown"))
    assert words("auto").endswith("; then branch and bound of the open ones, without a time limit")
    assert words("auto", 90.0).endswith("; then branch and bound of the open ones, 90 s at most")
