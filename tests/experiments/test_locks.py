"""Locks against two processes in one folder, and repair of evaluations."""

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from robustly.experiments.locks import lock_evaluation, lock_run, partial_of, repair_evaluations
from robustly.files import write_text

CODE = """
import sys
from pathlib import Path
from robustly.experiments import locks
with getattr(locks, sys.argv[1])(Path(sys.argv[2])):
    print("held", flush=True)
    input()
"""


@contextmanager
def held_elsewhere(kind: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a lock until the block ends."""
    words = [sys.executable, "-c", CODE, kind, str(folder)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_the_process_that_holds_a_lock_is_named_and_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[bool] = []
    with held_elsewhere("lock_run", tmp_path) as other:

        def warned(text: str, **_: object) -> None:
            assert f"another process ({other.pid} on " in text
            assert f"uses {tmp_path}: waiting" in text
            other.kill()  # the lock ends with the process
            ended.append(True)

        monkeypatch.setattr(warnings, "warn", warned)
        with lock_run(tmp_path):
            assert ended
        with lock_evaluation(tmp_path / "evaluation"):
            assert len(ended) == 1


@pytest.mark.slow
def test_two_evaluations_of_one_run_are_written_at_a_time_but_none_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []
    with held_elsewhere("lock_evaluation", tmp_path / "evaluation") as other:
        with lock_evaluation(tmp_path / "evaluation_l2"):
            assert not found

        def warned(text: str, **_: object) -> None:
            found.append(text)
            other.kill()

        monkeypatch.setattr(warnings, "warn", warned)
        with lock_evaluation(tmp_path / "evaluation"):
            pass
    assert len(found) == 1
    assert f"{other.pid} on " in found[0]
    with held_elsewhere("lock_evaluation", tmp_path / "evaluation") as other, lock_run(tmp_path):
        assert len(found) == 2


def half_swapped(run: Path) -> Path:
    """An evaluation killed between the renames."""
    evaluation = run / "evaluation"
    for name, text in ((".evaluation.old", "old"), (".evaluation.new", "new"), ("evaluation.partial", "part")):
        (run / name).mkdir()
        write_text(run / name / "a", text)
    return evaluation


def test_an_evaluation_killed_between_the_renames_is_repaired(tmp_path: Path) -> None:
    evaluation = half_swapped(tmp_path)
    (tmp_path / "evaluation_l2").mkdir()
    repair_evaluations(tmp_path)
    assert (evaluation / "a").read_text() == "new"
    assert not partial_of(evaluation).exists()
    assert {path.name for path in tmp_path.iterdir()} == {"evaluation", "evaluation_l2", ".evaluation.lock"}
    repair_evaluations(tmp_path / "nowhere")


def test_a_folder_that_cannot_be_written_is_read_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half_swapped(tmp_path)

    def refused(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "open", refused)
    repair_evaluations(tmp_path)
    assert (tmp_path / ".evaluation.new").is_dir()


@pytest.mark.slow
def test_what_another_process_writes_is_not_repaired(tmp_path: Path) -> None:
    with held_elsewhere("lock_evaluation", tmp_path / "evaluation"):
        half_swapped(tmp_path)
        repair_evaluations(tmp_path)
        assert (tmp_path / ".evaluation.new").is_dir()
