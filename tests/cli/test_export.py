"""`export`, `predict` and `info`."""

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from cli_tools import refusal
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from robustly.certification.evaluation import evaluate
from robustly.certification.readers.onnx_reader import read_onnx
from robustly.cli import main
from robustly.cli.predict import predict_files
from robustly.data import DataConfig, load_test
from robustly.evidence import read_summary
from robustly.evidence.storage import read_images
from robustly.experiments import onnx_export
from robustly.experiments.configuration import build_config
from robustly.experiments.export import model_card, write_safetensors
from robustly.experiments.given_models import given_run
from robustly.experiments.keys import UNTRAINED
from robustly.experiments.onnx_export import compare_onnx
from robustly.experiments.portable import KEY, PortableModel, description_from, open_portable
from robustly.experiments.run_folder import RunError, create_run, open_run
from robustly.models import ModelConfig, build_model, load_weights, save_weights, weights_hash

COUNT = 30


def trust_nothing(name: str) -> bool:
    return False


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    words = [
        "--threat",
        "linf:0.1",
        "--data.train_limit",
        "600",
        "--data.validation",
        "60",
        "--model.width",
        "0.25",
    ]
    words += ["--training.epochs", "3", "--training.validation_steps", "1", "--schedule.name", "constant"]
    assert main(["train", "mnist5k/standard", "--out", str(folder), *words]) == 0
    words = ["--suite", "single_step", "--evaluation.count", str(COUNT), "--evaluation.curve_count", "2"]
    assert main(["evaluate", str(folder), *words]) == 0
    return folder


def model_of(run: Path) -> nn.Module:
    model = build_model(ModelConfig(width=0.25, dropout=0.0), seed=3)
    load_weights(model, run / "model.safetensors")
    return model.eval()


def without_evaluation(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder)
    shutil.rmtree(folder / "evaluation")
    return folder


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    words = ["--hf", str(folder / "hf"), "--safetensors", str(folder / "m.safetensors")]
    assert main(["export", str(run), *words]) == 0
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five digits as files, one in a folder of its own, and a hidden one."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "below").mkdir()
    pixels = load_test(DataConfig(test_limit=5)).images[:, 0].numpy()
    for number, one in enumerate(pixels):
        place = folder / "below" if number == 4 else folder
        Image.fromarray(one).save(place / f"{number}.png")
    Image.fromarray(pixels[0]).save(folder / ".hidden.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_two_exports_of_a_model_are_equal_byte_by_byte(exported: Path, tmp_path: Path) -> None:
    model = open_portable(exported / "m.safetensors", trust_nothing)
    files = [tmp_path / f"{number}.safetensors" for number in range(12)]  # an order by chance is found
    for file in files:
        write_safetensors(model, file)
    everywhere = [exported / "m.safetensors", exported / "hf" / "model.safetensors", *files]
    assert len({file.read_bytes() for file in everywhere}) == 1
    with safe_open(files[0], framework="pt") as content:
        assert sorted(content.metadata()) == ["format", KEY]


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_predictions_are_those_of_the_model(run: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(run), str(images), "--csv"]) == 0
    found = rows(capsys.readouterr().out)
    assert [Path(row["image"]).name for row in found] == ["0.png", "1.png", "2.png", "3.png", "4.png"]
    with torch.no_grad():
        logits = model_of(run)(load_test(DataConfig(test_limit=5)).floats())
    assert len(set(logits.argmax(1).tolist())) > 1
    assert [row["class"] for row in found] == [str(label) for label in logits.argmax(1).tolist()]
    torch.testing.assert_close(
        torch.tensor([float(row["probability"]) for row in found]), logits.softmax(1).amax(1), atol=1e-5, rtol=0
    )
    two = logits.topk(2, dim=1)
    margins = torch.tensor([float(row["margin"]) for row in found])
    torch.testing.assert_close(margins, two.values[:, 0] - two.values[:, 1], atol=1e-5, rtol=0)
    assert [row["second"] for row in found] == [str(label) for label in two.indices[:, 1].tolist()]


def test_images_of_another_size_and_colour_are_converted(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A large picture of the same content has nearly the same prediction."""
    small = Image.fromarray(load_test(DataConfig(test_limit=1)).images[0, 0].numpy())
    small.save(tmp_path / "a.png")
    small.resize((280, 280), Image.Resampling.BICUBIC).convert("RGB").save(tmp_path / "b.bmp")
    assert main(["predict", str(run), str(tmp_path / "a.png"), str(tmp_path / "b.bmp"), "--csv"]) == 0
    first, second = rows(capsys.readouterr().out)
    assert first["class"] == second["class"]
    assert abs(float(first["probability"]) - float(second["probability"])) < 0.02
    assert main(["predict", str(run), str(tmp_path / "a.png")]) == 0
    assert f"{100 * float(first['probability']):.1f} %" in capsys.readouterr().out


def test_exports_predict_the_same(
    run: Path, exported: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = []
    for path in (run, exported / "hf", exported / "m.safetensors"):
        assert main(["predict", str(path), str(images), "--csv"]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0].count("\n") == 6
    assert answers[0] == answers[1] == answers[2]


def test_weights_of_exports_load_anywhere(run: Path, exported: Path) -> None:
    own = load_file(run / "model.safetensors")
    for file in (exported / "m.safetensors", exported / "hf/model.safetensors"):
        assert weights_hash(load_file(file)) == weights_hash(own)


def test_the_hugging_face_folder(run: Path, exported: Path) -> None:
    folder = exported / "hf"
    config = json.loads((folder / "config.json").read_text())
    assert (config["num_channels"], config["image_size"], config["id2label"]["7"]) == (1, 28, "7")
    assert config["label2id"]["7"] == 7
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["rescale_factor"] == 1 / 255
    assert processor["do_normalize"] is False
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    metrics = read_summary(run / "evaluation").metrics
    [entry] = yaml.safe_load(front)["model-index"][0]["results"]
    values = {one["type"]: one["value"] for one in entry["metrics"]}
    assert values == {
        "accuracy": round(100 * metrics.clean.share, 2),
        "robust_accuracy": round(100 * metrics.worst_case.robust.share, 2),
    }
    assert entry["dataset"] == {"name": "mnist5k", "type": "mnist5k", "split": "test"}
    assert f"of {COUNT} test images" in text
    for title in ("FGSM", "PGD-20", "worst case", "clean"):
        assert f"\n| {title} | " in text


def test_a_model_without_evidence_says_so(run: Path, tmp_path: Path) -> None:
    found = open_portable(without_evaluation(run, tmp_path / "run"), trust_nothing)
    assert found.description.results is None
    assert found.description.shape == (1, 28, 28)
    card = model_card(found.description, "a|b", None)
    assert "has not been evaluated" in card
    assert "model-index" not in card
    assert "# a/b" in card


def test_an_exported_model_is_exported_again(run: Path, exported: Path, tmp_path: Path) -> None:
    assert main(["export", str(exported / "m.safetensors"), "--hf", str(tmp_path / "hf")]) == 0
    robust = read_summary(run / "evaluation").metrics.worst_case.robust.share
    card = (tmp_path / "hf/README.md").read_text()
    assert f"\n| robust | {robust} |" in card
    assert "has not been evaluated" not in card
    first, second = (json.loads((one / "config.json").read_text()) for one in (exported / "hf", tmp_path / "hf"))
    assert first == second


def test_a_network_that_cannot_be_exported(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(model: nn.Module, example: torch.Tensor, file: Path) -> None:
        file.write_text("half")
        raise RuntimeError("data-dependent\nbranch")

    monkeypatch.setattr(onnx_export, "find_spec", lambda name: True)
    monkeypatch.setattr(onnx_export, "_export", fail)
    said = refusal(capsys, "export", str(run), "--onnx", str(tmp_path / "m.onnx"))
    assert "cannot export this network to ONNX (data-dependent branch)" in said
    assert list(tmp_path.iterdir()) == []


def test_images_of_a_network_that_is_not_square(exported: Path, tmp_path: Path) -> None:
    model = open_portable(exported / "m.safetensors", trust_nothing)
    wide = replace(model.description, shape=(1, 28, 20))
    flat = nn.Sequential(nn.Flatten(), nn.Linear(28 * 20, 10)).eval()
    for name, size in (("a", (20, 28)), ("b", (28, 20))):
        Image.new("L", size).save(tmp_path / f"{name}.png")
    found = predict_files(PortableModel(flat, wide), [tmp_path / "a.png", tmp_path / "b.png"])
    assert next(found).image == tmp_path / "a.png"
    with pytest.raises(ValueError, match=r"b\.png is 20x28 pixels, the model takes 28x20"):
        next(found)


def test_evidence_of_other_weights_is_left_out(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    save_weights(build_model(ModelConfig(width=0.25, dropout=0.0), seed=4), other / "model.safetensors")
    assert main(["export", str(other), "--hf", str(tmp_path / "hf")]) == 0
    assert "of other weights and is left out" in capsys.readouterr().out
    assert "has not been evaluated" in (tmp_path / "hf/README.md").read_text()
    assert json.loads((tmp_path / "hf/config.json").read_text())[KEY]["results"] is None


@pytest.mark.slow
def test_onnx_has_the_same_predictions(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    file = tmp_path / "m.onnx"
    assert main(["export", str(run), "--onnx", str(file)]) == 0
    out = capsys.readouterr().out
    stored = read_images(run / "evaluation").attacks.values()
    count = sum(len(one) for one in stored)
    assert count > 10
    assert f"{count} of {count} adversarial images have the same prediction" in out
    # a file of another network is found out
    portable = open_portable(run, trust_nothing)
    other = model_of(run)
    with torch.no_grad():
        next(other.parameters()).neg_()
    x = torch.rand(64, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    found = compare_onnx(PortableModel(other, portable.description), file, x)
    assert found is not None
    assert found.same + found.ties < found.count
    assert found.difference > 0.01
    assert [one.name for one in tmp_path.iterdir()] == ["m.onnx"]
    # the verifier reads the file as the same network
    own = evaluate(read_onnx(file).graph, x.double())
    assert torch.allclose(own, portable.logits(x).double(), atol=1e-4)


def test_onnx_without_its_packages(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None)
    said = refusal(capsys, "export", str(run), "--onnx", str(tmp_path / "m.onnx"))
    assert "--onnx needs the package onnx and onnxscript: pip install 'robustly[onnx]'" in said


def test_targets_that_are_refused(
    run: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "name what to write" in refusal(capsys, "export", str(run))
    assert "ends in .onnx" in refusal(capsys, "export", str(run), "--onnx", str(tmp_path / "m.pt"))
    assert "exists already: --overwrite" in refusal(
        capsys, "export", str(run), "--safetensors", str(exported / "m.safetensors")
    )
    assert "exists already: --overwrite" in refusal(capsys, "export", str(run), "--hf", str(exported / "hf"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    said = refusal(capsys, "export", str(run), "--hf", str(tmp_path / "mine"), "--overwrite")
    assert "is not an exported model" in said
    assert (tmp_path / "mine/thesis.txt").read_text() == "x"
    (exported / "hf/notes.md").write_text("mine")
    assert main(["export", str(run), "--hf", str(exported / "hf"), "--overwrite"]) == 0
    assert (exported / "hf/notes.md").read_text() == "mine"


def test_models_that_are_refused(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"w": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    image = tmp_path / "i.png"
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(image)
    for path, words in (
        (tmp_path / "foreign.safetensors", "does not state the architecture"),
        (tmp_path / "none", "there is no file or folder"),
        (tmp_path, "neither a run"),
        (image, "neither a run"),
    ):
        assert words in refusal(capsys, "predict", str(path), str(image))
    copy = tmp_path / "hf"
    copy.mkdir()
    for name in ("config.json", "model.safetensors"):
        (copy / name).write_bytes((exported / "hf" / name).read_bytes())
    config = json.loads((copy / "config.json").read_text())
    for key, value, words in (
        ("shape", [1, 10**6, 10**6], "more than the limit"),
        ("shape", [0, 28, 28], "at least one pixel"),
        ("classes", "ten", "classes"),
        ("format", 2, "format 2"),
        ("weights_sha256", "0" * 64, "holds other weights"),
        ("model", {"name": "no_model"}, "unknown model"),
        ("model", {"name": "package.module:factory"}, "names code to import"),
        ("surplus", 1, "unknown key"),
    ):
        changed = {**config, KEY: {**config[KEY], key: value}}
        (copy / "config.json").write_text(json.dumps(changed))
        assert words in refusal(capsys, "predict", str(copy), str(image)), key


def test_images_that_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no image")
    for name, words in (
        ("empty", "has no image file"),
        ("missing.png", "there is no file or folder"),
        ("text.png", "is not a readable image"),
    ):
        assert words in refusal(capsys, "predict", str(run), str(tmp_path / name))


def test_a_description_lacks_a_key(exported: Path) -> None:
    values = json.loads((exported / "hf/config.json").read_text())[KEY]
    for key in ("shape", "classes", "weights_sha256"):
        with pytest.raises(ValueError, match=f"{key} is missing"):
            description_from({name: value for name, value in values.items() if name != key}, "here")


def facts(capsys: pytest.CaptureFixture[str], path: Path) -> dict[str, object]:
    assert main(["info", str(path), "--json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_info_of_everything(run: Path, exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digest = weights_hash(load_file(run / "model.safetensors"))
    summary = read_summary(run / "evaluation")
    found = facts(capsys, run)
    assert (found["kind"], found["recipe"], found["threat"]) == ("run", "mnist5k/standard", "linf:0.1")
    assert found["weights"]["weights_sha256"] == digest  # type: ignore[index]
    evaluation = found["evaluations"]["evaluation"]  # type: ignore[index]
    assert evaluation["robust"]["share"] == summary.metrics.worst_case.robust.share
    assert (evaluation["images"], evaluation["audit"], evaluation["signed"]) == (COUNT, "none", False)
    evidence = facts(capsys, run / "evaluation")
    assert evidence["kind"] == "evidence"
    assert evidence["model"]["weights_sha256"] == digest  # type: ignore[index]
    assert evidence["clean"] == evaluation["clean"]
    assert list(evidence["attacks"]) == [one.attack.title for one in summary.outcomes]  # type: ignore[call-overload]
    for name in ("summary.json", "evidence.parquet", "adversarial.safetensors"):
        assert facts(capsys, run / "evaluation" / name) == evidence
    assert facts(capsys, run / "config.yaml") == found
    weights = facts(capsys, run / "model.safetensors")
    assert (weights["kind"], weights["weights_sha256"]) == ("weights", digest)
    assert weights["numbers"] == sum(value.numel() for value in load_file(run / "model.safetensors").values())
    for path, kind in ((exported / "hf", "exported model"), (exported / "m.safetensors", "weights")):
        one = facts(capsys, path)
        assert one["kind"] == kind
        assert one["description"]["shape"] == [1, 28, 28]  # type: ignore[index]
    assert main(["info", str(run)]) == 0
    out = capsys.readouterr().out
    assert f"robust: {100 * summary.metrics.worst_case.robust.share:.1f} % [" in out
    assert "None" not in out


def test_info_of_a_model_trained_elsewhere(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = {"name": "small_cnn", "width": 0.25, "weights": str(run / "model.safetensors")}
    create_run(tmp_path / "run", build_config({"recipe": UNTRAINED, "model": weights}))
    found = facts(capsys, tmp_path / "run")
    assert found["weights"] == facts(capsys, run)["weights"]
    assert found.keys().isdisjoint({"epochs", "state"})


def test_info_of_a_damaged_evaluation(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = without_evaluation(run, tmp_path / "run")
    (folder / "evaluation").mkdir()
    (folder / "evaluation/summary.json").write_text("{")
    assert "summary.json" in facts(capsys, folder)["evaluations"]["evaluation"]["damaged"]  # type: ignore[index]


def test_paths_without_facts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no file or folder" in refusal(capsys, "info", str(tmp_path / "none"))
    assert "is nothing that robustly writes" in refusal(capsys, "info", str(tmp_path))
    (tmp_path / "a.txt").write_text("a")
    assert "a.txt: is damaged or not a file of" in refusal(capsys, "info", str(tmp_path / "a.txt"))


def test_exports_are_evaluated_as_their_run(run: Path, exported: Path) -> None:
    model = replace(open_run(run).model, classes=10, channels=1, image_size=(28, 28))
    for name, weights in (("m.safetensors", "m.safetensors"), ("hf", "hf/model.safetensors")):
        given = given_run(exported / name, ["--data.source", "mnist5k"]).config.model
        assert given == replace(model, weights=str((exported / weights).absolute()))
    with pytest.raises(RunError, match="was written by robustly export: give it as --weights"):
        given_run(exported / "new", ["--model.name", f"hf:{exported / 'hf'}", "--data.source", "mnist5k"])
