"""The exit codes of `docs/command-line.md`."""

import argparse
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import said

from robustly import cli, documents, memory, settings
from robustly.cli.commands import COMMANDS
from robustly.evaluation.evaluate import EvaluationError
from robustly.experiments.configuration import build_config
from robustly.experiments.run_folder import create_run
from robustly.threats import LONGEST_CHAIN
from robustly.training.engine.stopping import DivergenceError


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> "type[Raising]":
    Raising.monkeypatch = monkeypatch
    return Raising


class Raising:
    """Let `robustly recipes` raise an error."""

    monkeypatch: pytest.MonkeyPatch

    def __init__(self, error: BaseException) -> None:
        def command(options: argparse.Namespace, overrides: list[str]) -> int:
            raise error

        self.monkeypatch.setitem(COMMANDS, "recipes", replace(COMMANDS["recipes"], run=command))


def test_success_is_0() -> None:
    assert said("recipes") == (0, said("recipes")[1], "")


def test_a_failed_audit_is_1(tmp_path: Path) -> None:
    create_run(tmp_path / "run", build_config({"data": {"source": "mnist5k"}}))
    (tmp_path / "run/evaluation").mkdir()
    code, out, err = said("audit", str(tmp_path / "run"))
    assert (code, err) == (1, "")
    assert "summary.json" in out


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("wrong\n  number"), "robustly: wrong number\n"),
        (FileNotFoundError(2, "No such file", "a\x1b[2Jb"), "No such file (a?[2Jb)"),
        (ImportError("no package"), "no package"),
        (MemoryError(), "not enough memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "not enough memory: use smaller batches"),
        (DivergenceError("training diverged"), "training diverged"),
        (EvaluationError("every attack failed"), "every attack failed"),
        (ValueError("x" * 5000), "x...\n"),
    ],
)
def test_what_the_user_can_change_is_2(raising: type[Raising], error: Exception, words: str) -> None:
    raising(error)
    code, _, err = said("recipes")
    assert code == 2
    assert words in err
    assert err.count("\n") == 1
    assert len(err) < 1050


@pytest.mark.parametrize("error", [RuntimeError("inner\x1b[2J"), KeyError("k"), RecursionError(), AssertionError()])
def test_a_fault_is_3_and_its_traceback_is_in_a_file(raising: type[Raising], error: Exception) -> None:
    raising(error)
    code, out, err = said("recipes")
    assert (code, out) == (3, "")
    assert err.startswith(f"robustly: this is a fault of robustly ({type(error).__name__}")
    assert err.count("\n") == 1
    assert "\x1b" not in err
    found = re.search(r"report it with the file (\S+);", err)
    assert found is not None
    log = Path(found[1])
    assert "Traceback" in log.read_text()
    assert "in command" in log.read_text()
    log.unlink()


def test_the_traceback_is_printed_on_demand(raising: type[Raising], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUSTLY_TRACEBACK", "1")
    raising(ValueError("wrong"))
    code, _, err = said("recipes")
    assert code == 2
    assert err.startswith("Traceback")
    assert err.endswith("\nrobustly: wrong\n")


def test_an_interruption_is_130(raising: type[Raising]) -> None:
    raising(KeyboardInterrupt())
    assert said("recipes") == (130, "", "robustly: interrupted\n")


def test_the_documentation_has_every_code() -> None:
    page = (Path(__file__).parents[2] / "docs/command-line.md").read_text()
    for code in (0, 1, cli.USER_ERROR, cli.FAULT, cli.INTERRUPTED, 143, 129):
        assert f"\n| {code} | " in page


def test_the_documentation_has_the_limits() -> None:
    page = (Path(__file__).parents[2] / "docs/command-line.md").read_text()
    for words in (
        f"{documents.MOST_BYTES_YAML // 1024} KiB, {documents.MOST_LEVELS} levels, ",
        f"{documents.MOST_VALUES_YAML:,} values after aliases are expanded",
        f"{documents.MOST_BYTES_DATA // 2**20} MiB, {documents.MOST_LEVELS} levels",
        f"-1e9 to {settings.MOST:g}".replace("e+0", "e"),
        f"{memory.MOST_PIXELS // 10**6} million pixels",
        f"{memory.most_bytes() // 2**30} GiB; the variable `{memory.VARIABLE}`",
        f"| parts of a chain of threats | {LONGEST_CHAIN} |",
        f"| a message | {cli.LONGEST:,} characters |",
    ):
        assert words in page, words
