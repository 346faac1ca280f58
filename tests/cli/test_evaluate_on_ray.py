"""`--on ray`: the evidence of one process, nothing lost and nothing twice when a node or the command is killed."""

import importlib.util
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from cli_tools import refusal
from process_tools import start, wait_for

from robustly import ray_connection
from robustly.cli import main
from robustly.evidence import read_summary

SMALL = [
    "--data.image_size", "16", "--data.train_limit", "600", "--data.validation", "20", "--data.test", "40",
    "--model.width", "0.25", "--training.epochs", "2", "--training.batch_size", "32",
    "--training.validation_steps", "1", "--threat", "linf:0.05", "--runtime.device", "cpu",
]  # fmt: skip
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install ray"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("on_ray") / "run"
    assert main(["train", "mnist5k/standard", *SMALL, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A node without CPUs that the command joins, and two nodes with one CPU each."""
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    nodes.add_node(num_cpus=1)
    yield nodes
    nodes.shutdown()


def assert_same_evidence(one: Path, other: Path) -> None:
    tables = [pq.read_table(folder / "evidence.parquet") for folder in (one, other)]
    names = [name for name in tables[0].column_names if not name.endswith("seconds")]
    assert tables[0].column_names == tables[1].column_names
    assert str(tables[0].select(names).to_pydict()) == str(tables[1].select(names).to_pydict()), "NaN included"
    assert (one / "adversarial.safetensors").read_bytes() == (other / "adversarial.safetensors").read_bytes()


@needs_ray
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="kills processes")
def test_a_killed_command_and_a_killed_node_lose_no_part(run: Path, cluster: Any) -> None:
    words = [str(run), "--suite", "fgsm,pgd_100", "--evaluation.batch_size", "2", "--evaluation.mode", "worst_case"]
    costs = ["--costs", "classes:3,5"]
    assert main(["evaluate", *words, *costs, "--as", "one"]) == 0
    words += [*costs, "--as", "cluster", "--on", "ray"]
    variables = {"RAY_ADDRESS": cluster.address}
    partial = run / "evaluation_cluster.partial"

    process = start(*words, variables=variables)
    wait_for(lambda: len(list(partial.glob("parts/*/0*.safetensors"))) > 1, process)
    process.kill()
    process.communicate(timeout=60)
    before = {path: path.stat().st_mtime_ns for path in partial.rglob("*.safetensors")}

    process = start(*words, variables=variables)
    wait_for(lambda: len(list(partial.rglob("*.safetensors"))) > len(before), process)
    kept = {path: path.stat().st_mtime_ns for path in before if path.is_file()}
    assert kept == {path: before[path] for path in kept}, "finished parts are not computed again"
    cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
    shown, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    assert "expected worst cost" in shown
    assert not partial.exists()
    for name in ("evidence.parquet", "adversarial.safetensors", "costs.parquet"):
        one, other = (run / f"evaluation_{which}" / name for which in ("one", "cluster"))
        assert one.read_bytes() == other.read_bytes(), name


@needs_ray
@pytest.mark.slow
def test_several_runs_are_certified_and_a_broken_one_is_named(
    run: Path, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--count", "6", "--halvings", "0", "--method", "crown", "--suite", "fgsm", "--threat", "linf:0.01"]
    assert main(["certify", str(run), *words, "--as", "alone"]) == 0
    runs = [tmp_path / name for name in ("a", "b", "broken")]
    for folder in runs:
        shutil.copytree(run, folder, ignore=shutil.ignore_patterns("evaluation*"))
    (runs[2] / "model.safetensors").write_bytes(b"broken")
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    assert main(["certify", *map(str, runs), *words, "--on", "ray"]) == 2
    shown = capsys.readouterr().out
    assert "2 of 3 evaluations finished" in shown
    assert f"! {runs[2] / 'evaluation_certified'}: " in shown
    for folder in runs[:2]:
        assert_same_evidence(run / "evaluation_alone", folder / "evaluation_certified")
        assert read_summary(folder / "evaluation_certified").run == folder.name
    assert not (runs[2] / "evaluation_certified").exists()
    assert "is kept" not in shown
    assert main(["certify", *map(str, runs[:2]), *words, "--on", "ray", "--keep"]) == 0
    assert capsys.readouterr().out.count("is kept") == 2


@needs_ray
@pytest.mark.slow
def test_costs_and_several_threats_of_several_runs_go_in_turn(
    run: Path, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each run as alone; one that is refused does not stop the others."""
    few = ["--evaluation.count", "6", "--evaluation.batch_size", "2"]
    costs = [*few, "--suite", "fgsm", "--costs", "classes:3,5", "--as", "costs"]
    several = [*few, "--suite", "unforeseen", "--threats", "brightness:0.2", "shift:1", "--as", "several"]
    assert main(["evaluate", str(run), *costs]) == 0
    assert main(["evaluate", str(run), *several]) == 0
    runs = [tmp_path / name for name in ("a", "broken", "b")]
    for folder in runs:
        shutil.copytree(run, folder, ignore=shutil.ignore_patterns("evaluation*", "protocol*"))
    (runs[1] / "model.safetensors").write_bytes(b"broken")
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    for words in (costs, several):
        capsys.readouterr()
        assert main(["evaluate", *map(str, runs), *words, "--on", "ray"]) == 2
        shown = capsys.readouterr().out
        assert "2 of 3 runs finished" in shown
        assert f"! {runs[1]}: " in shown
    made = [path for path in sorted(run.glob("evaluation_*")) if (path / "summary.json").is_file()]
    compared = [path.name for path in made if path.name.startswith(("evaluation_costs", "evaluation_several"))]
    assert len(compared) > 2
    for folder in (runs[0], runs[2]):
        for name in compared:
            assert_same_evidence(run / name, folder / name)
        assert (folder / "protocol_several.json").is_file()
        costs_of = [one / "evaluation_costs" / "costs.parquet" for one in (run, folder)]
        assert costs_of[0].read_bytes() == costs_of[1].read_bytes()


def test_a_cluster_that_does_not_answer_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", os)  # it is not used before something answers
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        on = f"ray://127.0.0.1:{port}"
        assert f"no Ray cluster at {on}: Connection refused" in refusal(
            capsys, "evaluate", str(tmp_path), "--on", on
        )
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        assert "(the variable RAY_ADDRESS): Connection refused" in refusal(
            capsys, "certify", str(tmp_path), "--on", "ray"
        )

    def silent(address: tuple[str, int], timeout: float) -> None:
        assert address == ("node", 10001), "the usual port of a client"
        raise TimeoutError("timed out")

    monkeypatch.setattr("robustly.ray_connection.socket.create_connection", silent)
    sentence = refusal(capsys, "evaluate", str(tmp_path), "--on", "ray://node")
    assert "no Ray cluster at ray://node: no answer within 10 s" in sentence


@contextmanager
def service(answer: bytes) -> Iterator[int]:
    """Port of a service other than Ray: it answers each connection with the same bytes, and then with none."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        open_ones = []

        def serve() -> None:
            with suppress(OSError):
                while True:
                    open_ones.append(listening.accept()[0])
                    open_ones[-1].sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1]
        for one in open_ones:
            one.close()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "no answer within 0 s"),
        (b"HTTP", "no answer within 0 s"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "another service answers there"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "another service answers there"),
        (bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]), "a service answers there, but this machine cannot join within 0 s"),
    ],
)
@pytest.mark.parametrize("by", ["variable", "address"])
def test_another_service_is_one_sentence_within_seconds(
    answer: bytes,
    words: str,
    by: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    never = threading.Event()
    hanging = SimpleNamespace(init=lambda **settings: never.wait(), shutdown=never.set)
    monkeypatch.setitem(sys.modules, "ray", hanging)
    monkeypatch.setattr(ray_connection, "PATIENCE", 0.2)
    monkeypatch.setattr(ray_connection, "JOIN", 0.2)
    with service(answer) as port:
        address = f"ray://127.0.0.1:{port}"
        if by == "variable":
            monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
            address = "ray"
        began = time.monotonic()
        with pytest.raises(ray_connection.ClusterError) as refused, ray_connection.connected(address, "--on"):
            pass
        assert time.monotonic() - began < 5
    assert str(refused.value).startswith("no Ray cluster at ")
    assert str(refused.value).endswith(words)
    assert ("(the variable RAY_ADDRESS)" in str(refused.value)) == (by == "variable")
    never.set()


@pytest.mark.parametrize("aborted", [1, 2, 3])
def test_a_connection_that_the_cluster_aborts_is_tried_again(aborted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its proxy does so on a loaded machine, where the process of a client begins too slowly."""
    calls: list[str] = []

    def init(**settings: object) -> None:
        calls.append("init")
        if calls.count("init") <= aborted:
            raise ConnectionAbortedError("Initialization failure from server:\nserver startup failed")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init, shutdown=lambda: calls.append("shutdown")))
    monkeypatch.setattr(ray_connection, "PAUSE", 0.0)
    monkeypatch.setattr(ray_connection, "_check_answers", lambda address, given: None)
    if aborted < ray_connection.ATTEMPTS:
        with ray_connection.connected("ray://127.0.0.1:1", "--on"):
            assert calls == ["init", "shutdown"] * aborted + ["init"]
        return
    sentence = "no Ray cluster at ray://127.0.0.1:1: Initialization failure from server: server startup failed"
    with (
        pytest.raises(ray_connection.ClusterError, match=sentence),
        ray_connection.connected("ray://127.0.0.1:1", "--on"),
    ):
        pass
    assert calls.count("init") == ray_connection.ATTEMPTS


def test_other_errors_of_a_connection_are_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    def init(**settings: object) -> None:
        calls.append(settings)
        raise RuntimeError("Version mismatch")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init, shutdown=lambda: None))
    monkeypatch.setattr(ray_connection, "_check_answers", lambda address, given: None)
    with pytest.raises(ray_connection.ClusterError), ray_connection.connected("ray://127.0.0.1:1", "--on"):
        pass
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--on", "spark"], "--on takes ray or ray://HOST:PORT, got 'spark'"),
        (["--on", "ray", "--runtime.processes", "2"], "leave out --runtime.processes"),
        (["--on", "ray://:1"], "ray://HOST:PORT or HOST:PORT, got ray://:1"),
        (["--on", "ray://http://a:1"], "ray://HOST:PORT or HOST:PORT, got ray://http://a:1"),
        (["--on", "ray://a:b"], "ray://HOST:PORT or HOST:PORT, got ray://a:b"),
        (["more"], "2 runs at once need a Ray cluster: --on ray"),
        (["none", "--on", "ray", "--costs", "all"], "none is named twice"),
        (["more", "--on", "ray", "--suite", "tafd_v10", "--costs", "all"], "tafd_v10 has several"),
        (["more", "--on", "ray", "--dry-run"], "--dry-run is for suites of several threats"),
    ],
)
def test_words_that_do_not_go_together_are_refused(
    words: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "ray", os)
    monkeypatch.chdir(tmp_path)
    assert expected in refusal(capsys, "evaluate", "none", *words)


def test_without_ray_a_sentence_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for command in ("evaluate", "certify"):
        assert "pip install 'robustly[ray]'" in refusal(capsys, command, "none", "--on", "ray")


def test_processes_of_a_launcher_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "x"}.items():
        monkeypatch.setenv(name, value)
    assert "needs one process, not several of torchrun or SLURM" in refusal(
        capsys, "evaluate", "none", "--on", "ray"
    )
