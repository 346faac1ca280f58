"""Signals, closed pipes, full disks, and the same command again."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_tools import refusal
from safetensors import safe_open
from safetensors.numpy import save_file

import robustly.cli
from robustly.cli import main
from robustly.cli.interruption import Stopped, lasting_output, stoppable
from robustly.cli.sweep_run import carry_out
from robustly.evaluation.part_files import seal_of
from robustly.experiments.sweeps import Sweep, cells_of

SMALL = [
    "--data.train_limit=64", "--data.image_size=16", "--data.validation=20", "--data.test=20", "--model.width=0.1",
    "--threat=linf:0.1", "--training.batch_size=32", "--training.validation_steps=1", "--training.epsilon_ramp=1",
    "--method.inner.steps=1", "--runtime.device=cpu", "--evaluation.suite=one",
    "--evaluation.stages={near: {attack: pgd, steps: 2}}", "--evaluation.batch_size=20",
]  # fmt: skip
ONE_EPOCH = ["train", "mnist5k/pgd_at", *SMALL, "--training.epochs=1", "--out"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained and evaluated run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main([*ONE_EPOCH, str(folder)]) == 0
    assert main(["evaluate", str(folder)]) == 0
    return folder


# signals


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_signals_have_their_exit_codes(
    name: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    number = getattr(signal, name)
    signal.signal(number, signal.SIG_DFL)  # a signal that the caller of the tests ignores stays ignored
    before = signal.getsignal(number)

    def work(arguments: list[str]) -> int:
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(number)  # a launcher sends it to the group and to each process
        return 0

    monkeypatch.setattr(robustly.cli, "_run", work)
    assert main([]) == code
    assert capsys.readouterr().err == f"robustly: stopped by {name}\n"
    assert signal.getsignal(number) == before


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_leave_signals_alone() -> None:
    found: list[object] = []

    def work() -> None:
        with stoppable():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]


@pytest.mark.slow
def test_sigterm_leaves_a_true_status(here: Path) -> None:
    words = [sys.executable, "-m", "robustly", "train", "mnist5k/pgd_at", *SMALL, "--training.epochs=900"]
    process = subprocess.Popen([*words, "--out", "run"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while not (here / "run/status.json").exists() and process.stdout.readline():
        pass
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert (process.returncode, err) == (143, "robustly: stopped by SIGTERM\n")
    assert "robustly train --resume run" in out
    status = json.loads((here / "run/status.json").read_text())
    assert (status["state"], status["message"]) == ("stopped", "stopped by SIGTERM")


@pytest.mark.slow
def test_an_error_of_any_kind_leaves_a_true_status(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("robustly.training.engine.loop.as_csv", fail)
    assert main([*ONE_EPOCH, "run"]) == 3
    status = json.loads((here / "run/status.json").read_text())
    assert (status["state"], status["message"]) == ("failed", "out of memory")


# output


def test_output_that_has_no_reader_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with lasting_output():
            for _ in range(3):
                sys.stdout.write("a line\n")
                sys.stdout.flush()
            assert sys.stdout.encoding == stream.encoding
        assert sys.stdout is stream
        stream.flush()


def test_other_errors_of_the_output_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def flush(self) -> None:
            pass

    monkeypatch.setattr(sys, "stdout", Full())
    with lasting_output(), pytest.raises(OSError, match="No space"):
        sys.stdout.write("text")


@pytest.mark.slow
def test_a_closed_pipe_ends_no_training(here: Path) -> None:
    command = " ".join([sys.executable, "-m", "robustly", *(f"'{word}'" for word in ONE_EPOCH), "run"])
    line = f"({command}; echo $? > code) | true"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True)
    assert (here / "code").read_text() == "0\n", done.stderr
    assert (here / "run/model.safetensors").is_file()
    assert done.stderr == ""


# the same command again


@pytest.mark.slow
def test_the_same_command_again_continues_and_changes_nothing_that_is_finished(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "model.safetensors").read_bytes()
    assert main([*ONE_EPOCH, str(run)]) == 0
    assert "(continued)" in capsys.readouterr().out
    assert (run / "model.safetensors").read_bytes() == before
    said = refusal(capsys, *ONE_EPOCH, str(run), "--seed=4", "--training.epochs=3")
    assert "exists already with other settings (seed, training)" in said
    assert "--overwrite replaces it, --keep" in refusal(capsys, "evaluate", str(run))


@pytest.mark.slow
def test_a_folder_with_leftovers_alone_is_begun_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = here / "run"
    folder.mkdir()
    (folder / ".lock").touch()
    (folder / ".config.yaml.99999999.part").write_text("half")
    assert main([*ONE_EPOCH, "run"]) == 0
    assert not list(folder.glob(".*.part"))
    other = here / "mine"
    other.mkdir()
    (other / ".hidden").touch()
    assert "mine exists already" in refusal(capsys, *ONE_EPOCH, "mine")
    (here / "file").touch()
    assert "file exists already" in refusal(capsys, *ONE_EPOCH, "file")
    assert main([*ONE_EPOCH, "."]) == 2


@pytest.mark.slow
def test_a_damaged_checkpoint_fails_its_checksum(run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run, here / "copy")
    last = here / "copy/checkpoints/last.pt"
    content = bytearray(last.read_bytes())
    value = next(iter(_first_tensor(last).values())).numpy().tobytes()
    content[content.index(value[:64]) + 5] ^= 1
    last.write_bytes(content)
    said = refusal(capsys, "train", "--resume", "copy")
    assert "last.pt" in said
    assert "does not match its checksum" in said or "truncated" in said
    assert "to train from the start" in said


def _first_tensor(last: Path) -> dict[str, torch.Tensor]:
    networks = torch.load(last, weights_only=True)["networks"]["model"]
    return {name: value for name, value in networks.items() if value.numel() > 16}


# evaluations


@pytest.mark.slow
def test_a_full_disk_keeps_the_old_evaluation(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in (run / "evaluation").iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for part in ("robustly.array_files.save_file", "pyarrow.parquet.write_table", "os.fsync"):
        with monkeypatch.context() as patched:
            patched.setattr(part, full)
            assert "No space left on device" in refusal(capsys, "evaluate", str(run), "--overwrite", "--seed=5")
        assert {path: path.read_bytes() for path in (run / "evaluation").iterdir()} == before
        assert not list(run.glob(".*.part"))
    assert main(["evaluate", str(run), "--overwrite", "--seed=5"]) == 0
    assert {path: path.read_bytes() for path in (run / "evaluation").iterdir()} != before
    assert main(["evaluate", str(run), "--overwrite"]) == 0


def stop(*_: object, **__: object) -> None:
    raise Stopped(signal.SIGTERM)


def stop_before_the_evidence(run: Path, label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluate, and stop after the attacks."""
    with monkeypatch.context() as patched:
        patched.setattr("robustly.cli.evaluate_writing.write_evidence", stop)
        assert main(["evaluate", str(run), "--as", label]) == 143


@pytest.mark.slow
@pytest.mark.filterwarnings("default::UserWarning")
def test_parts_of_another_evaluation_are_removed_with_a_sentence(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_before_the_evidence(run, "b", monkeypatch)
    partial = run / "evaluation_b.partial"
    assert {path.name for path in partial.iterdir()} == {"begun.json", "near.safetensors"}
    with monkeypatch.context() as patched:
        patched.setattr("robustly.evaluation.stages.attack_rows", stop)  # no attack runs a second time
        assert main(["evaluate", str(run), "--as", "b"]) == 0
    assert not partial.exists()
    stop_before_the_evidence(run, "c", monkeypatch)
    capsys.readouterr()
    assert main(["evaluate", str(run), "--as", "c", "--seed=8", "--threat=linf:0.2"]) == 0
    assert "stopped evaluation with another seed, threat: they are removed" in capsys.readouterr().err


@pytest.mark.slow
def test_a_part_on_other_images_runs_again(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_before_the_evidence(run, "d", monkeypatch)
    part = run / "evaluation_d.partial/near.safetensors"
    with safe_open(part, framework="np") as stored:
        about, tensors = stored.metadata(), {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    tensors["tried"] = np.zeros_like(tensors["tried"])
    stated = json.loads(about["about"])
    del stated["seal"]
    stated["seal"] = seal_of(tensors, "near", json.dumps(stated))
    save_file(tensors, part, metadata={"about": json.dumps(stated)})
    capsys.readouterr()
    assert main(["evaluate", str(run), "--as", "d"]) == 0
    assert "'near' runs again" in capsys.readouterr().err
    one, other = (json.loads((run / name / "summary.json").read_text()) for name in ("evaluation", "evaluation_d"))
    assert one["worst_case"] == other["worst_case"]


def test_children_of_a_sweep_do_not_import_from_the_working_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = cells_of(Sweep(("mnist5k/pgd_at",)), here / "s")[0]
    cell.folder.mkdir(parents=True)
    printed = cell.shell_command.split()
    assert printed[printed.index("-m") - 1] == "-P"
    (here / "random.py").write_text("raise SystemExit('imported from the working folder')\n")
    start = subprocess.Popen
    found: list[str] = []

    def imports_only(words: list[str], **named: Any) -> subprocess.Popen[bytes]:
        """The same interpreter, options and environment; it imports one module instead of the package."""
        found.extend(words)
        return start([*words[: words.index("-m")], "-m", "tempfile"], **named)

    monkeypatch.setattr(subprocess, "Popen", imports_only)
    assert carry_out(cell, threading.Event(), {}) == ""
    assert found[found.index("-m") + 1] == "robustly"
