"""Small runs end with the very weights, verdicts and figures that they had before.

Bits are compared where this machine computes as the machine that `values.json` was made on; elsewhere the
figures have to be near.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import runs
import torch

from robustly.models import ModelConfig, build_model

VALUES: dict[str, Any] = json.loads(runs.VALUES.read_text(encoding="utf-8"))
NEAR = {"rel": 0.05, "abs": 0.05}


@pytest.fixture(scope="module")
def same_arithmetic() -> bool:
    return runs.fingerprint() == VALUES["fingerprint"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("golden")


@pytest.fixture(scope="module")
def files(folder: Path) -> tuple[Path, Path]:
    net = build_model(ModelConfig(width=0.25, image_size=(16, 16)), seed=0)
    return runs.write_teacher(folder, net), runs.write_extra(folder)


@pytest.fixture(scope="module")
def victim(folder: Path) -> Path:
    return runs.victim(folder)


def assert_near(found: Any, known: Any, where: str = "") -> None:
    """The same structure, and numbers that differ by what other rounding explains."""
    if isinstance(known, dict):
        assert found.keys() == known.keys(), where
        for key in known:
            assert_near(found[key], known[key], f"{where}.{key}")
    elif isinstance(known, list):
        assert len(found) == len(known), where
        for place, (one, other) in enumerate(zip(found, known, strict=True)):
            assert_near(one, other, f"{where}[{place}]")
    elif isinstance(known, float):
        assert found == pytest.approx(known, **NEAR), where


def compare(found: dict[str, Any], known: dict[str, Any], same_arithmetic: bool) -> None:
    if same_arithmetic:
        assert found == known
        return
    assert_near({key: value for key, value in found.items() if key in ("norm", "losses")},
                {key: value for key, value in known.items() if key in ("norm", "losses")})  # fmt: skip
    if "printed" in known:
        assert_near(found["printed"].get("worst_case"), known["printed"].get("worst_case"))
        assert found["columns"].keys() == known["columns"].keys()


@pytest.mark.parametrize("recipe", runs.recipes())
def test_a_recipe_ends_with_the_same_weights(
    recipe: str, folder: Path, files: tuple[Path, Path], same_arithmetic: bool
) -> None:
    found = runs.trained(recipe, folder / recipe.replace("/", "_"), *files)
    compare(found, VALUES["recipes"][recipe], same_arithmetic)


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
