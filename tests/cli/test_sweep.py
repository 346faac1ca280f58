"""`robustly sweep` as a user types it: real little runs, killed, failing, resumed."""

import fcntl
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from shlex import quote
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from robustly.cli import main
from robustly.cli.sweep import worker_places
from robustly.cli.sweep_run import check_room
from threads import one_thread  # noqa: F401 (used by every test here)

SMALL = [
    "--threat", "linf:0.1", "--data.train_limit", "128", "--data.image_size", "16", "--data.validation", "60",
    "--data.test", "60", "--model.width", "0.25", "--training.batch_size", "32", "--training.validation_steps", "2",
    "--training.epsilon_ramp", "1", "--runtime.device", "cpu", "--evaluation.count", "20",
    "--evaluation.curve_count", "10",
]  # fmt: skip
ONE_EPOCH = [*SMALL, "--training.epochs", "1"]
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The message of a refused sweep, which has written nothing."""
    before = sorted(Path().rglob("*"))
    assert main(["sweep", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("robustly: ")
    assert said.count("\n") == 1
    assert sorted(Path().rglob("*")) == before
    return said


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "robustly", *words]


def children_of(pid: int) -> list[int]:
    """Processes that a process has started and that still run."""
    lines = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [line.split() for line in lines.splitlines()]
    return [int(child) for child, parent in pairs if int(parent) == pid]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def started(words: list[str], *, in_background: bool = False) -> subprocess.Popen[str]:
    deaf = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]  # as a shell does for a job started with &
    return subprocess.Popen(
        [*(deaf if in_background else ()), *command("sweep", *words)],
        env=ONE_THREAD,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    for _ in range(1200):
        if file.exists():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError(f"{file} was never written")


@pytest.mark.slow
def test_a_failing_run_stops_no_other_and_finished_ones_stay(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    over = ["--over", "optimizer.learning_rate=1e9,0.004"]
    words = ["sweep", "mnist5k/pgd_at", *over, *ONE_EPOCH, "--out", "s", "--workers", "2"]
    assert main([*words, "--dry-run"]) == 0
    assert "waiting" in capsys.readouterr().out
    assert not Path("s").exists()
    assert main(words) == 2
    said = capsys.readouterr().out
    bad, good = "mnist5k_pgd_at__learning_rate=1e9__seed=0", "mnist5k_pgd_at__learning_rate=0.004__seed=0"
    assert f"! {bad}: training diverged in epoch 1" in said
    assert "1 of 2 runs finished" in said
    assert (here / "s" / good / "model.safetensors").is_file()
    assert "training diverged" in (here / "s" / bad / "output.log").read_text()
    manifest = yaml.safe_load((here / "s/sweep.yaml").read_text())
    assert manifest["over"] == {"optimizer.learning_rate": ["1e9", "0.004"]}

    before = (here / "s" / good / "model.safetensors").stat().st_mtime_ns
    assert main(["sweep", "--resume", "s", "--evaluate"]) == 2  # what was trained is evaluated, nothing more
    said = capsys.readouterr().out
    assert "evaluated robust" in said
    assert "1 of 2 runs to do" in said
    assert (here / "s" / good / "evaluation/summary.json").is_file()
    assert (here / "s" / good / "model.safetensors").stat().st_mtime_ns == before
    assert main([*words, "--dry-run"]) == 0
    assert "finished" in capsys.readouterr().out

    for changed, part in (
        (["--seeds", "0,1", *over, *ONE_EPOCH], "seeds"),
        ([*over, *SMALL], "settings"),
        (ONE_EPOCH, "over"),
    ):
        assert f"has another sweep: its {part} are" in refusal(
            capsys, "mnist5k/pgd_at", *changed, "--out", "s", "--workers", "2"
        )


@pytest.mark.slow
def test_a_killed_sweep_ends_as_unbroken_runs_do(tmp_path: Path) -> None:
    settings = [word if word != "128" else "450" for word in [*SMALL, "--training.epochs", "3"]]
    words = ["mnist5k/pgd_at", "--seeds", "0,1", *settings, "--out", str(tmp_path / "s")]
    first, second = (tmp_path / "s" / f"mnist5k_pgd_at__seed={seed}" for seed in (0, 1))
    process = started(words)
    wait_for(first / "checkpoints/last.pt", process)
    left = children_of(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for child in left:
        os.kill(child, signal.SIGKILL)
    assert left
    assert not (first / "model.safetensors").exists()
    assert [path.name for path in second.iterdir()] == ["config.yaml"]
    again = started(words)
    out, err = again.communicate()
    assert again.returncode == 0, err
    assert "2 of 2 runs finished" in out
    assert main(["train", "mnist5k/pgd_at", *settings, "--out", str(tmp_path / "whole")]) == 0
    assert same(weights(tmp_path / "whole"), weights(first))
    assert not same(weights(first), weights(second))


@pytest.mark.slow
@pytest.mark.parametrize(("sign", "in_background"), [(signal.SIGINT, False), (signal.SIGTERM, True)])
def test_a_stopped_sweep_leaves_no_process_behind(
    sign: signal.Signals, in_background: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "my sweep"
    process = started(
        ["mnist5k/pgd_at", "--seeds", "0,1", *SMALL, "--training.epochs", "900", "--out", str(folder)],
        in_background=in_background,
    )
    wait_for(folder / "mnist5k_pgd_at__seed=0/checkpoints/last.pt", process)
    left = children_of(process.pid)
    process.send_signal(sign)
    out, err = process.communicate()
    assert process.returncode == 128 + sign, err
    assert f"robustly sweep --resume '{folder}'" in out.replace("\n", "")
    assert "Traceback" not in err
    assert left
    assert not set(left) & {int(pid) for pid in subprocess.check_output(["ps", "-eo", "pid="]).split()}
    assert '"stopped"' in (folder / "mnist5k_pgd_at__seed=0/status.json").read_text()


@pytest.mark.slow
def test_a_run_in_whose_folder_another_process_works_is_waited_for(here: Path) -> None:
    words = ["mnist5k/pgd_at", *ONE_EPOCH, "--out", "s"]
    run = here / "s/mnist5k_pgd_at__seed=0"
    assert main(["sweep", *words, "--print-commands"]) == 0
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = started(words)
        for _ in range(1200):
            if (run / "output.log").is_file() and "another process" in (run / "output.log").read_text():
                break
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        assert not (run / "checkpoints").exists()
        fcntl.flock(lock, fcntl.LOCK_UN)
        process.communicate()
    assert process.returncode == 0
    assert (run / "model.safetensors").is_file()


@pytest.mark.slow
def test_printed_commands_carry_out_the_runs_and_change_none_that_is_finished(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    over = ["--over", "optimizer.learning_rate=1e9,0.004"]
    words = ["sweep", "mnist5k/pgd_at", *over, *ONE_EPOCH, "--out", "my sweep", "--evaluate"]
    assert main([*words, "--threads", "1", "--print-commands"]) == 0
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) == 2
    bad, good = (here / "my sweep" / f"mnist5k_pgd_at__learning_rate={rate}__seed=0" for rate in ("1e9", "0.004"))
    assert [path.name for path in good.iterdir()] == ["config.yaml"]

    def carry_out(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["sh", "-c", command], cwd="/", capture_output=True, text=True, check=False)

    failed = carry_out(commands[0])
    assert failed.returncode == 2
    assert "robustly: training diverged" in failed.stderr
    assert not (bad / "evaluation").exists(), "what is not trained is not evaluated"

    process = subprocess.Popen(["sh", "-c", f"exec setsid sh -c {quote(commands[1])}"], stdout=subprocess.DEVNULL)
    try:
        wait_for(good / "checkpoints/last.pt", process)  # type: ignore[arg-type]
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (good / "evaluation/summary.json").exists()
    finished = carry_out(commands[1])
    assert finished.returncode == 0, finished.stderr
    assert (good / "evaluation/summary.json").is_file()
    before = {path: path.read_bytes() for path in good.rglob("*") if path.is_file()}
    assert carry_out(commands[1]).returncode == 0
    assert {path: path.read_bytes() for path in good.rglob("*") if path.is_file()} == before
    assert main([*words, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "diverged" in shown
    assert "finished" in shown
    assert (
        main(["train", "mnist5k/pgd_at", *ONE_EPOCH, "--optimizer.learning_rate", "0.004", "--out", "whole"]) == 0
    )
    assert same(weights(Path("whole")), weights(good))


@pytest.mark.slow
def test_a_child_that_dies_without_a_word_is_reported(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = here / "s/mnist5k_pgd_at__seed=0/checkpoints"
    start = subprocess.Popen

    def dies(_: list[str], **named: Any) -> subprocess.Popen[bytes]:
        return start(["sh", "-c", f"mkdir {checkpoints}; touch {checkpoints}/last.pt; kill -KILL $$"], **named)

    monkeypatch.setattr(subprocess, "Popen", dies)
    assert main(["sweep", "mnist5k/pgd_at", *ONE_EPOCH, "--out", "s"]) == 2
    out = capsys.readouterr().out
    assert "ended by SIGKILL: was there too little memory?" in out
    assert "failed (unfinished)" in out


def test_a_sweep_from_a_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "mine.yaml").write_text("threat: l2:1\nmethod: {inner: {name: pgd, steps: 2}, loss: adversarial}\n")
    content = {
        "recipes": ["mine.yaml"],
        "seeds": [3],
        "over": {"threat": ["l2:1", "l1:5"]},
        "settings": {"training": {"epochs": 1}},
    }
    (here / "small.yaml").write_text(yaml.safe_dump(content))
    assert main(["sweep", "small.yaml", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "runs/small" in said
    assert "mine__threat=l2-1__seed=3" in said
    assert "mine__threat=l1-5__seed=3" in said
    assert "holds a whole sweep" in refusal(capsys, "small.yaml", "--seeds", "1")
    (here / "small.yaml").write_text(yaml.safe_dump(content | {"sedes": 1}))
    assert "unknown key 'sedes'" in refusal(capsys, "small.yaml")


REFUSED = [
    (
        ["mnist5k/pgd_at", "--over", "guide.pretrain=1,2", "--dry-run"],
        "mnist5k_pgd_at__pretrain=1__seed=0: the run has the network 'guide' that the method does not use",
    ),
    ([], "name at least one recipe"),
    (["mnist5k/pgdat"], "did you mean 'mnist5k/pgd_at'"),
    (["mnist5k/pgd_at", "mnist5k/pgd_at"], "once"),
    (["mnist5k/pgd_at", "--over", "threat=linf:0.1,linf:1/10"], "are the same run"),
    (["mnist5k/pgd_at", "--seeds", "0,x"], "--seeds takes whole numbers"),
    (["mnist5k/pgd_at", "--seed", "1"], "--seeds 0,1,2"),
    (["mnist5k/pgd_at", "--workers", "0"], "at least 1"),
    (["mnist5k/pgd_at", "--workers", "two"], "invalid int value"),
    (["mnist5k/pgd_at", "--threads", "0"], "at least 1"),
    (["mnist5k/pgd_at", "--over", "threat"], "KEY=VALUE"),
    (["mnist5k/pgd_at", "--over", "threat=linf:0.1,linf:7"], "threat=linf-7"),
    (["mnist5k/pgd_at", "--over", "method.loss.beat=1,2"], "unknown key"),
    (["mnist5k/pgd_at", "--training.epochs"], "needs a value"),
    (["mnist5k/pgd_at", "--training.epochs", "--data.test", "60"], "needs a value"),
    (["mnist5k/pgd_at", "--data.source", "nowhere"], "nowhere"),
    (["mnist5k/pgd_at", "--model.name", "evil:make"], "evil"),
    (["mnist5k/pgd_at", "--out", "taken"], "has no sweep"),
    (["--resume", "nowhere"], "is not a sweep"),
    (["--resume", "taken"], "has no sweep"),
    (["mnist5k/pgd_at", "--resume", "nowhere"], "--resume continues"),
    (["mnist5k/pgd_at", "--ray"], "--ray"),
    (["mnist5k/pgd_at", "--workers", "2", "--ray", "local"], "give no --workers"),
    (["mnist5k/pgd_at", "--workers", "2", "--print-commands"], "give no --workers"),
]


@pytest.mark.parametrize(("words", "said"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_bad_input_ends_in_one_sentence_before_any_work(
    words: list[str], said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("taken").mkdir()
    Path("taken/thesis.tex").touch()
    assert said in refusal(capsys, *words)


def test_without_ray_a_sentence_says_how_to_get_it(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["sweep", "mnist5k/pgd_at", *ONE_EPOCH, "--ray", "auto"]) == 2
    assert "pip install 'robustly[ray]'" in capsys.readouterr().err


def test_workers_share_out_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [place["CUDA_VISIBLE_DEVICES"] for place in worker_places(3)] == ["0", "1", "0"]
    assert worker_places(1) == [{}]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [place["CUDA_VISIBLE_DEVICES"] for place in worker_places(2)] == ["5", "7"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    assert worker_places(2) == [{}, {}]


def test_a_run_that_no_node_has_room_for_is_refused() -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": 4.0}}, {"Alive": False, "Resources": {"CPU": 64.0}}]
    cluster = SimpleNamespace(nodes=lambda: nodes, cluster_resources=lambda: {"CPU": 4.0, "GPU": 1.0})
    assert check_room(cluster, 4)
    with pytest.raises(ValueError, match=r"no node .*\b8 CPUs"):
        check_room(cluster, 8)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install ray")
def test_a_sweep_on_a_local_ray_cluster(tmp_path: Path) -> None:
    words = [
        "mnist5k/pgd_at",
        "--over",
        "optimizer.learning_rate=0.004,1e9",
        *ONE_EPOCH,
        "--out",
        str(tmp_path / "s"),
    ]
    process = started([*words, "--ray", "local"])
    out, err = process.communicate()
    assert process.returncode == 2, err
    assert "1 of 2 runs finished" in out
    assert "learning_rate=1e9__seed=0: training diverged" in out
    folder = tmp_path / "s/mnist5k_pgd_at__learning_rate=0.004__seed=0"
    assert "robustly train --resume" in (folder / "output.log").read_text()
    whole = tmp_path / "whole"
    assert main(["train", "mnist5k/pgd_at", *ONE_EPOCH, "--out", str(whole)]) == 0
    assert same(weights(whole), weights(folder))
