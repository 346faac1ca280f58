"""The audit of verdicts in 8 bits: honest ones pass, forged ones fail with their reason."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from forging import Tensors, edit_images, edit_table, problems, reseal
from numpy.typing import NDArray

from half_space import SUITE as WITH_PROOF
from half_space import target
from robustly.attacks import PGD
from robustly.evaluation import Suite, audit, evaluate
from robustly.evaluation.audit.eight_bit import eight_bit_checks
from robustly.evaluation.audit.rounding import Rounding
from robustly.evidence import Evidence, EvidenceTable, read_evidence, write_evidence
from robustly.threats import parse_threat

SUITE = replace(WITH_PROOF, certificates={})
IDS, IMAGES = "8bit.across.ids", "8bit.across.images"


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    t = target()
    return evaluate(t.model, t.data, t.threat, SUITE, batch_size=8, curve_count=None)


@pytest.fixture
def folder(evidence: Evidence, tmp_path: Path) -> Path:
    write_evidence(evidence, tmp_path)
    return tmp_path


def found(folder: Path) -> str:
    """Problems that the checks of the 8-bit verdicts name."""
    checks = eight_bit_checks(read_evidence(folder), target(), Rounding(1.0))
    return "; ".join(f"{check.name}: {check.problem}" for check in checks if check.problem)


def test_honest_verdicts_pass(folder: Path) -> None:
    result = audit(folder, target(), SUITE)
    assert result.passed, problems(result)
    names = [check.name for check in result.checks if "8 bits" in check.name or "8-bit" in check.name]
    assert len(names) == 2 * len(SUITE.attacks)


def row(evidence_table: EvidenceTable, which: Callable[[EvidenceTable], NDArray[np.bool_]]) -> int:
    return int(np.flatnonzero(which(evidence_table))[0])


def searched(table: EvidenceTable) -> NDArray[np.bool_]:
    columns = table.attacks["across"]
    return columns.tried & columns.broken


def kinder(table: EvidenceTable) -> None:
    table.attacks["across"].broken_8bit[row(table, searched)] = False


def worse(table: EvidenceTable) -> None:
    standing = row(table, lambda one: one.correct & ~one.attacks["across"].broken)
    table.attacks["across"].broken_8bit[standing] = table.worst_case.broken_8bit[standing] = True


def clean_counts_as_right(table: EvidenceTable) -> None:
    table.attacks["across"].broken_8bit[row(table, lambda one: ~one.correct)] = False


def free_of_cost(table: EvidenceTable) -> None:
    table.attacks["across"].passes_8bit[:] = 0


def costs_elsewhere(table: EvidenceTable) -> None:
    table.attacks["across"].passes_8bit[row(table, lambda one: ~one.attacks["across"].broken)] = 3


def negative(table: EvidenceTable) -> None:
    table.attacks["across"].passes_8bit[row(table, lambda one: ~one.attacks["across"].tried)] = -3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (kinder, "verdicts that the images do not show"),
        (worse, "verdicts that the images do not show"),
        (clean_counts_as_right, "verdicts that the images do not show"),
        (free_of_cost, "searches without a pass"),
        (costs_elsewhere, "pass counts without a search"),
        (negative, "negative pass counts"),
    ],
)
def test_a_forged_row_fails(folder: Path, change: Callable[[EvidenceTable], None], reason: str) -> None:
    edit_table(folder, change)
    assert reason in found(folder)
    reseal(folder)
    assert reason in problems(audit(folder, target(), SUITE))


def original(images: Tensors) -> None:
    """The clean image in place of the adversarial one."""
    data = target().data
    place = data.ids.tolist().index(int(images[IDS][0]))
    images[IMAGES][0] = data.images[place].numpy()


def too_far(images: Tensors) -> None:
    images[IMAGES][0] = 255 - images[IMAGES][0]


def twice(images: Tensors) -> None:
    for name in (IDS, IMAGES):
        images[name] = np.concatenate([images[name], images[name][:1]])


def of_another_example(images: Tensors) -> None:
    standing = [identity for identity in target().data.ids.tolist() if identity not in images["across.ids"]]
    images[IDS][0] = standing[0]


def with_parameters(images: Tensors) -> None:
    images["8bit.across.theta"] = np.zeros((len(images[IDS]), 3), np.float32)


def absent(images: Tensors) -> None:
    del images[IDS], images[IMAGES]


def of_nobody(images: Tensors) -> None:
    images["8bit.ghost.ids"], images["8bit.ghost.images"] = images[IDS].copy(), images[IMAGES].copy()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (original, "images are classified correctly"),
        (too_far, "images outside the threat set"),
        (twice, "an example has two images"),
        (of_another_example, "images of examples that the attack did not break"),
        (with_parameters, "parameters are stored"),
        (absent, "no images of 8 bits are stored"),
        (of_nobody, "there is no attack ghost"),
    ],
)
def test_a_forged_image_fails(folder: Path, change: Callable[[Tensors], None], reason: str) -> None:
    edit_images(folder, change)
    assert reason in found(folder)
    reseal(folder)
    assert reason in problems(audit(folder, target(), SUITE))


def test_images_that_were_left_out_are_found_again(folder: Path) -> None:
    """Rows and images agree that nothing was found in 8 bits; the repeated search disagrees."""

    def robust(table: EvidenceTable) -> None:
        wrong = ~table.correct
        for columns in (*table.attacks.values(), table.worst_case):
            columns.broken_8bit[:] = wrong

    def empty(images: Tensors) -> None:
        for name in list(images):
            if name.startswith("8bit."):
                images[name] = images[name][:0]

    edit_table(folder, robust)
    edit_images(folder, empty)
    reseal(folder)
    assert "across: 8-bit images of 5 examples that have none searched again: 5 found" in problems(
        audit(folder, target(), SUITE)
    )


TURNED = Suite("turned", {"pgd": PGD(8, precision="full")}, curve="pgd")


def turn_further(images: Tensors) -> None:
    images["8bit.pgd.theta"][:] = 80.0


def turn_otherwise(images: Tensors) -> None:
    images["8bit.pgd.theta"] *= -1


def without_parameters(images: Tensors) -> None:
    del images["8bit.pgd.theta"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (None, ""),
        (turn_further, "images outside the threat set"),
        (turn_otherwise, "images outside the threat set"),
        (without_parameters, "parameters of the threat are missing"),
    ],
)
def test_images_rendered_from_parameters(
    tmp_path: Path, change: Callable[[Tensors], None] | None, reason: str
) -> None:
    turning = replace(target(), threat=parse_threat("rotation:70"))
    evidence = evaluate(turning.model, turning.data, turning.threat, TURNED, batch_size=20, curve_count=None)
    assert len(evidence.images.eight_bit["pgd"]) > 2
    write_evidence(evidence, tmp_path)
    if change is not None:
        edit_images(tmp_path, change)
    checks = eight_bit_checks(read_evidence(tmp_path), turning, Rounding(1.0))
    told = "; ".join(check.problem for check in checks)
    assert (reason in told) if reason else not told.strip("; ")


def test_pixels_of_another_type_are_refused(folder: Path) -> None:
    def floats(images: Tensors) -> None:
        images[IMAGES] = images[IMAGES].astype(np.float32) / 255

    edit_images(folder, floats)
    reseal(folder)
    assert "8bit.across.images should be uint8" in problems(audit(folder, target(), SUITE))
