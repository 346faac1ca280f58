"""Runs that leave a domain out: training, evaluation on sources and target, audit, page, sweep and messages."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_tools import in_process, refusal
from safetensors.torch import load_file

from robustly.cli import main
from robustly.data import DataConfig, load_test
from robustly.evidence import read_summary
from robustly.experiments.run_folder import open_run
from threads import one_thread  # noqa: F401 (used by every test here)

SETTINGS = {
    "data.image_size": "16",
    "data.validation": "10",
    "data.test": "10",
    "model.width": "0.25",
    "training.epochs": "2",
    "training.batch_size": "20",
    "training.validation_steps": "1",
    "threat": "linf:0.1",
    "evaluation.suite": "pgd_10",
    "evaluation.curve": "off",
    "evaluation.batch_size": "20",
}
SMALL = [word for key, value in SETTINGS.items() for word in (f"--{key}", value)]
CHANGES = {"plain": lambda x: x, "inverted": lambda x: 255 - x, "turned": lambda x: np.rot90(x, axes=(1, 2))}


def write_domains(root: Path) -> dict[str, Path]:
    """Real digits, different ones for each domain: as they are, inverted, and turned by 90 degrees."""
    root.mkdir()
    digits = load_test(DataConfig(evaluation_only=True, subset="balanced", test_limit=180))
    images, labels = digits.images[:, 0].numpy(), digits.labels.numpy()
    files = {}
    for number, (name, change) in enumerate(CHANGES.items()):
        rows = slice(60 * number, 60 * number + 60)
        files[name] = root / f"{name}.npz"
        np.savez(files[name], images=np.ascontiguousarray(change(images[rows])), labels=labels[rows])
    return files


def words(files: dict[str, Path]) -> list[str]:
    return ["--data.domains", ",".join(f"{name}={file}" for name, file in files.items())]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three domains, and a run that left one of them out and is evaluated."""
    root = tmp_path_factory.mktemp("domains")
    files = write_domains(root / "data")
    given = [*words(files), "--data.leave_out", "turned", *SMALL]
    assert main(["train", "mnist5k/standard", "--out", str(root / "run"), *given]) == 0
    assert main(["evaluate", str(root / "run")]) == 0
    return root


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "run", tmp_path / "run"))


@pytest.mark.slow
def test_sources_and_target_are_evaluated_audited_and_shown(
    made: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, source = read_summary(run / "evaluation"), read_summary(run / "evaluation_source")
    assert (target.data.source, target.data.split) == ("domain turned (target)", "target test")
    assert (source.data.source, source.data.split) == ("domains plain, inverted", "source test")
    assert (target.data.count, source.data.count) == (10, 20)
    assert (target.data.trained_on, source.data.trained_on, source.data.selected_on) == (0, 0, 0)
    numbers = json.loads((run / "evaluation" / "domains.json").read_text())
    assert numbers["left_out"] == "turned"
    assert [one["name"] for one in numbers["sources"]] == ["plain", "inverted"]
    assert numbers["source"]["clean"]["correct"] == source.metrics.clean.hits
    assert numbers["target"]["robust"]["robust"] == target.metrics.worst_case.robust.hits
    difference = source.metrics.clean.share - target.metrics.clean.share
    assert numbers["clean_gap"]["difference"] == pytest.approx(difference)
    assert main(["evaluate", str(run), "--keep"]) == 0
    told = capsys.readouterr().out
    assert "run: target turned, linf:0.1" in told
    assert "gap: sources - target" in told
    assert main(["audit", str(run)]) == 0
    assert main(["audit", str(run), "--as", "source"]) == 0
    assert "ok     the domains and the one that is left out are those of the run" in capsys.readouterr().out
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert 'id="domains-' in page
    assert "passed its audit" in page
    assert "The model was trained and selected without images of the target." in page
    assert "is left out:" not in page, "the evaluation on the sources is no other threat"
    assert str(made) not in page


@pytest.mark.slow
def test_forged_domains_fail_the_audit(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = run / "evaluation"
    numbers, summary = target / "domains.json", target / "summary.json"
    true_numbers, true_summary = numbers.read_text(), summary.read_text()

    def failed(where: str = "") -> str:
        capsys.readouterr()
        assert main(["audit", str(run), *(["--as", where] if where else [])]) == 1
        return " ".join(re.findall("FAILED.*", capsys.readouterr().out))

    numbers.write_text(true_numbers.replace('"name": "turned"', '"name": "turner"'))
    assert (
        "accuracies by domain are those of the evaluations on target and sources: domains.json states" in failed()
    )
    numbers.write_text(true_numbers)
    summary.write_text(true_summary.replace("turned=", "rolled=").replace('"turned"', '"rolled"'))
    assert "stated plain, inverted, rolled with rolled left out" in failed()
    summary.write_text(true_summary)
    shutil.copytree(target, run / "evaluation_kept")
    shutil.rmtree(target)
    shutil.copytree(run / "evaluation_source", target)  # the sources in the place of the target
    summary.write_text(summary.read_text().replace("source test", "target test"))
    assert "the images are those named" in failed()
    shutil.rmtree(target)
    shutil.copytree(run / "evaluation_kept", run / "evaluation")
    other = run / "evaluation_source" / "summary.json"
    other.write_text(other.read_text().replace('"leave_out": "turned"', '"leave_out": "plain"'))
    said = failed("source")
    assert "stated plain, inverted, turned with plain left out, the run has" in said
    assert "the test images are those that the run recorded at its start" in said


@pytest.mark.slow
def test_exchanged_files_are_refused(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(shutil.copytree(made, tmp_path / "copy"))
    config = root / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(made), str(root)))
    plain, turned = root / "data" / "plain.npz", root / "data" / "turned.npz"
    plain.rename(root / "data" / "kept.npz")
    turned.rename(plain)
    (root / "data" / "kept.npz").rename(turned)
    said = refusal(capsys, "evaluate", str(root / "run"), "--overwrite")
    assert f"the test images are not those that {root / 'run'} recorded at its start" in said


@pytest.mark.slow
def test_target_images_influence_neither_weights_nor_the_selected_epoch(made: Path, tmp_path: Path) -> None:
    files = {name: made / "data" / f"{name}.npz" for name in CHANGES}
    random = np.random.default_rng(5)
    files["turned"] = tmp_path / "other.npz"
    np.savez(files["turned"], images=random.integers(0, 256, (47, 28, 28), np.uint8), labels=np.arange(47) % 10)
    given = [*words(files), "--data.leave_out", "turned", *SMALL]
    assert main(["train", "mnist5k/standard", "--out", str(tmp_path / "run"), *given]) == 0
    one, other = (load_file(folder / "model.safetensors") for folder in (made / "run", tmp_path / "run"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    status = [json.loads((folder / "status.json").read_text()) for folder in (made / "run", tmp_path / "run")]
    assert status[0]["best_epoch"] == status[1]["best_epoch"]


@pytest.mark.slow
def test_a_run_continues_with_another_target_but_not_with_other_sources(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, is_refused in (("turned", False), ("inverted", True)):
        file, kept = made / "data" / f"{name}.npz", tmp_path / "kept.npz"
        shutil.copy(file, kept)
        content = dict(np.load(file))
        try:
            np.savez(file, images=content["images"][::-1], labels=content["labels"][::-1])
            if is_refused:
                said = refusal(capsys, "train", "--resume", str(made / "run"))
                assert f"the training images are not those that {made / 'run'} was started with" in said
            else:
                assert main(["train", "--resume", str(made / "run")]) == 0
        finally:
            shutil.copy(kept, file)


@pytest.mark.slow
def test_weights_that_have_seen_the_target_are_refused(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: made / "data" / f"{name}.npz" for name in CHANGES}
    weights = ["--model.weights", str(made / "run" / "model.safetensors")]
    train = ["train", "mnist5k/standard", *SMALL, *words(files), *weights, "--out", str(tmp_path / "run")]
    said = refusal(capsys, *train, "--data.leave_out", "plain")
    assert "the weights of the model, were trained or selected on 50 images of the left-out domain plain" in said
    assert main([*train, "--data.leave_out", "turned", "--training.epochs", "1"]) == 0
    new = ["evaluate", str(tmp_path / "new"), "--data.image_size", "16", *words(files), *weights]
    said = refusal(capsys, *new, "--data.leave_out", "plain")
    assert "images of the left-out domain plain" in said
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_sweep_over_all_domains_prints_one_table(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("robustly.cli.sweep.carry_out", in_process)
    files = {name: made / "data" / f"{name}.npz" for name in CHANGES}
    out = tmp_path / "sweep"
    given = [*words(files), "--over", "data.leave_out=plain,turned", *SMALL, "--training.epochs", "1", "--evaluate"]
    assert main(["sweep", "mnist5k/standard", *given, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "leave one domain out, linf:0.1, pgd_10" in told
    assert "not left out: inverted, so the mean is not over all domains" in told
    (table,) = json.loads((out / "domains.json").read_text())["protocols"]
    assert [row["left_out"] for row in table["rows"]] == ["plain", "turned"]
    shares = [row["numbers"]["target robust"]["accuracy"] for row in table["rows"]]
    assert table["mean"]["target robust"]["accuracy"] == pytest.approx(sum(shares) / 2)
    assert table["worst"]["target robust"]["accuracy"] == min(shares)
    for name in ("plain", "turned"):
        summary = read_summary(out / f"mnist5k_standard__leave_out={name}__seed=0" / "evaluation")
        assert summary.data.source == f"domain {name} (target)"


@pytest.mark.slow
def test_certificates_give_certified_accuracy_by_domain(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["certify", str(run), "--method", "ibp", "--halvings", "0", "--suite", "pgd_10"]) == 0
    assert "certified" in capsys.readouterr().out
    numbers = json.loads((run / "evaluation_certified" / "domains.json").read_text())
    assert numbers["source"]["certified"]["count"] == 20
    assert numbers["target"]["certified"]["count"] == 10
    assert numbers["certified_gap"] is not None


@pytest.mark.slow
def test_two_threats_have_two_results(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--threats", "linf:0.1", "l2:0.5", "--overwrite"]) == 0
    told = capsys.readouterr().out
    assert "union: robust to all" in told
    for name in ("evaluation", "evaluation_l2"):
        assert (run / name / "domains.json").is_file()
        assert (run / f"{name}_source" / "summary.json").is_file()


@pytest.mark.slow
def test_wrong_words_are_met_with_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write_domains(tmp_path / "data")
    train = ["train", "mnist5k/standard", *SMALL, "--out", str(tmp_path / "run"), *words(files)]
    assert "name the domain to leave out of training: plain, inverted, turned" in refusal(capsys, *train)
    assert "there is no domain 'turn', did you mean 'turned'?" in refusal(
        capsys, *train, "--data.leave_out", "turn"
    )
    both = refusal(capsys, *train, "--data.leave_out", "turned", "--data", "mnist5k")
    assert "give --data.source (one data set) or --data.domains (several), not both" in both
    large = refusal(capsys, *train, "--data.leave_out", "turned", "--data.expected_classes", "7")
    assert "has 10 classes, but the recipe is for 7" in large
    np.savez(files["plain"], images=np.zeros((30, 28, 28), np.uint8), labels=np.arange(30) % 5)
    lacking = refusal(capsys, *train, "--data.leave_out", "turned", "--data.expected_classes", "null")
    assert "the domains have different classes: plain lacks 5, 6, 7, 8, 9" in lacking
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_name_that_ends_in_source_is_kept_for_the_sources(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "names that end in source" in refusal(capsys, "evaluate", str(run), "--as", "my_source")
    assert open_run(run).data.leave_out == "turned"
