"""`--on ray://HOST:PORT`: a command outside of the cluster, whose node is started for the test."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from process_tools import start, wait_for

from robustly.cli import main
from robustly.ray_connection import ClusterError, check_address

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="kills processes"),
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None or importlib.util.find_spec("grpc") is None,
        reason="the client of Ray is not installed: pip install 'ray[client]'",
    ),
]
SMALL = [
    "--data.image_size", "16", "--data.train_limit", "600", "--data.validation", "20", "--data.test", "40",
    "--model.width", "0.25", "--training.epochs", "2", "--training.batch_size", "32",
    "--training.validation_steps", "1", "--threat", "linf:0.05", "--runtime.device", "cpu",
]  # fmt: skip
VARIABLES = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
"""Of the node and the commands: newer versions of Ray want a token otherwise."""


@dataclass(frozen=True)
class Head:
    """A node that takes clients.

    Args:
        process: its process, in a group of its own with all others of the node.
        port: port for clients.
    """

    process: subprocess.Popen[bytes]
    port: int

    @property
    def address(self) -> str:
        return f"ray://127.0.0.1:{self.port}"

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(60)


@pytest.fixture
def head() -> Iterator[Head]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # the paths of its sockets must be short
    words = ["--head", "--block", "--port=0", f"--ray-client-server-port={port}", "--num-cpus=2"]
    words += ["--include-dashboard=false", f"--temp-dir={folder}"]
    process = subprocess.Popen(
        [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", *words],
        env=os.environ | VARIABLES,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    node = Head(process, port)
    try:
        until = time.monotonic() + 90
        while True:
            try:
                check_address(node.address, "--on")
                break
            except ClusterError:
                assert process.poll() is None, "the node has ended"
                assert time.monotonic() < until, "the node does not start"
                time.sleep(0.5)
        yield node
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                node.kill()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("client") / "run"
    assert main(["train", "mnist5k/standard", *SMALL, "--out", str(folder)]) == 0
    return folder


def same_evidence(one: Path, other: Path) -> bool:
    names = ("evidence.parquet", "adversarial.safetensors")
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def test_a_client_shares_one_run_and_several_and_survives_the_end_of_the_cluster(run: Path, head: Head) -> None:
    suite = ["--suite", "fgsm,pgd_10", "--evaluation.batch_size", "8"]
    assert main(["evaluate", str(run), *suite, "--as", "one"]) == 0
    process = start(str(run), *suite, "--as", "client", "--on", head.address, variables=VARIABLES)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert same_evidence(run / "evaluation_one", run / "evaluation_client")

    other = run.parent / "other"
    shutil.copytree(run, other, ignore=shutil.ignore_patterns("evaluation*"))
    words = [str(run), str(other), *suite, "--as", "both", "--on", head.address]
    process = start(*words, variables=VARIABLES)
    shown, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "2 of 2 evaluations finished" in shown
    for folder in (run, other):
        assert same_evidence(run / "evaluation_one", folder / "evaluation_both")

    long = [str(run), "--suite", "pgd_100", "--evaluation.batch_size", "1", "--as", "lost", "--on", head.address]
    process, partial = start(*long, variables=VARIABLES), run / "evaluation_lost.partial"
    wait_for(lambda: len(list(partial.glob("parts/*/0*.safetensors"))) > 1, process)
    head.kill()
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2, (process.returncode, errors)
    sentence = [line for line in errors.splitlines() if line.startswith("robustly: ")]
    assert len(sentence) == 1
    assert "Traceback" not in errors
    assert "the same command continues" in sentence[0]
    kept = len(list(partial.glob("parts/*/0*.safetensors")))
    assert kept > 1
    assert main(["evaluate", *long[:-2]]) == 0, "the same command without the cluster"
