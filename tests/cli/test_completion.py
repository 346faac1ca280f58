import shutil
import subprocess
from pathlib import Path

import pytest

from robustly.cli import main
from robustly.cli.commands import COMMANDS
from robustly.cli.commands.completion import THREATS, completion_script, completions
from robustly.cli.recipes import recipe_names
from robustly.evaluation import SUITES
from robustly.threats import parse_threat

SHELLS = ("bash", "zsh", "fish")


def completed(script: Path, *words: str) -> list[str]:
    """The words that bash offers for the last one."""
    code = '. "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); _robustly; printf "%s\\n" "${COMPREPLY[@]}"'
    line = ["bash", "-c", code, "_", str(script), "robustly", *words]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes(tmp_path: Path) -> None:
    script = tmp_path / "completion"
    script.write_text(completion_script("bash"))
    assert completed(script, "") == [*COMMANDS, "--help", "--version"]
    assert completed(script, "tra") == ["train"]
    assert completed(script, "train", "mnist5k/fat") == [n for n in recipe_names() if n.startswith("mnist5k/fat")]
    assert completed(script, "train", "mnist5k/fat", "--re") == ["--resume"]
    assert completed(script, "train", "mnist5k/fat", "--training") == ["--training."]
    assert completed(script, "train", "mnist5k/fat", "--threat", "l2") == ["l2:0.5"]
    assert completed(script, "evaluate", "runs/x", "--suite", "") == list(SUITES)
    assert completed(script, "audit", "runs/x", "--rerun", "a") == ["all"]
    assert completed(script, "suites", "aa") == [name for name in SUITES if name.startswith("aa")]
    assert completed(script, "report", "ru") == []  # files follow by default
    assert completed(script, "report", "--training") == []


def test_every_script_has_all_commands_recipes_and_suites(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in SHELLS:
        assert main(["completion", shell]) == 0
        script = capsys.readouterr().out
        for name in (*COMMANDS, *recipe_names(), *SUITES, *THREATS, "--trust-code", "--print-commands"):
            shown = name.removeprefix("--") if shell == "fish" else name
            assert shown in script, (shell, name)
        if shutil.which(shell):
            subprocess.run([shell, "-n"], input=script, text=True, check=True)


def test_descriptions_with_quotes_stay_one_word() -> None:
    line = next(line for line in completion_script("fish").splitlines() if " -a suites " in line)
    assert line.endswith(f"-d '{COMMANDS['suites'].help}'")
    for one in completions().values():
        assert all("\n" not in text for text in (one.help, *one.options.values()))


def test_offered_threats_can_be_parsed() -> None:
    for threat in THREATS:
        assert str(parse_threat(threat)) == threat


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 2
    assert "invalid choice: 'tcsh'" in capsys.readouterr().err
