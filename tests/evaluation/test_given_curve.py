"""The security curve is switched off, or has the sizes that the user gave."""

from pathlib import Path

import pytest
import torch
from torch import nn

from robustly.data import ImageData
from robustly.evaluation import EvaluationTarget, Suite, audit, evaluate
from robustly.evaluation.curve import curve_radii, has_own_sizes, with_curve
from robustly.evaluation.suites import as_suite
from robustly.evidence import write_evidence
from robustly.experiments.configuration import EvaluationConfig, build_config
from robustly.settings import SettingsError
from robustly.threats import ThreatModel, parse_threat

LINF = ThreatModel("linf", "8/255")


def sizes(curve: object, threat: ThreatModel = LINF) -> list[str]:
    suite = with_curve(as_suite("dynat", threat.kind), curve, threat)  # type: ignore[arg-type]
    return [str(radius) for radius in curve_radii(threat, suite)]


def test_sizes_are_read_from_texts_and_lists_and_sorted() -> None:
    assert sizes("4/255, 1/255,2/255") == ["1/255", "2/255", "4/255"]
    assert sizes(["2/255", 0.5, "2/255"]) == ["2/255", "1/2"]
    assert sizes(0.25) == ["1/4"]
    assert sizes("off") == []
    assert sizes(False) == []
    assert len(sizes(None)) == 7


@pytest.mark.parametrize(
    ("curve", "words"),
    [
        ("1/255,,", "sizes of the threat"),
        ("eight", "got 'eight'"),
        ([], "sizes of the threat"),
        ("0", "larger than 0"),
        ("-1/255", "got '-1/255'"),
        ("3", "wider than the box"),
    ],
)
def test_other_curves_are_named(curve: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sizes(curve)


def test_a_suite_without_a_curve_draws_it_with_its_first_attack() -> None:
    suite = with_curve(as_suite("pgd_10,fgsm", "linf"), "1/255", LINF)
    assert suite.curve == "pgd_10"
    rotation = parse_threat("rotation:30")
    assert with_curve(as_suite("standard", "rotation"), "5,10", rotation).curve_sizes == ("5", "10")


def test_the_command_line_has_the_same_words() -> None:
    assert EvaluationConfig(curve=False).curve == "off", "YAML reads off as false"
    assert EvaluationConfig(curve=True).curve == "on", "YAML reads on as true"
    assert build_config({"evaluation": {"curve": "1/255,2/255"}}).evaluation.curve == "1/255,2/255"
    with pytest.raises(SettingsError, match="evaluation: curve: give 'off', or sizes"):
        build_config({"evaluation": {"curve": "8"}})


@pytest.fixture(scope="module")
def job() -> tuple[nn.Module, ImageData]:
    images = torch.randint(0, 256, (12, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).eval()
    with torch.no_grad():
        labels = net(images.float() / 255).argmax(1)
    return net, ImageData(images, labels, torch.arange(12), ("a", "b", "c"), "noise")


def test_shares_of_the_size_are_sizes_of_every_threat() -> None:
    assert sizes("50%, 100 %,150%") == ["4/255", "8/255", "4/85"]
    assert sizes(["25%", "1/255"]) == ["1/255", "2/255"]
    assert sizes("100%,100000%") == ["8/255"], "sizes beyond the box are left out, as in curves of suites"
    for text, wanted in (
        ("rotation:30", ("15", "30")),
        ("shift:3", ("1.5", "3")),
        ("brightness:0.2", ("0.1", "0.2")),
        ("rotation:30+linf:8/255", ("0.5", "1")),
        ("l0:10", ("5", "10")),
    ):
        threat = parse_threat(text)
        assert with_curve(as_suite("pgd_10", threat.kind), "50%, 100%", threat).curve_sizes == wanted


def test_on_draws_the_curve_of_a_suite_that_has_none() -> None:
    bare, own = as_suite("pgd_10,fgsm", "linf"), as_suite("dynat", "linf")
    for word in ("on", True):
        drawn = with_curve(bare, word, LINF)
        assert drawn.curve == "pgd_10"
        assert curve_radii(LINF, drawn) == LINF.extents_at(bare.curve_factors)
        assert with_curve(own, word, LINF) is own


@pytest.mark.parametrize("curve", ["0%", "-5%", "%", "x%", "nan%", "1/0%", "inf%", "100000%"])
def test_shares_that_are_no_sizes_are_refused(curve: str) -> None:
    with pytest.raises(ValueError, match="curve: give 'off', or sizes of the threat"):
        sizes(curve)


def test_sizes_in_a_unit_and_shares_are_told_apart() -> None:
    assert [has_own_sizes(one) for one in ("1/255", "50%,1/255", 0.5, [0.1], ["50%", 0.1])] == [True] * 5
    assert [has_own_sizes(one) for one in (None, True, False, "on", "off", "50%", ["50%", "100%"])] == [False] * 7


@pytest.mark.parametrize("curve", ["off", "1/255, 1/10", "on"])
def test_an_evaluation_and_its_audit_take_the_curve(
    curve: str, job: tuple[nn.Module, ImageData], tmp_path: Path
) -> None:
    net, data = job
    threat = ThreatModel("linf", 0.1)
    evidence = evaluate(net, data, threat, "pgd_10", curve=curve, batch_size=12)
    found = evidence.summary.metrics.security_curve
    assert (found is None) == (curve == "off")
    if found is not None:
        usual = ("0", "0.025", "0.05", "0.075", "0.1", "0.125", "0.15", "0.2")
        assert found.epsilon_text == (usual if curve == "on" else ("0", "1/255", "0.1"))
        assert found.accuracy[-1] < 1
    assert set(evidence.summary.overhead) == {"tuning", "diagnostics", "curve"}
    assert "diagnostics" in evidence.summary.overhead_words
    write_evidence(evidence, tmp_path / "evidence")
    result = audit(tmp_path / "evidence", EvaluationTarget(net, data, threat), as_suite("pgd_10", "linf"))
    assert [check for check in result.checks if not check.passed] == []


def test_a_list_of_attacks_is_an_evaluation(job: tuple[nn.Module, ImageData]) -> None:
    net, data = job
    suite = as_suite(["fgsm", "pgd_10"], "linf")
    assert isinstance(suite, Suite)
    evidence = evaluate(net, data, ThreatModel("linf", 0.1), ["fgsm", "pgd_10"], batch_size=12)
    assert list(evidence.table.attacks) == ["fgsm", "pgd_10"]
