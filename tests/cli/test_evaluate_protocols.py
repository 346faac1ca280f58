"""Suites of several threats as users run them: tables, file, page, audit, continuation, and refusals."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli_tools import refusal

from robustly.api.gate import Limits
from robustly.api.gate_protocol import _is_strong, gate_protocol
from robustly.cli import evaluate as evaluate_module
from robustly.cli import main
from robustly.cli.audit_protocol import _absent, _threats_problem, protocol_checks
from robustly.cli.protocol_choice import untrained
from robustly.data import DataConfig, load_splits, make_planes
from robustly.evaluation.suites.unforeseen import usual_threats
from robustly.evidence import read_evidence, read_summary
from robustly.evidence.protocol_result import ProtocolResult, protocol_file, read_protocol
from robustly.experiments.class_planes import planes_problem
from robustly.experiments.configuration import build_config
from robustly.experiments.run_folder import open_run
from robustly.threats import parse_threat
from robustly.threats.planes import read_planes

SMALL = [
    "--model.width", "0.25", "--training.epochs", "1", "--training.epsilon_ramp", "0", "--method.inner.steps", "1",
    "--training.validation_steps", "1",
]  # fmt: skip
FEW = ["--evaluation.batch_size", "4", "--evaluation.count", "4"]
THREE = ["--threats", "brightness:0.2", "l2:0.5", "shift:1"]
NAMES = ("linf", "brightness", "l2", "shift")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on grey digits that was trained against linf:0.1."""
    folder = tmp_path_factory.mktemp("protocols") / "digits"
    data = ["--data.image_size", "16", "--data.train_limit", "200", "--data.validation", "20", "--data.test", "20"]
    assert main(["train", "mnist5k/pgd_at", *SMALL, *data, "--threat", "linf:0.1", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on colour images whose class is their brightest channel."""
    folder = tmp_path_factory.mktemp("protocols")
    draws = np.random.default_rng(0)
    labels = np.arange(90) % 3
    images = draws.integers(40, 160, (90, 16, 16, 3))
    images[np.arange(90), :, :, labels] += 60
    np.savez(
        folder / "colours.npz", images=images.astype(np.uint8), labels=labels, classes=np.array(["r", "g", "b"])
    )
    data = ["--data.source", str(folder / "colours.npz"), "--data.validation", "12", "--data.test", "12"]
    data += ["--data.train_limit", "null"]
    words = ["train", "mnist5k/pgd_at", *SMALL, *data, "--threat", "linf:0.01", "--out", str(folder / "run")]
    assert main(words) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def compared(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits' run, evaluated by `unforeseen` under three threats, with an interruption in the third."""
    run = Path(shutil.copytree(digits, tmp_path_factory.mktemp("compared") / "run"))
    words = ["evaluate", str(run), "--suite", "unforeseen", *THREE, *FEW]
    started: list[str] = []
    evaluated = evaluate_module._evaluated

    def stopped(config, *rest):
        if len(started) == 2:
            raise KeyboardInterrupt
        started.append(str(config.threat))
        return evaluated(config, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate_module, "_evaluated", stopped)
        assert main(words) == 130
    assert started == ["linf:0.1", "brightness:0.2"], "the threat of the training comes first"
    assert not protocol_file(run, "unforeseen").exists()
    with pytest.MonkeyPatch.context() as patch:
        finished = [(run / f"evaluation_unforeseen_{name}" / "summary.json").read_bytes() for name in NAMES[:2]]
        patch.setattr(evaluate_module, "_evaluated", evaluated)
        assert main(words) == 0, "the same command goes on"
        after = [(run / f"evaluation_unforeseen_{name}" / "summary.json").read_bytes() for name in NAMES[:2]]
    assert after == finished
    return run


@pytest.mark.slow
def test_unforeseen_threats_are_compared_with_those_of_the_training(
    compared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stated = read_protocol(protocol_file(compared, "unforeseen"))
    assert [one.threat for one in stated.columns] == ["linf:0.1", *THREE[1:]]
    assert [one.role for one in stated.columns] == ["trained", *["tested"] * 3]
    held = np.stack([~read_evidence(compared / one.evaluation).table.worst_case.broken for one in stated.columns])
    assert stated.union.hits == held.all(0).sum()
    assert [one.robust.hits for one in stated.columns] == held.sum(1).tolist()
    for one, rows in zip(stated.tested, held[1:], strict=True):
        assert one.gap is not None
        assert one.gap.value == pytest.approx((held[0].sum() - rows.sum()) / 4)
    assert stated.mean.accuracy == pytest.approx(held[1:].mean())
    assert main(["audit", str(compared), "--as", "unforeseen"]) == 0
    assert "audit passed: 4 evaluations of unforeseen" in capsys.readouterr().out

    # the page stands although the run has no other evaluation
    assert main(["report", str(compared)]) == 0
    page = (compared / "report.html").read_text()
    assert "Suites of several threats" in page
    assert "L∞ 0.1 (trained on)" in page
    assert "--as unforeseen" in page
    assert "All at once" not in page, "the threats of the suite count in its own union alone"
    assert main(["report", str(compared), "--as", "unforeseen"]) == 0


@pytest.mark.slow
def test_results_of_digits_without_mnist_c_are_those_of_an_earlier_version(compared: Path) -> None:
    config = open_run(compared)
    config = replace(config, data=replace(config.data, image_size=None))  # 28 x 28
    stated = read_protocol(protocol_file(compared, "unforeseen"))
    every = [parse_threat(text) for text in usual_threats((1, 28, 28))]
    tested, left_out = untrained(every, ["linf:0.1"], (1, 28, 28))

    def with_threats(texts: list[str]) -> ProtocolResult:
        column = stated.tested[0]
        columns = [replace(column, evaluation=f"evaluation_{n}", threat=text) for n, text in enumerate(texts)]
        terms = replace(stated.terms, chosen=False, left_out=left_out)
        return replace(stated, terms=terms, columns=(stated.columns[0], *columns), worst=texts[0])

    whole = [str(threat) for threat in tested]
    assert whole[-1] == "mnist_c:1"
    assert (_threats_problem(config, with_threats(whole)), _absent(config, with_threats(whole))) == ("", ())
    earlier = with_threats(whole[:-1])
    assert (_threats_problem(config, earlier), _absent(config, earlier)) == ("", ("mnist_c:1",))
    cut = with_threats(whole[:-2])
    assert (_threats_problem(config, cut), _absent(config, cut)) == ("corruption:3, mnist_c:1 missing", ())


@pytest.mark.slow
def test_what_is_there_is_kept_and_never_mixed(compared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", str(compared), "--suite", "unforeseen", *THREE, *FEW]
    assert "protocol_unforeseen.json exists already" in refusal(capsys, *words)
    assert main([*words, "--keep"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("is kept") == 4
    assert "linf:0.1 (trained on)" in shown
    assert "below the trained" in shown
    assert "has other seed" in refusal(capsys, *words, "--keep", "--seed", "5")
    assert "has other images" in refusal(capsys, *words[:-1], "3", "--keep")
    before = sorted(compared.iterdir())
    assert main([*words, "--as", "again", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "nothing was evaluated" in shown
    assert "trained on: linf:0.1, which the others are compared with" in shown
    whole = ["evaluate", str(compared), "--suite", "unforeseen", "--trained-on", "linf:0.3", *FEW, "--dry-run"]
    assert main([*whole, "--as", "whole"]) == 0
    shown = capsys.readouterr().out
    assert "trained on: linf:0.3, which the others are compared with" in shown
    assert "left out: linf:0.3" not in shown
    assert main([*whole[:4], *FEW, "--dry-run", "--as", "whole"]) == 0
    assert "left out: linf:0.3: the network was trained on threats of this kind" in capsys.readouterr().out
    assert sorted(compared.iterdir()) == before


@pytest.mark.slow
def test_gates_decide_on_all_threats_at_once(
    compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(compared, tmp_path / "run"))
    stated = read_protocol(protocol_file(run, "unforeseen"))
    gate = ["gate", str(run), "--as", "unforeseen", "--allow-masking"]
    file = tmp_path / "gate.json"
    assert main([*gate, "--robust", "0", "--suite", "any", "--mean", "0", "--worst", "0", "--json", str(file)]) == 0
    told = json.loads(file.read_text())
    values = {one["name"].partition(",")[0]: one["value"] for one in told["conditions"]}
    assert values["robust accuracy under all threats"] == stated.union.share
    assert values["mean of those not trained on"] == pytest.approx(stated.mean.accuracy)
    assert values["accuracy under the worst threat"] == min(one.robust.share for one in stated.tested)
    assert told["threats"] == ["linf:0.1", *THREE[1:]]
    assert main([*gate, "--robust", "0"]) == 1, "the threats were chosen"
    assert "FAILED threats: chosen by the user" in capsys.readouterr().out
    assert main([*gate, "--suite", "any", "--robust", f"{stated.union.share + 0.01}"]) == 1
    assert main([*gate, "--suite", "any", "--mean", "0", "--confident", "--audit"]) == 0
    assert "audit: every evaluation" in capsys.readouterr().out
    for words, said in (
        (["--certified", "0.1"], "unforeseen has no certificates"),
        (["--under", "linf:0.1", "--clean", "0"], "unforeseen has several threats: leave out --under"),
        (["--suite", "strong", "--clean", "0"], "--suite strong is not comparable with unforeseen"),
    ):
        assert said in refusal(capsys, *gate, *words)
    content = json.loads(protocol_file(run, "unforeseen").read_text())
    content["union"]["robust"] = (content["union"]["robust"] + 1) % 5
    protocol_file(run, "unforeseen").write_text(json.dumps(content))
    assert main([*gate, "--suite", "any", "--robust", "0"]) == 1
    assert (
        "FAILED evidence: protocol_unforeseen.json and its evaluations disagree on union" in capsys.readouterr().out
    )


@pytest.mark.slow
def test_comparisons_and_dossiers_have_the_numbers_over_all_threats(
    compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [Path(shutil.copytree(compared, tmp_path / name)) for name in ("one", "two")]
    stated = read_protocol(protocol_file(runs[0], "unforeseen"))
    assert main(["compare", *map(str, runs)]) == 0, (
        "without other evaluations there is the table of the suite alone"
    )
    told = capsys.readouterr().out
    assert "unforeseen; accuracy in %" in told
    assert "union less one" in told
    assert f"{100 * stated.union.share:.1f}" in told
    assert "would be empty" in refusal(capsys, "compare", *map(str, runs), "--csv", str(tmp_path / "a.csv"))
    assert "is not evaluated yet" not in told
    assert "has several" in refusal(capsys, "dossier", str(runs[0]), "--as", "unforeseen")
    for run in runs:
        assert main(["evaluate", str(run), "--suite", "fgsm", "--evaluation.curve", "off", *FEW]) == 0
    assert main(["dossier", str(runs[0]), "--out", str(tmp_path / "d.md")]) == 0
    document = (tmp_path / "d.md").read_text()
    assert "Other threats" in document
    assert "All threats at once" in document
    assert "Tested threats are linf:0.1, brightness:0.2, l2:0.5, shift:1." in document
    capsys.readouterr()
    files = [tmp_path / "t.csv", tmp_path / "t.html"]
    assert main(["compare", *map(str, runs), "--csv", str(files[0]), "--html", str(files[1])]) == 0
    told = capsys.readouterr().out
    assert "table of suites: " in told
    assert "accuracy in % by threat" not in told, "evaluations of the suite are not those of several threats"
    lines = (tmp_path / "t_suites.csv").read_text().splitlines()
    assert lines[0] == "suite,run,number,threat,accuracy,low,high"
    assert sum(line.startswith("unforeseen,two,union less one,,0.00,") for line in lines) == 1
    assert "Suites of several threats" in files[1].read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda content: content["union"].update(robust=4), "disagree on union"),
        (lambda content: content["columns"][1].update(role="trained"), "neither of the run nor named by its user"),
        (lambda content: content["terms"].update(chosen=False), "missing"),
        (lambda content: content["terms"].update(notes=[]), "wrong: notes"),
        (lambda content: content["terms"].update(words="Certified."), "wrong: words"),
        (lambda content: content["terms"].update(chosen=False, left_out=["l1:10: why"]), "other threats left out"),
        (lambda content: content["terms"].update(left_out=["l1:10: why"]), "left out of those that the user chose"),
        (lambda content: content["terms"].update(stated=["rotation:30"]), "named by the user and not evaluated"),
        (lambda content: content["terms"].update(protocol="tafd_v10"), "cannot be chosen"),
        (lambda content: content["terms"].update(protocol="best"), "there is no protocol 'best'"),
        (
            lambda content: content["columns"][0].update(suite="pgd_10"),
            "evaluation_unforeseen_linf is by the suite",
        ),
    ],
    ids=[
        "union",
        "role",
        "chosen",
        "notes",
        "words",
        "left_out",
        "left_chosen",
        "stated",
        "protocol",
        "unknown",
        "weak",
    ],
)
def test_a_forged_file_fails_the_checks(compared: Path, tmp_path: Path, change, problem: str) -> None:
    run = Path(shutil.copytree(compared, tmp_path / "run"))
    file = protocol_file(run, "unforeseen")
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    problems = [check.problem for check in protocol_checks(run, read_protocol(file)) if not check.passed]
    assert any(problem in one for one in problems), problems


@pytest.mark.slow
def test_a_gate_refuses_threats_and_suites_that_are_not_those_of_the_protocol(
    compared: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(compared, tmp_path / "run"))
    file = protocol_file(run, "unforeseen")
    content = json.loads(file.read_text())
    content["terms"].update(chosen=False)
    file.write_text(json.dumps(content))
    found = {one.name: one for one in gate_protocol(run, "unforeseen", Limits(clean=0.0)).conditions}
    assert not found["threats"].passed
    assert found["threats"].words.startswith("not those of unforeseen: brightness:0.2")
    summary = read_summary(run / "evaluation_unforeseen_linf")
    assert _is_strong(summary)
    for suite, composed in (("pgd_10", None), ("standard", {"one": {"attack": "fgsm"}})):
        weak = replace(summary, suite=replace(summary.suite, name=suite), composed=composed)
        assert not _is_strong(weak), suite


@pytest.mark.slow
def test_a_masked_ball_is_not_the_ball_of_the_suite(compared: Path) -> None:
    config = open_run(compared)
    stated = read_protocol(protocol_file(compared, "unforeseen"))
    every = usual_threats((1, 16, 16))
    tested, left_out = untrained([parse_threat(text) for text in every], ["linf:0.1"], (1, 16, 16))
    for mask, problem in (("", ""), ("@3f2a9c81d0e4", "l2:2 missing; l2:2@3f2a9c81d0e4 added")):
        texts = [f"{threat}{mask}" if str(threat) == "l2:2" else str(threat) for threat in tested]
        column = stated.tested[0]
        columns = [replace(column, evaluation=f"evaluation_{n}", threat=text) for n, text in enumerate(texts)]
        terms = replace(stated.terms, chosen=False, left_out=left_out)
        result = replace(stated, terms=terms, columns=(stated.columns[0], *columns), worst=texts[0])
        assert _threats_problem(config, result) == problem


def test_directions_of_other_data_are_told_from_those_of_the_run(tmp_path: Path) -> None:
    config = build_config({"data": {"source": "mnist5k", "image_size": 6, "train_limit": 200, "validation": 20}})
    train = load_splits(config.data).train
    for count, per_class in ((4, True), (3, False)):
        file = make_planes(train, tmp_path / "own.safetensors", directions=count, per_class=per_class)
        own = read_planes(file).values.numpy()
        assert planes_problem(config, own) == ""
        rounded = own + 1e-6 * np.sin(np.arange(own.size, dtype=np.float32)).reshape(own.shape)
        assert planes_problem(config, rounded) == ""
        turned = own.copy()
        turned[0, 1:] = np.roll(own[0, 1:], 1, axis=1)  # orthonormal, and other pixels
        assert planes_problem(config, turned) == f"1 of {len(own)} planes are others"
        moved = own.copy()
        moved[:, 0] += 0.1
        assert planes_problem(config, moved) == f"{len(own)} of {len(own)} planes are others"
        assert "shape" in planes_problem(config, own[:, :, 1:])
    assert "fewer than 30" in planes_problem(config, np.zeros((10, 31, 36), np.float32))


@pytest.mark.slow
def test_an_evaluation_under_the_threat_of_the_training_is_used_again(
    digits: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = shutil.copytree(digits, tmp_path / "run")
    assert main(["evaluate", str(run), "--suite", "fgsm", "--evaluation.curve", "off", *FEW, "--as", "weak"]) == 0
    assert main(["evaluate", str(run), "--suite", "standard", "--evaluation.curve", "off", *FEW]) == 0
    before = (run / "evaluation" / "summary.json").read_bytes()
    words = ["evaluate", str(run), "--suite", "unforeseen", "--threats", "brightness:0.2", *FEW]
    assert main(words) == 0
    assert "evaluation is used" in capsys.readouterr().out
    stated = read_protocol(protocol_file(run, "unforeseen"))
    assert [one.evaluation for one in stated.columns] == ["evaluation", "evaluation_unforeseen_brightness"]
    assert stated.columns[0].suite == "standard"
    assert main([*words, "--overwrite"]) == 0
    assert (run / "evaluation" / "summary.json").read_bytes() == before
    assert main(["audit", str(run), "--as", "unforeseen", "--share", "0.9"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tafd_v10", "tafd_v20"])
def test_the_evaluation_of_tafd_has_its_mean_and_the_union(
    colours: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    run = shutil.copytree(colours, tmp_path / "run")
    assert main(["evaluate", str(run), "--suite", name, *FEW]) == 0
    shown = capsys.readouterr().out
    assert "mean with clean" in shown
    assert "union: robust to all" in shown
    assert "TaFD trains with the same attacks" in shown
    assert "differentiable surrogate (BPDA)" in shown
    stated = read_protocol(protocol_file(run, name))
    assert len(stated.columns) == {"tafd_v10": 7, "tafd_v20": 5}[name]
    shares = [stated.clean.share, *(one.robust.share for one in stated.columns)]
    assert stated.mean.accuracy == pytest.approx(np.mean(shares))
    assert all(one.suite == name and len(one.attacks) == 1 for one in stated.columns)
    summary = read_summary(run / stated.columns[2].evaluation)
    assert summary.threat.text == "ace:16"
    assert summary.composed is None
    assert main(["audit", str(run), "--as", name, "--share", "0.9"]) == 0
    if name == "tafd_v20":
        assert (run / "planes.safetensors").is_file()
        planes = stated.columns[3]
        assert planes.threat.startswith("subspace:2@")
        checks = [check.name for check in protocol_checks(run, stated)]
        assert f"the directions of {planes.threat} are the principal ones of the training images" in checks
        assert "principal directions of the class" in planes.words


@pytest.mark.slow
def test_wrong_words_are_refused_in_one_sentence(
    digits: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = str(digits)
    said = refusal(capsys, "evaluate", run, "--suite", "tafd_v10", *FEW)
    assert "ace is defined for images" in said
    assert "grey images have no colour" in said
    assert "--threats linf:8/255 l2:0.5 lightness:16" in said
    assert not list(digits.glob("evaluation*"))
    assert "--trained-on is for the suite unforeseen" in refusal(
        capsys, "evaluate", run, "--suite", "tafd_v10", "--trained-on", "l2:1"
    )
    assert "leave out --threat" in refusal(
        capsys, "evaluate", run, "--suite", "tafd_v10", "--threat", "rotation:3", *FEW
    )
    assert "--dry-run is for suites of several threats" in refusal(capsys, "evaluate", run, "--dry-run")
    assert "hue is defined for images" in refusal(
        capsys, "evaluate", run, "--suite", "unforeseen", "--threats", "hue:1", *FEW
    )
    assert "no threat that the network was not trained on" in refusal(
        capsys, "evaluate", run, "--suite", "unforeseen", "--threats", "linf:0.1", *FEW
    )

    # a model that was trained elsewhere: its training has to be named
    weights = shutil.copy(digits / "model.safetensors", tmp_path / "net.safetensors")
    bare = [
        "evaluate",
        str(tmp_path / "bare"),
        "--weights",
        str(weights),
        "--data",
        "mnist5k",
        "--data.image_size",
        "16",
    ]
    bare += ["--model.name", "small_cnn", "--model.width", "0.25", "--data.test", "20", *FEW]
    said = refusal(capsys, *bare, "--suite", "unforeseen")
    assert "--trained-on linf:8/255" in said
    assert not (tmp_path / "bare").exists()
    assert "must have the form KIND:SIZE" in refusal(
        capsys, *bare, "--suite", "unforeseen", "--trained-on", "robust"
    )
    assert main([*bare, "--suite", "unforeseen", "--trained-on", "none", "--threats", "brightness:0.1"]) == 0
    stated = read_protocol(protocol_file(tmp_path / "bare", "unforeseen"))
    assert stated.trained is None
    assert [one.threat for one in stated.columns] == ["brightness:0.1"]
    assert main(["audit", str(tmp_path / "bare"), "--as", "unforeseen", "--share", "0.9"]) == 0


@pytest.mark.slow
def test_directions_of_a_model_trained_elsewhere_have_to_be_named(
    colours: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = str(colours.parent / "colours.npz")
    weights = shutil.copy(colours / "model.safetensors", tmp_path / "net.safetensors")
    bare = ["evaluate", str(tmp_path / "bare"), "--weights", str(weights), "--data", source, *FEW]
    bare += ["--model.name", "small_cnn", "--model.width", "0.25", "--suite", "tafd_v20"]
    said = refusal(capsys, *bare)
    assert "make_planes" in said
    assert "--planes FILE" in said
    assert "not a file of planes" in refusal(capsys, *bare, "--planes", source)
    train = load_splits(DataConfig(source=source, validation=12, test=12)).train
    file = make_planes(train, tmp_path / "planes.safetensors", directions=3, per_class=True)
    assert main([*bare, "--planes", str(file), "--dry-run"]) == 0
    assert "subspace:2@" in capsys.readouterr().out
    other = make_planes(train.select(train.labels < 2), tmp_path / "other.safetensors", directions=2)
    assert "made from other training data" in refusal(
        capsys, "evaluate", str(colours), "--suite", "tafd_v20", *FEW, "--planes", str(other)
    )
