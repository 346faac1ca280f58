"""Processes find each other by the variables of their launcher, and say in one sentence why they cannot."""

import os
import socket
import time
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
from torch.distributed import HashStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore

from robustly import processes, runtime
from robustly.cli import together
from robustly.cli.interruption import Stopped
from robustly.processes import Group, ProcessError, code_digest, join_group
from robustly.runtime import DeviceError, Place, check_device, place_in_cluster

SLURM = {"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODELIST": "node[7-9],other"}


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without a launcher."""
    for name in [*os.environ]:
        if name.startswith(("SLURM_", "TORCHELASTIC_", "MASTER_", "CUDA_VISIBLE")):
            monkeypatch.delenv(name)
    return monkeypatch


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_slurm_gives_each_process_its_place(variables: pytest.MonkeyPatch) -> None:
    assert place_in_cluster() is None
    for name, value in SLURM.items():
        variables.setenv(name, value)
    assert place_in_cluster() == Place(3, 1, 4, "node7", 15000, port_is_taken=False)
    variables.setenv("SLURM_JOB_ID", "1234567")
    first = place_in_cluster()
    variables.setenv("SLURM_STEP_ID", "1")
    second = place_in_cluster()
    assert first is not None
    assert second is not None
    assert first.port == 15000 + 4567
    assert first.port != second.port, "two steps of a job have stores of their own"
    variables.setenv("MASTER_ADDR", "head")
    variables.setenv("MASTER_PORT", "4000")
    place = place_in_cluster()
    assert place is not None
    assert (place.address, place.port) == ("head", 4000)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"SLURM_PROCID": "x"}, "SLURM_PROCID should be a whole number, but is 'x'"),
        ({"SLURM_PROCID": "4"}, "SLURM_PROCID is 4, and SLURM_NTASKS is 4"),
        ({"SLURM_PROCID": None}, "SLURM_PROCID should be a whole number, but is None: start with srun"),
        ({"SLURM_NTASKS": "-1"}, "SLURM_NTASKS should be a whole number"),
    ],
)
def test_wrong_variables_of_slurm_are_named(
    variables: pytest.MonkeyPatch, changed: dict[str, str | None], sentence: str
) -> None:
    for name, value in (SLURM | changed).items():
        if value is not None:
            variables.setenv(name, value)
    with pytest.raises(ValueError, match=sentence):
        place_in_cluster()


@pytest.mark.parametrize("changed", [{"SLURM_NTASKS": "1"}, {"SLURM_JOB_NAME": "bash"}])
def test_one_task_or_an_interactive_shell_is_a_process_on_its_own(
    variables: pytest.MonkeyPatch, changed: dict[str, str]
) -> None:
    for name, value in (SLURM | changed).items():
        variables.setenv(name, value)
    assert place_in_cluster() is None


@pytest.mark.slow
def test_a_store_that_cannot_be_reached_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PATIENCE", 1.0)
    for is_taken in (True, False):
        place = Place(1, 1, 2, "127.0.0.1", free_port(), is_taken)
        with pytest.raises(ProcessError, match="does not answer within 1 s") as caught:
            join_group(place)
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_store_without_process_0_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PATIENCE", 1.0)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))
    with pytest.raises(ProcessError, match=r"process 0 at 127\.0\.0\.1:\d+ does not answer within 1 s"):
        join_group(Place(1, 1, 2, "127.0.0.1", store.port))


def test_a_process_with_other_code_is_refused_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))
    own = PrefixStore("robustly", store)
    first = Group(0, 2, own)
    own.set("code", code_digest())
    place = Place(1, 1, 2, "127.0.0.1", store.port)
    join_group(place)
    monkeypatch.setattr(processes, "code_digest", lambda: "other")
    with pytest.raises(ProcessError, match="its code of robustly, or its version of PyTorch, differs"):
        join_group(place)
    with pytest.raises(ProcessError, match="process 1 of 2 cannot take part: its code of robustly"):
        first.check()


def test_a_process_that_never_began_is_told_from_one_that_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(processes.time, "monotonic", lambda: now[0])
    monkeypatch.setenv("SLURM_NTASKS", "2")
    group = replace(Group(0, 2, HashStore()), advice="start the command again")
    group.check()
    now[0] = 301.0
    with pytest.raises(ProcessError) as caught:
        group.check()
    srun = "(under SLURM, start the command with srun)"
    assert str(caught.value) == f"process 1 of 2 did not begin within 300 s {srun}; start the command again"


def test_waiting_ends_with_process_0() -> None:
    store = HashStore()
    group = Group(1, 2, store)
    store.set("here", "value")
    Group(0, 1, store).close()
    assert group.wait_for("here") == b"value", "what was there before can be read"
    with pytest.raises(ProcessError, match="process 0 has ended"):
        group.wait_for("later")


def test_process_0_of_a_cluster_lets_the_others_leave() -> None:
    store = HashStore()
    other = Group(1, 2, store)
    store.set("pulse/1", "1")
    other.leave()
    Group(0, 2, store).close()  # returns at once
    assert store.check(["over"])


def test_a_lost_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_device(torch.device("cpu"))

    def lost(*args: object, **settings: object) -> torch.Tensor:
        raise RuntimeError("CUDA error: device-side\nassert triggered")

    monkeypatch.setattr(runtime.torch, "ones", lost)
    with pytest.raises(
        DeviceError, match=r"the device cuda:1 does not answer any more \(CUDA error: device-side as"
    ):
        check_device(torch.device("cuda", 1))


@pytest.mark.parametrize(
    ("size", "cores", "devices", "sentence"),
    [
        (2, 2, 0, ""),
        (3, 2, 0, "! 3 processes share 2 cores\n"),
        (2, 1, 0, "! 2 processes share 1 core\n"),
        (8, 64, 2, "! 8 processes share 2 GPUs\n"),
        (2, 64, 2, ""),
    ],
)
def test_more_processes_than_cores_or_devices_are_said(
    size: int,
    cores: int,
    devices: int,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    monkeypatch.setattr(together.torch.cuda, "is_available", lambda: devices > 0)
    monkeypatch.setattr(together.torch.cuda, "device_count", lambda: devices)
    together.say_crowding(size)
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", sentence)


def test_process_0_waits_for_no_process_that_has_left_before_its_first_sign_of_life() -> None:
    store = HashStore()
    Group(1, 2, store).leave()
    began = time.monotonic()
    Group(0, 2, store).close()
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt(), 130), (Stopped(15), 143)])
def test_another_process_of_a_cluster_ends_with_the_code_of_its_signal(
    stop: KeyboardInterrupt, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(group: Group) -> None:
        raise stop

    monkeypatch.setattr(together, "join_group", lambda place: Group(1, 2, HashStore()))
    monkeypatch.setattr(together, "use_own_gpu", lambda place: None)
    with pytest.raises(SystemExit) as ended:
        together.take_part(Place(1, 1, 2, "127.0.0.1", 1), stopped)
    assert ended.value.code == code
    assert capsys.readouterr() == ("", "")
