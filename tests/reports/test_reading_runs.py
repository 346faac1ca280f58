import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from synthetic_run import Synthetic, write_synthetic_run

from robustly.evidence import EvidenceError
from robustly.reports import ReportError, read_run, render
from robustly.statistics import wilson_interval


def edit_summary(run, change):
    file = run / "evaluation" / "summary.json"
    summary = json.loads(file.read_text())
    change(summary)
    file.write_text(json.dumps(summary))


def test_everything_of_a_full_run_is_read(run):
    evidence = read_run(run)
    assert evidence.name == "mnist5k_trades"
    assert evidence.config["recipe"] == "trades_mnist5k"
    assert len(evidence.training.columns["epoch"]) == 6
    assert np.isnan(evidence.training.columns["train_robust_accuracy"][0])
    assert [attack.title for attack in evidence.evaluation.suite.attacks][:2] == ["PGD-10", "PGD-20"]
    assert len(evidence.table) == 200
    assert evidence.pictures.originals.shape[1:] == (1, 28, 28)
    assert not evidence.notes


def test_epochs_of_a_guide_alone_are_read_and_drawn(run):
    head = "epoch,train_loss,train_clean_accuracy,validation_clean_accuracy\n"
    (run / "guide_pretraining.csv").write_text(f"{head}1,1.0,0.5,0.625\n2,0.5,0.75,0.875\n")
    (run / "<b>_pretraining.csv").write_text(f"{head}1,1.0,0.5,0.625\n")  # a name that no network has
    (run / "model_pretraining.csv").write_text(f"{head}1,1.0,0.5,0.25\n")
    evidence = read_run(run)
    assert list(evidence.training.alone) == ["guide", "model"]
    assert evidence.training.alone["guide"]["validation_clean_accuracy"].tolist() == [0.625, 0.875]
    page = render([evidence]).replace("\u202f", " ")
    assert "The guide before the run" in page
    assert "The model before the run" in page
    assert "Line chart over 2 epochs. At the end: Validation: 87.5 %; Training: 75.0 %." in page
    (run / "guide_pretraining.csv").write_text(f"{head}1,1.0\n")
    with pytest.raises(ReportError, match=r"guide_pretraining\.csv"):
        read_run(run)


def test_a_run_without_evaluation_and_one_without_training_are_read(tmp_path):
    trained = read_run(write_synthetic_run(tmp_path, Synthetic(name="a", evaluation=False, epochs=2)))
    assert trained.evaluation is None
    assert trained.name == "a"
    evaluated = read_run(write_synthetic_run(tmp_path, Synthetic(name="b", training=False, count=60)))
    assert evaluated.training is None
    assert evaluated.config is None


@pytest.mark.parametrize("missing", ["evidence.parquet", "adversarial.safetensors"])
def test_the_summary_alone_is_enough(run, missing):
    (run / "evaluation" / missing).unlink()
    assert read_run(run).evaluation is not None


def test_optional_parts_of_the_summary_may_be_absent(run):
    optional = ("security_curve", "per_class", "certified", "warnings", "versions", "device", "invalid", "created")

    def thin(summary):
        for key in optional:
            del summary[key]
        del summary["clean"]["interval"]
        del summary["attacks"]["cw"]["interval"]
        summary["seconds"] = {}

    edit_summary(run, thin)
    evaluation = read_run(run).evaluation
    assert evaluation.metrics.security_curve is None
    clean = evaluation.metrics.clean
    assert clean.interval == wilson_interval(clean.hits, 200)
    assert {one.attack.name: one for one in evaluation.outcomes}["cw"].seconds is None
    page = render([read_run(run)])
    assert "Accuracy against the strength" not in page
    assert "Accuracy by class" not in page


def test_a_folder_with_nothing_in_it_says_what_to_do(tmp_path):
    with pytest.raises(ReportError, match="evaluate it first"):
        read_run(tmp_path)
    with pytest.raises(ReportError, match="no such folder"):
        read_run(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "name",
    [
        "evaluation/summary.json",
        "evaluation/evidence.parquet",
        "evaluation/adversarial.safetensors",
        "metrics.csv",
    ],
)
def test_a_file_that_was_cut_off_is_named(run, name):
    file = run / name
    content = file.read_bytes()
    file.write_bytes(content[: len(content) - len(content.splitlines(keepends=True)[-1]) // 2 - 20])
    with pytest.raises((ReportError, EvidenceError), match=file.name) as error:
        read_run(run)
    assert "\n" not in str(error.value)


def test_broken_yaml_is_named(run):
    (run / "config.yaml").write_text("a: [1, 2")
    with pytest.raises(ReportError, match=r"config\.yaml"):
        read_run(run)


@pytest.mark.parametrize("schema", [1, 7, "4", None])
def test_another_schema_is_refused(run, schema):
    edit_summary(run, lambda summary: summary.update(schema=schema))
    with pytest.raises(EvidenceError, match=rf"summary\.json is written in schema {schema}"):
        read_run(run)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("clean"), "clean is missing"),
        (lambda s: s["clean"].update(correct="many"), "clean: correct should be a whole number, but is 'many'"),
        (lambda s: s["worst_case"].update(robust=999), "between 0 and 200"),
        (lambda s: s["clean"].update(count=0), "at least 1"),
        (lambda s: s["security_curve"].update(accuracy=[1.0]), "one length"),
        (lambda s: s.update(per_class=[3]), "per_class"),
    ],
)
def test_a_wrong_field_is_named(run, change, words):
    edit_summary(run, change)
    with pytest.raises(EvidenceError, match=r"summary\.json") as error:
        read_run(run)
    assert words in str(error.value)


def test_numbers_that_are_not_finite_are_refused(run):
    edit_summary(run, lambda summary: summary["seconds"].update(cw=float("nan")))
    with pytest.raises(EvidenceError, match="holds NaN, which is not a number of JSON"):
        read_run(run)


def test_a_summary_that_contradicts_the_evidence_is_noted(run):
    edit_summary(run, lambda summary: summary["worst_case"].update(robust=199))
    (note,) = read_run(run).notes
    assert "disagree on worst-case accuracy: 199 of 200" in note


def test_a_certificate_that_an_attack_refutes_is_noted(tmp_path):
    run = write_synthetic_run(tmp_path, Synthetic(count=100, robust=0.5, certified=0.9, epochs=2))
    assert any("contradict" in note for note in read_run(run).notes)


def test_pictures_that_do_not_fit_are_named(run):
    file = run / "evaluation" / "adversarial.safetensors"
    tensors = load_file(file)
    tensors["cw.ids"] = tensors["cw.ids"][:-1].copy()
    save_file(tensors, file)
    with pytest.raises(EvidenceError, match=r"cw\.images does not fit"):
        read_run(run)
