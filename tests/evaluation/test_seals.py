"""Stored parts of a stopped evaluation that were changed, or that belong elsewhere, are computed again."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from torch.distributed import HashStore  # type: ignore[attr-defined]

from robustly.evaluation.certified_part import CertifiedPart, PartFolder
from robustly.evaluation.checkpoint import AttackEvidence, EvaluationCheckpoint, Speed
from robustly.evaluation.crew import INPUTS, Leader
from robustly.evaluation.parts import Arrays, Task
from robustly.evidence.certified_numbers import CertificateTerms
from robustly.evidence.images import EightBitImages, StoredImages
from robustly.evidence.schema import AttackColumns
from robustly.processes import Group

TASK = Task("attack", "pgd", "8/255")
PARTS: list[Arrays] = [{"rows": np.arange(number, number + 3)} for number in range(3)]


def carried_out(folder: Path, identity: str) -> list[int]:
    """First rows of the parts that are computed; the results are always those of this evaluation."""
    calls: list[int] = []

    def work(part: Arrays) -> Arrays:
        calls.append(int(part["rows"][0]))
        return {"square": part["rows"] ** 2 + len(identity)}

    leader = Leader(Group(0, 1, HashStore()), folder)
    leader.begin(identity, Speed(3, half_pays=False))
    found = list(leader.share(TASK, PARTS, work, lambda number: None))
    assert [one["square"][0] for one in found] == [number**2 + len(identity) for number in range(3)]
    return calls


def edit(path: Path) -> None:
    """Change the numbers of a file, and keep its metadata."""
    with safe_open(path, framework="np") as stored:
        about = stored.metadata()
    arrays = load_file(path)
    name = next(key for key in arrays if arrays[key].size and arrays[key].dtype.kind in "bif")
    arrays[name] = ~arrays[name] if arrays[name].dtype.kind == "b" else arrays[name] + 1
    save_file(arrays, path, metadata=about)


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize("spoil", [edit, half, lambda path: path.write_bytes(b""), lambda path: path.unlink()])
def test_a_changed_part_is_computed_again(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    assert carried_out(tmp_path, "one") == [0, 1, 2]
    assert carried_out(tmp_path, "one") == []
    (file,) = tmp_path.glob("*/000001.safetensors")
    spoil(file)
    assert carried_out(tmp_path, "one") == [1]
    (inputs,) = tmp_path.glob(f"*/{INPUTS}")
    before = inputs.read_bytes()
    spoil(inputs)
    assert carried_out(tmp_path, "one") == []
    assert inputs.read_bytes() == before, "other processes read these"


def test_parts_of_another_evaluation_and_of_another_place_are_computed_again(tmp_path: Path) -> None:
    assert carried_out(tmp_path, "one") == [0, 1, 2]
    assert carried_out(tmp_path, "another") == [0, 1, 2], "such as one of other weights, copied into this folder"
    (first,) = tmp_path.glob("*/000000.safetensors")
    shutil.copyfile(first, first.with_name("000002.safetensors"))
    assert carried_out(tmp_path, "another") == [2]


def test_a_changed_attack_and_a_changed_proof_are_left_out(tmp_path: Path) -> None:
    columns = AttackColumns.untried(4)
    images = StoredImages(np.arange(2), np.zeros((2, 1, 2, 2), np.float32))
    eight_bit = EightBitImages(np.arange(1), np.zeros((1, 1, 2, 2), np.uint8))
    checkpoint = EvaluationCheckpoint(tmp_path, "one")
    checkpoint.save("pgd", AttackEvidence(columns, images, 0, 1.0, eight_bit))
    assert checkpoint.load("pgd") is not None
    shutil.copyfile(tmp_path / "pgd.safetensors", tmp_path / "fgsm.safetensors")
    assert checkpoint.load("fgsm") is None, "of another attack"
    edit(tmp_path / "pgd.safetensors")
    assert checkpoint.load("pgd") is None

    folder = PartFolder(tmp_path / "proofs", "one")
    terms = CertificateTerms("model", None)
    folder.save(CertifiedPart.failed(torch.arange(2), terms, "no", 1.0))
    assert len(folder.load()) == 1
    edit(next(folder.folder.glob("*.safetensors")))
    assert folder.load() == []
