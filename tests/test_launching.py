"""Processes of a training run wait for each other in Python, and refuse one that would train something else."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from robustly import launching
from robustly.cli import main
from robustly.launching import LOST, training_processes
from robustly.processes import ProcessError
from robustly.runtime import Place
from robustly.signals import STARTED_BY

TRAINING = [
    "train", "mnist5k/standard", "--data.image_size", "16", "--data.train_limit", "100", "--data.validation", "20",
    "--data.test", "20", "--model.width", "0.25", "--training.epochs", "2", "--training.validation_steps", "1",
    "--threat", "linf:0.05", "--runtime.device", "cpu", "--runtime.processes", "2",
]  # fmt: skip
VARIABLES = "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"


def met(abouts: list[dict[str, str]]) -> list[str]:
    """The sentence of each process, empty for one that takes part."""
    port, sentences = launching._two_free_ports(), ["?"] * len(abouts)

    def meet(rank: int) -> None:
        place = Place(rank, rank, len(abouts), "127.0.0.1", port, port_is_taken=False)
        try:
            launching._meet(place, abouts[rank], ())
            sentences[rank] = ""
        except ProcessError as error:
            sentences[rank] = str(error)

    threads = [threading.Thread(target=meet, args=(rank,)) for rank in reversed(range(len(abouts)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return sentences


def test_equal_processes_take_part_and_a_different_one_is_named_in_all_of_them() -> None:
    same = {"setting optimizer.learning_rate": "0.1", "training images": "abc"}
    assert met([same, same, same]) == ["", "", ""]
    other = same | {"setting optimizer.learning_rate": "0.2"}
    wanted = "process 2 of 3 cannot take part: its setting optimizer.learning_rate differs from process 0"
    assert met([same, same, other]) == [wanted] * 3
    assert (
        "its training images, setting seed differ from"
        in met([same, {**same, "training images": "", "setting seed": "1"}])[1]
    )


def test_a_first_process_that_does_not_answer_is_named_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "PATIENCE", 0.3)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = Place(1, 1, 2, "127.0.0.1", free.getsockname()[1] - 1, port_is_taken=False)
        began = time.monotonic()
        with pytest.raises(ProcessError, match=r"process 0 at 127.0.0.1:\d+ does not answer within 0 s"):
            launching._meet(place, {}, ())
    assert time.monotonic() - began < 5


def test_a_process_that_does_not_come_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(0, 0, 2, "127.0.0.1", launching._two_free_ports(), port_is_taken=False)
    sentence = "process 1 of this machine has stopped before the training began"
    with subprocess.Popen([sys.executable, "-c", ""]) as process, pytest.raises(ProcessError, match=sentence):
        launching._meet(place, {}, (process,))
    monkeypatch.setattr(launching, "PATIENCE", 0.3)
    with pytest.raises(ProcessError, match="process 1 of 2 does not begin within"):
        launching._meet(place, {}, ())


@pytest.mark.parametrize("settings", [(1, 1), (3, 1), (2, 2)])
def test_a_number_of_processes_that_a_launcher_did_not_start_is_refused(
    settings: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(1, 1, 2, "127.0.0.1", 1, port_is_taken=False)
    monkeypatch.setattr(launching, "place_in_cluster", lambda: place)
    wanted = f"2 processes were started, and the settings are for {settings[0] * settings[1]}"
    with pytest.raises(ValueError, match=wanted), training_processes(*settings, {}):
        pass


def test_a_lost_process_is_a_sentence_and_the_environment_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the error comes from before or after the training itself."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(launching, "_meet", lambda place, about, started: None)
    monkeypatch.setattr(launching, "_own_command", lambda: [sys.executable, "-c", "import time; time.sleep(60)"])
    lost = RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:53950")

    def fails() -> None:
        with training_processes(2, 1, {}):
            assert os.environ["LOCAL_RANK"] == "0"
            raise lost

    with pytest.raises(ProcessError, match=LOST):
        fails()
    assert not set(VARIABLES) & set(os.environ)
    with training_processes(1, 1, {}):
        pass


def test_a_started_process_leaves_sentences_for_all_to_the_first_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lost(*_: object) -> int:
        raise ProcessError(LOST)

    monkeypatch.setattr("robustly.cli._run", lost)
    assert main(["info"]) == 2
    assert LOST in capsys.readouterr().err
    monkeypatch.setenv(STARTED_BY, "1")
    assert main(["info"]) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_processes_with_other_settings_train_nothing(tmp_path: Path) -> None:
    variables = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(launching._two_free_ports()),
        "OMP_NUM_THREADS": "1",
    }
    words = [sys.executable, "-m", "robustly", *TRAINING, "--out", str(tmp_path / "run")]
    processes = [
        subprocess.Popen(
            [*words, "--optimizer.learning_rate", rate],
            env=os.environ | variables | {"LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, rate in enumerate(("0.01", "0.02"))
    ]
    for process in processes:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 2
        assert "process 1 of 2 cannot take part: its setting optimizer.learning_rate differs" in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kills_first", [False, True])
def test_a_process_that_is_killed_while_it_loads_ends_the_others(tmp_path: Path, kills_first: bool) -> None:
    words = [sys.executable, "-m", "robustly", *TRAINING, "--out", str(tmp_path / "run")]
    first = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    children = Path(f"/proc/{first.pid}/task/{first.pid}/children")
    until = time.monotonic() + 100
    while not (found := children.read_text().split()):
        assert time.monotonic() < until
        assert first.poll() is None
        time.sleep(0.01)
    other = int(found[0])
    os.kill(first.pid if kills_first else other, signal.SIGKILL)
    _, errors = first.communicate(timeout=100)
    assert first.returncode == (-signal.SIGKILL if kills_first else 2)
    sentence = "" if kills_first else "robustly: process 1 of this machine has stopped before the training began\n"
    assert errors == sentence
    until = time.monotonic() + 60
    while Path(f"/proc/{other}").exists():
        assert time.monotonic() < until, "the other process waits for ever"
        time.sleep(0.1)
