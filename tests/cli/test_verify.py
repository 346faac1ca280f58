"""`robustly verify`: one instance and its files, lists, continuing, wrong answers, and wrong input."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from cli_tools import refusal
from pretended_answers import pretended
from rich.console import Console

from robustly.certification.answers import Answer
from robustly.certification.instances import Instance, InstancesError
from robustly.cli import main, verifying, verifying_lists, verifying_workers
from robustly.cli.verifying import OneOptions, verify_one
from robustly.cli.verifying_lists import ListOptions, verify_list
from robustly.cli.verifying_results import Result
from robustly.cli.verifying_table import Answers, watched
from robustly.cli.verifying_workers import Job, decided

WORDS = ("unsat", "sat", "timeout", "unknown")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A list of four instances; the answers are the beginnings of their names."""
    (tmp_path / "net.onnx").touch()
    rows = ["onnx,vnnlib,timeout,expected"]
    for number, word in enumerate(WORDS):
        (tmp_path / f"{word}_{number}.vnnlib").touch()
        rows.append(f"net.onnx,{word}_{number}.vnnlib,10,{'unsat' if number != 1 else 'sat'}")
    (tmp_path / "instances.csv").write_text("\n".join(rows))
    return tmp_path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the properties that were decided, in this process."""
    names: list[str] = []

    def here(
        jobs: Sequence[Job], processes: int, decide: verifying_workers.Decide, on_start: Callable[[Job], None]
    ) -> Iterator[tuple[Job, Answer]]:
        for job in jobs:
            on_start(job)
            names.append(job.property_.name)
            yield job, decide(job.network, job.property_, job.timeout)

    monkeypatch.setattr(verifying_lists, "decided", here)
    return names


def options(folder: Path, **changed: object) -> ListOptions:
    plain = {"resume": False, "timeout": None, "only": None, "count": None, "processes": 1, **changed}
    return ListOptions(folder / "instances.csv", folder / "out", **plain)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "out/results.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_list(folder: Path, asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert verify_list(options(folder), 60, pretended) == 0
    assert [row["result"] for row in rows(folder)] == list(WORDS)
    assert rows(folder)[0]["lower_bound"] == "-1.5"
    said = capsys.readouterr().out
    assert "[1/4] unsat" in said
    assert "4 of 4: 1 unsat, 1 sat, 1 timeout, 1 unknown, 0 error; median 0.25 s, sum 1 s" in said
    assert "2 of 4 as expected, none wrong" in said
    assert (folder / "out/counterexamples/net-sat_1.txt").read_text() == "sat\n((X_0 1)\n(Y_0 0))\n"


def test_a_wrong_answer_is_loud(folder: Path, asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    list_ = folder / "instances.csv"
    list_.write_text(list_.read_text().replace("unsat_0.vnnlib,10,unsat", "unsat_0.vnnlib,10,sat"))
    assert verify_list(options(folder), 60, pretended) == 1
    said = capsys.readouterr().out
    assert "WRONG (expected sat): [1/4] unsat" in said
    assert "1 WRONG" in said
    assert verify_list(options(folder, resume=True), 60, pretended) == 1
    assert "WRONG (expected sat)" in capsys.readouterr().out


def test_continuing(folder: Path, asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(network: Path, property_: Path, end: float) -> Answer:
        if property_.name.startswith("timeout"):
            raise KeyboardInterrupt
        return pretended(network, property_, end)

    with pytest.raises(KeyboardInterrupt):
        verify_list(options(folder), 60, interrupted)
    assert len(rows(folder)) == 2
    with pytest.raises(InstancesError, match="has 2 results: add --resume"):
        verify_list(options(folder), 60, pretended)
    asked.clear()
    assert verify_list(options(folder, resume=True), 60, pretended) == 0
    assert asked == ["timeout_2.vnnlib", "unknown_3.vnnlib"]
    assert len(rows(folder)) == 4
    asked.clear()
    verify_list(options(folder, resume=True, timeout=20.0), 60, pretended)
    assert asked == ["timeout_2.vnnlib", "unknown_3.vnnlib"]  # more time may change these
    assert "2 of 4 answers are there already" in capsys.readouterr().out


def test_errors_are_tried_again(folder: Path, asked: list[str]) -> None:
    verify_list(options(folder, count=1), 60, lambda *_: Answer("error", "no operator"))
    verify_list(options(folder, count=1, resume=True), 60, pretended)
    assert [row["result"] for row in rows(folder)] == ["unsat"]


def test_a_part_of_a_list(folder: Path, asked: list[str]) -> None:
    verify_list(options(folder, only="sat_"), 60, pretended)
    verify_list(options(folder, only="un", count=2, resume=True), 60, pretended)
    assert asked == ["unsat_0.vnnlib", "sat_1.vnnlib", "unknown_3.vnnlib"]
    with pytest.raises(InstancesError, match=r"of the 4 in .* has the text 'acas'"):
        verify_list(options(folder, only="acas", resume=True), 60, pretended)


def test_missing_files_are_named_at_once(folder: Path, asked: list[str]) -> None:
    (folder / "net.onnx").unlink()
    with pytest.raises(InstancesError, match=r"missing files .*: net\.onnx; names are relative"):
        verify_list(options(folder), 60, pretended)
    assert not (folder / "out").exists()


def test_a_damaged_results_file(folder: Path, asked: list[str]) -> None:
    (folder / "out").mkdir()
    (folder / "out/results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InstancesError, match="is not a table of results"):
        verify_list(options(folder, resume=True), 60, pretended)


def test_live_table() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=12)
    instances = [Instance("onnx/net.onnx.gz", f"p_{number}.vnnlib", None, None, 1.0, "sat") for number in range(9)]
    with watched(console, 9, []) as answers:
        for one in instances[:8]:
            answers.started(one)
            answers.finished(Result.of(one, 1.0, Answer("sat", seconds=1.0, stage="attack")))
        answers.started(instances[8])
        plain = Console(file=io.StringIO(), width=100, height=12)
        plain.print(answers.table())
        lines = plain.file.getvalue().splitlines()
    assert len(lines) <= 11
    assert any("p_7" in line and "sat" in line and "attack" in line for line in lines)
    assert any("p_8" in line and "..." in line for line in lines)
    assert not any("p_1" in line for line in lines)
    assert "8 of 9" in console.file.getvalue()


def test_names_in_lists_cannot_control_the_terminal() -> None:
    console = Console(file=io.StringIO())
    answers = Answers(console, 1, [])
    one = Instance("a\x1b[2J.onnx", "[bold]p.vnnlib", None, None, 1.0)
    answers.finished(Result.of(one, 1.0, Answer("unknown", "why\x1b[2J")))
    assert "\x1b" not in console.file.getvalue()
    assert "[bold]p" in console.file.getvalue()


def test_counterexamples_of_files_with_one_name(folder: Path, asked: list[str]) -> None:
    for name in ("one", "two"):
        (folder / name).mkdir()
        (folder / name / "net.onnx").touch()
    rows = ["one/net.onnx,sat_1.vnnlib,1", "two/net.onnx,sat_1.vnnlib,1", f"{folder}/net.onnx,unsat_0.vnnlib,1"]
    (folder / "instances.csv").write_text("\r\n\r\n".join(rows))
    verify_list(options(folder), 60, pretended)
    names = sorted(file.name for file in (folder / "out/counterexamples").iterdir())
    assert names == ["one-net-sat_1.txt", "two-net-sat_1.txt"]


@pytest.mark.slow
def test_processes_that_die_or_do_not_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying_workers, "GRACE", 0.5)
    names = ["killed_0", "slow_1", "fault_2", "unsat_3"]
    jobs = [Job(number, tmp_path, tmp_path / name, 0.5) for number, name in enumerate(names)]
    started: list[Job] = []
    found = {job.number: one for job, one in decided(jobs, 1, pretended, started.append)}
    assert [found[number].word for number in range(4)] == ["unknown", "timeout", "error", "unsat"]
    assert "probably for lack of memory" in found[0].reason
    assert "was killed" in found[1].reason
    assert "a fault of robustly: KeyError" in found[2].reason
    assert started == jobs


def test_files_of_one_instance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verifying, "decide", pretended)
    net = tmp_path / "net.onnx"
    net.touch()

    def one(word: str) -> int:
        (tmp_path / f"{word}_.vnnlib").touch()
        return verify_one(
            OneOptions(net, tmp_path / f"{word}_.vnnlib", 5.0, tmp_path / "w/witness.txt", tmp_path / "result"), 0.0
        )

    assert one("sat") == 0
    assert (tmp_path / "result").read_text() == "sat\n((X_0 1)\n(Y_0 0))\n"
    assert (tmp_path / "w/witness.txt").read_text() == "((X_0 1)\n(Y_0 0))\n"
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "sat"
    assert said[2:] == ["((X_0 1)", "(Y_0 0))"]
    (tmp_path / "w/witness.txt").unlink()
    assert one("unsat") == 0
    assert (tmp_path / "result").read_text() == "unsat\n"
    assert not (tmp_path / "w/witness.txt").exists()
    assert "the property holds: split, 3 domains, 0.25 s" in capsys.readouterr().out
    with pytest.raises(ValueError):
        one("error")
    assert (tmp_path / "result").read_text() == "error\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a network and a property"),
        (["a.onnx"], "name a network and a property"),
        (["a.onnx", "p.vnnlib", "--resume"], "--resume needs --instances"),
        (["a.onnx", "p.vnnlib", "--timeout", "0"], "--timeout must be a positive number"),
        (["a.onnx", "p.vnnlib", "--timeout", "nan"], "--timeout must be a positive number"),
        (["a.onnx", "--instances", "l.csv"], "MODEL.onnx does not go with --instances"),
        (["--instances", "l.csv", "--witness", "w"], "--witness does not go with --instances"),
        (["--instances", "l.csv", "--count", "0"], "--count must be at least 1, got 0"),
        (["--instances", "l.csv", "--processes", "-1"], "--processes must be at least 1"),
        (["none.onnx", "none.vnnlib"], "none.onnx does not exist"),
        (["l.csv"], "robustly verify --instances l.csv"),
        (["none.onnx", "none.vnnlib", "--result", "."], ". is a folder: name a file to write"),
        (["--instances", "."], ". is a folder: name the list in it, such as instances.csv"),
        (["--instances", "none.csv"], "No such file or directory"),
    ],
)
def test_refusals(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refusal(capsys, "verify", *words)


def test_files_in_the_wrong_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "net.onnx.gz", tmp_path / "p.vnnlib"]
    for file in files:
        file.touch()
    right, wrong = (" ".join(map(str, some)) for some in (files, files[::-1]))
    assert f"the network stands before the property: robustly verify {right}" in refusal(
        capsys, "verify", *wrong.split(), "--result", str(tmp_path / "result")
    )
    assert (tmp_path / "result").read_text() == "error\n"


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["verify", "--help"])
    assert "--instances" in capsys.readouterr().out
