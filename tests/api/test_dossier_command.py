"""`robustly dossier` on a folder of evidence and on a run with several evaluations."""

from pathlib import Path

import pytest
from small_results import result_of

from robustly.api import Result
from robustly.attacks import ATTACK_KINDS, ATTACKS
from robustly.cli import main
from robustly.cli.dossier import known_attacks
from robustly.threats import parse_threat


@pytest.fixture(scope="module")
def result() -> Result:
    return result_of("single_step")


def test_known_attacks_are_all_of_the_package_with_what_they_are_defined_for() -> None:
    linf, rotation = (
        {one.name: one for one in known_attacks(parse_threat(text))} for text in ("linf:0.1", "rotation:30")
    )
    assert list(linf) == [*ATTACK_KINDS, *ATTACKS]
    assert (linf["pgd"].defined, linf["ddn"].defined, linf["ddn"].needs) == (True, False, "l2")
    assert rotation["apgd"].defined
    assert not rotation["square"].defined
    assert linf["pgd"].settings is None
    assert linf["pgd_20"].settings is not None
    assert linf["pgd_20"].settings["steps"] == 20
    assert all(one.words and "\n" not in one.words for one in linf.values())


def test_a_folder_of_evidence_needs_no_run(
    result: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = result.save(tmp_path / "kept")
    assert main(["dossier", str(folder), "--out", str(tmp_path / "a.md"), "--clean", "0.5"]) == 0
    assert "a.md" in capsys.readouterr().out
    text = (tmp_path / "a.md").read_text().replace("\\", "")
    assert "Least clean accuracy: 50 %: met with 100.0 %" in text
    assert "| fgsm | " not in text, "it was tried"
    assert "| pgd_50 | PGD-50, a preset of PGD | not run |" in text
    assert "| ddn | " in text
    assert 'robustly.read_result("FOLDER").audit(model, data)' in text
    assert main(["dossier", str(folder)]) == 0
    assert (folder / "dossier.html").is_file()


def test_an_evaluation_is_chosen_by_its_label(result: Result, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result.save(run / "evaluation_l2")
    assert main(["dossier", str(run), "--as", "l2"]) == 0
    assert "Robustness dossier: run" in (run / "dossier_l2.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "a.pdf"], "ends in .md or .html, got 'a.pdf'"),
        (["--clean", "85"], "between 0 and 1, such as 0.85, got 85"),
        (["--as", "l2"], "does not exist"),
    ],
)
def test_wrong_input_is_one_sentence(
    result: Result, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = result.save(tmp_path / "kept")
    assert main(["dossier", str(folder), *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
