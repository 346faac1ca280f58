"""An evaluation becomes an entry of the leaderboard, or is refused with the reason."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import robustly
from robustly.cli import main
from robustly.compat.robustbench import RobustBenchError, claim, claims
from robustly.data import ImageData
from robustly.evidence import Evidence, EvidenceError
from robustly.models import ResNet
from robustly.threats.lp import ThreatModel

COUNT, THREAT = 12, ThreatModel("linf", "8/255")
PAPER: dict[str, Any] = {
    "name": "A title", "link": "https://example.org/1", "authors": "A. B, C. D", "venue": "Unpublished",
    "architecture": "Linear", "additional_data": False, "number_forward_passes": 1, "reported": 12.5,
    "checkpoint": "https://example.org/2",
}  # fmt: skip


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set of few images: the number is checked as that of the whole one."""
    monkeypatch.setattr(claims, "TEST_IMAGES", {"cifar10": COUNT, "cifar100": COUNT, "imagenet": COUNT})


def linear() -> nn.Module:
    """Gives way to any attack at once, so that the suite ends early."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 576, 10))
    weight = torch.randn(10, 3 * 576, generator=torch.Generator().manual_seed(0))
    net.load_state_dict({"1.weight": weight, "1.bias": torch.zeros(10)})
    return net.eval()


def images(net: nn.Module) -> ImageData:
    x = torch.randint(0, 256, (COUNT, 3, 24, 24), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    y = net(x / 255).argmax(1)
    y[:3] = (y[:3] + 1) % 10
    return ImageData(x, y, torch.arange(COUNT), tuple("0123456789"), "cifar10")


@pytest.fixture(scope="module")
def evaluated() -> Evidence:
    net = linear()
    data = images(net)
    return robustly.evaluate(net, data, THREAT, "aa_standard")


def changed(evidence: Evidence, part: str, **values: Any) -> Evidence:
    summary = evidence.summary
    new = replace(summary, **values) if part == "" else replace(
        summary, **{part: replace(getattr(summary, part), **values)}
    )  # fmt: skip
    return Evidence(evidence.table, evidence.images, new)


def test_the_entry_has_the_fields_of_the_leaderboard(evaluated: Evidence) -> None:
    found = claim(evaluated, "Ours2026Title", footnote="It uses no data.", **PAPER)
    assert found.info == {
        "link": "https://example.org/1",
        "name": "A title",
        "authors": "A. B, C. D",
        "additional_data": False,
        "number_forward_passes": 1,
        "dataset": "cifar10",
        "venue": "Unpublished",
        "architecture": "Linear",
        "eps": "8/255",
        "clean_acc": "75.0",
        "reported": "12.5",
        "autoattack_acc": "0.0",
        "footnote": "It uses no data.",
        "unreliable": False,
    }
    standing = evaluated.table.correct & (evaluated.table.examples.label % 2 == 0)
    table = replace(evaluated.table, worst_case=replace(evaluated.table.worst_case, broken=~standing))
    partly = claim(Evidence(table, evaluated.images, evaluated.summary)).info
    assert float(partly["autoattack_acc"]) == round(100 * int(standing.sum()) / COUNT, 2) > 0
    assert found.missing == ()
    assert found.remarks == ()
    for line in (
        "Title: [New Model] Ours2026Title", "- **Paper authors**: A. B, C. D", "- **Threat Model**: Linf",
        "- **eps**: 8/255", "- **Clean accuracy**: 75.0", "- **Robust accuracy**: 0.0",
        "- **Additional data**: false", "- **Checkpoint and code**: https://example.org/2",
    ):  # fmt: skip
        assert line in found.issue.splitlines()
    assert "(APGD-CE, APGD-T, FAB-T, Square)" in found.issue


def test_unknown_fields_are_empty_and_listed(evaluated: Evidence) -> None:
    found = claim(evaluated)
    assert found.missing == (
        "model_name", "link", "name", "authors", "additional_data", "number_forward_passes", "venue", "reported",
        "architecture", "checkpoint",
    )  # fmt: skip
    assert found.info["authors"] is None
    assert "- **Paper Title**:" in found.issue.splitlines()
    assert "None" not in found.issue
    with pytest.raises(RobustBenchError, match="model_name is ''"):
        found.save()


def test_files_are_written_and_runs_are_read(evaluated: Evidence, tmp_path: Path) -> None:
    evaluated.save(tmp_path / "run" / "evaluation")
    found = claim(tmp_path / "run", "Ours2026Title")
    assert (
        found == claim(str(tmp_path / "run" / "evaluation"), "Ours2026Title") == claim(evaluated, "Ours2026Title")
    )
    info, issue = found.save(tmp_path)
    assert info == tmp_path / "model_info" / "cifar10" / "Linf" / "Ours2026Title.json"
    assert json.loads(info.read_text()) == found.info
    assert issue.read_text() == found.issue
    with pytest.raises(EvidenceError, match="has no evaluation"):
        claim(tmp_path)
    with pytest.raises(RobustBenchError, match="or a folder, got NoneType"):
        claim(None)  # type: ignore[arg-type]


def test_the_command_writes_both_files(
    evaluated: Evidence, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(evaluated, "threat", limit=16 / 255).save(tmp_path / "run" / "evaluation")
    words = ["export", str(tmp_path / "run"), "--robustbench", str(tmp_path / "out" / "Ours2026.json")]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "! The radius is 16/255" in said
    assert "to be filled in by the authors: link, name" in said
    assert json.loads((tmp_path / "out" / "Ours2026.json").read_text())["eps"] == "16/255"
    assert "[New Model] Ours2026" in (tmp_path / "out" / "Ours2026.md").read_text()
    assert main(words) == 2
    assert "exists already: --overwrite replaces it" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert main([*words[:3], str(tmp_path / "x.txt")]) == 2
    assert "ends in .json" in capsys.readouterr().err


def test_networks_of_this_package_have_the_leaderboard_s_names(evaluated: Evidence) -> None:
    count = sum(value.numel() for value in ResNet().parameters())
    named = changed(evaluated, "model", name="resnet18", parameters=count)
    assert claim(named).info["architecture"] == "ResNet-18"
    narrow = changed(evaluated, "model", name="resnet18", parameters=count // 16)
    assert claim(narrow).info["architecture"] is None
    wide = changed(evaluated, "model", name="wrn28_10_silu", parameters=36_479_194)
    assert claim(wide).info["architecture"] == "WideResNet-28-10"
    assert "architecture" not in claim(wide).missing


def test_what_readers_must_know_is_remarked(evaluated: Evidence) -> None:
    wider = changed(evaluated, "threat", limit=16 / 255)
    (remark,) = claim(wider).remarks
    assert remark == "The radius is 16/255; the usual one for Linf on cifar10 is 8/255."
    assert remark in claim(wider).issue
    masked = changed(evaluated, "", masking=("Square broke more.",))
    assert claim(masked).remarks == ("Gradients may be masked: Square broke more.",)
    assert claim(masked).info["unreliable"] is True
    trained = changed(evaluated, "data", trained_on=2, selected_on=0)
    assert claim(trained).remarks[0].startswith("2 of 12 test images were trained on")
    other = changed(evaluated, "data", classes=("t-shirt", *(f"item {n}" for n in range(9))))
    assert "are not those of CIFAR-10" in claim(other).remarks[0]
    assert "JPEG" in claim(changed(evaluated, "data", source="/data/cifar10-jpeg test")).remarks[0]


def test_other_evaluations_are_refused(evaluated: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(evidence: Evidence, sentence: str, **given: Any) -> None:
        with pytest.raises(RobustBenchError, match=sentence) as error:
            claim(evidence, **given)
        assert "\n" not in str(error.value)

    net = linear()
    refused(robustly.evaluate(net, images(net), THREAT, "quick"), "suite is quick .* aa_standard")
    (first, *others) = evaluated.summary.suite.attacks
    weaker = replace(first, settings={**first.settings, "steps": 3})
    refused(changed(evaluated, "suite", attacks=(weaker, *others)), "standard version")
    sampled = replace(first, plan=replace(first.plan, sample=5))
    refused(changed(evaluated, "suite", attacks=(sampled, *others)), "standard version")
    refused(changed(evaluated, "", failures={"square": "out of memory"}), "square failed")
    refused(changed(evaluated, "threat", norm="l1", text="l1:12"), "threat is l1:12")
    refused(changed(evaluated, "threat", box=(0.0, 255.0)), r"in \[0, 255\]")
    refused(changed(evaluated, "data", classes=("a", "b")), "have 2 classes")
    refused(evaluated, "cifar100 has 100", dataset="cifar100")
    refused(evaluated, "dataset must be one of", dataset="svhn")
    monkeypatch.setattr(claims, "TEST_IMAGES", {"cifar10": 10_000})
    refused(evaluated, "evaluation is of 12 images, but a claim on cifar10 is of 10,000")
