"""`robustly audit` of a run: settings that differ, names, the record on the page, signatures, exit codes."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from cli_tools import refusal
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.numpy import load_file, save_file

from robustly.cli import main
from robustly.evidence.schema import IMAGES, TABLE
from robustly.reports.pages.page import render
from robustly.reports.reading import read_run

pytestmark = pytest.mark.slow

SMALL = [
    "--data.train_limit", "300", "--data.validation", "60", "--data.test", "40", "--model.width", "0.25",
    "--training.epochs", "2", "--training.epsilon_ramp", "1", "--training.validation_steps", "2", "--threat",
    "linf:0.1", "--evaluation.curve_count", "20", "--evaluation.stages.pgd.attack", "pgd_10",
    "--evaluation.suite", "mine", "--method.inner.steps", "2",
]  # fmt: skip
Edit = Callable[[dict[str, Any]], None]
CHEAP = ["--share", "0.5", "--confidence", "0.5"]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", "mnist5k/pgd_at", "--out", str(folder), *SMALL]) == 0
    assert main(["evaluate", str(folder)]) == 0
    return folder


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "run"
    shutil.copytree(original, copy)
    return copy


def edit(run: Path, change: Edit) -> None:
    file = run / "evaluation" / "summary.json"
    summary = json.loads(file.read_text())
    change(summary)
    file.write_text(json.dumps(summary))


def test_a_passed_audit_prints_its_guarantee_and_is_on_the_page(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "Not audited" in render([read_run(run)])
    assert main(["audit", str(run)]) == 0
    said = capsys.readouterr().out
    assert "If 2 % or more of the standing verdicts were false" in said
    assert "stated, not checked: date" in said
    assert "note" not in said
    page = render([read_run(run)])
    assert "with probability 99 %" in page
    assert "Stated, not checked" in page
    edit(run, lambda summary: summary.update(device="cuda:0"))
    assert "Not audited" in render([read_run(run)])  # the audited evidence was another


@pytest.mark.parametrize("name", [TABLE, IMAGES])
def test_a_page_of_other_rows_or_images_than_the_audited_ones_is_not_audited(run: Path, name: str) -> None:
    assert main(["audit", str(run), *CHEAP]) == 0
    file = run / "evaluation" / name
    if name == TABLE:
        pq.write_table(pq.read_table(file), file, compression="gzip")
    else:
        save_file(load_file(file), file, {"made": "later"})
    assert "Not audited" in render([read_run(run)])


def test_attacks_seen_in_training_cannot_be_stated_to_be_unknown(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(run, lambda summary: summary.update(seen_attacks=None))
    assert main(["audit", str(run), *CHEAP]) == 1
    assert "FAILED the attacks marked as seen in training" in capsys.readouterr().out


def test_a_failed_audit_is_on_the_page(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(run, lambda summary: summary["worst_case"].update(accuracy=1.0))
    assert main(["audit", str(run), "--rerun", "all"]) == 1
    assert "AUDIT FAILED" in capsys.readouterr().out
    assert "the printed numbers follow from the rows" in render([read_run(run)])


NAMES: dict[str, Edit] = {
    "model": lambda summary: summary["model"].update(name="resnet152"),
    "checkpoint": lambda summary: summary["model"].update(checkpoint="best of ten"),
    "data source": lambda summary: summary["data"].update(source="imagenet"),
    "split": lambda summary: summary["data"].update(split="hidden test"),
}


def test_a_run_may_be_renamed_and_the_page_has_the_name_of_its_folder(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(run, lambda summary: summary.update(run="ImageNet champion"))
    assert main(["audit", str(run), "--share", "0.5", "--confidence", "0.5"]) == 0
    assert "note   the run was ImageNet champion when it was evaluated" in capsys.readouterr().out
    page = render([read_run(run)])
    assert "<h1>run</h1>" in page
    assert "the run was ImageNet champion when it was evaluated" in page


@pytest.mark.parametrize("name", NAMES)
def test_another_name_than_the_run_gives_fails(run: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    edit(run, NAMES[name])
    assert main(["audit", str(run), "--share", "0.5", "--confidence", "0.5"]) == 1
    assert f"FAILED names of model and data: {name} is" in capsys.readouterr().out


def test_settings_that_are_not_those_of_the_run_are_shown(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--evaluation.count", "20", "--threat", "linf:0.05", "--evaluation.curve_count", "5"]
    assert main(["evaluate", str(run), "--as", "other", *words]) == 0
    capsys.readouterr()
    assert main(["audit", str(run), "--as", "other"]) == 0
    said = capsys.readouterr().out
    assert "threat is linf:0.05 in this evaluation, linf:0.1 in the run's settings" in said
    assert "data.test_limit is 20 in this evaluation" in said
    assert "not audited" not in said
    (run / "evaluation_stopped.partial").mkdir()
    assert main(["audit", str(run), "--share", "0.5", "--confidence", "0.5"]) == 0
    assert "not audited: the other evaluations of the run: other (--as NAME)" in capsys.readouterr().out


@pytest.mark.parametrize(("key", "value"), [("split_seed", 9), ("test", 60), ("source", "elsewhere.npz")])
def test_other_settings_of_the_data_in_the_evidence_never_pass(
    run: Path, key: str, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(run, lambda summary: summary["data"]["settings"].update({key: value}))
    assert main(["audit", str(run), "--share", "0.5", "--confidence", "0.5"]) in (1, 2)


def test_other_settings_that_load_the_same_images_are_shown(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(run, lambda summary: summary["data"]["settings"].update(validation=10))
    assert main(["audit", str(run), "--share", "0.5", "--confidence", "0.5"]) == 0
    assert "data.validation is 10 in this evaluation, 60 in the run's settings" in capsys.readouterr().out
    assert "data.validation is 10" in render([read_run(run)])


def test_a_stage_cannot_take_the_name_of_another_attack(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--evaluation.stages.autoattack.attack", "pgd", "--evaluation.stages.autoattack.steps", "1"]
    assert main(["evaluate", str(run), "--as", "other", *words]) == 0
    assert "autoattack (PGD)" in capsys.readouterr().out
    for name in ("aa-standard", "AA_Standard", "Strong"):
        assert "is the name of a known suite" in refusal(
            capsys, "evaluate", str(run), "--as", "third", "--evaluation.suite", name
        )


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    key = Ed25519PrivateKey.generate()
    secret, public = tmp_path / "key.pem", tmp_path / "key.pub"
    none = serialization.NoEncryption()
    secret.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, none))
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    )
    return secret, public


def test_a_signature_is_verified_until_a_file_changes(
    run: Path, keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    secret, public = map(str, keys)
    assert main(["audit", str(run), "--sign", secret, *CHEAP]) == 0
    assert main(["audit", str(run), "--verify", public, *CHEAP]) == 0
    assert "ok     signed by the given key" in capsys.readouterr().out
    assert "robustly audit --verify KEY checks it" in render([read_run(run)])
    signature = run / "evaluation" / "signature.json"
    honest = signature.read_text()
    for field, value in (("created", "2020-01-01T00:00:00+00:00"), ("signature", "00" * 64), ("signature", "zz")):
        signature.write_text(json.dumps(json.loads(honest) | {field: value}))
        assert main(["audit", str(run), "--verify", public, *CHEAP]) == 1
    assert "the signature is not of these hashes" in capsys.readouterr().out
    signature.write_text(honest)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["training"]["epochs"] = 200
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert main(["audit", str(run), "--verify", public, *CHEAP]) == 1
    assert "changed after the signature: config.yaml" in capsys.readouterr().out


def test_evidence_without_a_signature_or_of_another_key_fails(
    run: Path, keys: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret, public = map(str, keys)
    assert main(["audit", str(run), "--verify", public, *CHEAP]) == 1
    assert "has no signature.json" in capsys.readouterr().out
    other = tmp_path / "other.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(other)], check=True)
    assert main(["audit", str(run), "--sign", str(other), *CHEAP]) == 0
    assert main(["audit", str(run), "--verify", public, *CHEAP]) == 1
    assert "signed by another key" in capsys.readouterr().out
    assert secret


def test_evidence_that_fails_is_not_signed(run: Path, keys: tuple[Path, Path]) -> None:
    edit(run, lambda summary: summary["worst_case"].update(accuracy=1.0))
    assert main(["audit", str(run), "--sign", str(keys[0]), *CHEAP]) == 1
    assert not (run / "evaluation" / "signature.json").exists()


def test_files_that_are_no_keys_are_refused_before_the_audit(
    run: Path, keys: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret, public = map(str, keys)
    empty, elliptic = tmp_path / "empty", tmp_path / "ec.pem"
    empty.write_bytes(b"")
    elliptic.write_bytes(
        generate_private_key(SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    for words, part in (
        (["--sign", public], "not an Ed25519 private key"),
        (["--verify", secret], "not an Ed25519 public key"),
        (["--sign", str(empty)], "not an Ed25519 private key"),
        (["--sign", str(elliptic)], "a key of another kind"),
        (["--sign", str(tmp_path / "nowhere")], "No such file"),
        (["--share", "0"], "share must lie between 0 and 1"),
        (["--confidence", "1"], "confidence must lie between 0 and 1"),
        (["--rerun", "32"], "sample"),
        (["--as", "nowhere"], "does not exist"),
    ):
        assert part in refusal(capsys, "audit", str(run), *words)
