"""Suites, attacks and diagnostics end with the very verdicts and figures that they had before."""

from pathlib import Path

import pytest
import runs
from comparing import VALUES, compare

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.victim(tmp_path_factory.mktemp("golden"))


def test_the_victim_is_the_one_known(victim: Path, same_arithmetic: bool) -> None:
    compare(runs.released(victim), VALUES["victim"], same_arithmetic)


@pytest.mark.parametrize(("suite", "threat"), runs.SUITES)
def test_a_suite_gives_the_same_evidence(suite: str, threat: str, victim: Path, same_arithmetic: bool) -> None:
    compare(runs.evaluated(victim, suite, threat), VALUES["suites"][f"{suite} {threat}"], same_arithmetic)


@pytest.mark.parametrize(("norm", "name"), [(norm, name) for norm, kinds in runs.KINDS.items() for name in kinds])
def test_an_attack_finds_the_same(norm: str, name: str, victim: Path, same_arithmetic: bool) -> None:
    compare(runs.attacked(victim, norm, name), VALUES["attacks"][norm][name], same_arithmetic)


def test_diagnostics_measure_the_same(victim: Path, same_arithmetic: bool) -> None:
    if same_arithmetic:
        assert runs.diagnosed(victim) == VALUES["diagnostics"]
