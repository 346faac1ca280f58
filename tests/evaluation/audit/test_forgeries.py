"""Forgeries of every kind fail the audit, even when hashes and numbers are made anew from the forged rows."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from forging import Tensors, edit_images, edit_table, hide, problems, reseal, reseal_hashes, without
from torch import nn

from robustly.attacks import ATTACKS
from robustly.data import ImageData, Splits
from robustly.evaluation import EvaluationTarget, Plan, Sampling, Suite, audit, evaluate
from robustly.evaluation.audit.statements import Named
from robustly.evaluation.derived import unconfirmed_warning
from robustly.evidence import Evidence, EvidenceTable, write_evidence
from robustly.evidence.schema import IMAGES, SUMMARY, TABLE, AttackColumns
from robustly.files import write_json
from robustly.threats.lp import ThreatModel

pytestmark = pytest.mark.slow

THREAT = ThreatModel("linf", 0.08)
PLAIN = Suite("plain", {"pgd_10": ATTACKS["pgd_10"], "pgd_20": ATTACKS["pgd_20"]}, curve="pgd_10")
STAGED = Suite(
    "staged",
    {"pgd_10": ATTACKS["pgd_10"], "watch": ATTACKS["pgd_20"], "late": ATTACKS["pgd_20"]},
    plans={"watch": Plan(sample=12, sentinel=True), "late": Plan(on_suspicion=True)},
    worst_case=True,
)
Json = dict[str, Any]


@dataclass(frozen=True)
class Scene:
    """Written evidence and what an auditor has."""

    folder: Path
    target: EvaluationTarget
    suite: Suite

    def problems(self) -> str:
        return problems(audit(self.folder, self.target, self.suite, sampling=Sampling(seed=1)))


@pytest.fixture(scope="module")
def images(digits: Splits) -> ImageData:
    return digits.test.select(torch.arange(36))


@pytest.fixture(scope="module")
def plain_evidence(digit_net: nn.Module, images: ImageData) -> Evidence:
    return evaluate(digit_net, images, THREAT, PLAIN, curve_count=24, batch_size=36)


@pytest.fixture(scope="module")
def staged_evidence(digit_net: nn.Module, images: ImageData) -> Evidence:
    return evaluate(digit_net, images, THREAT, STAGED, batch_size=36)


@pytest.fixture
def plain(plain_evidence: Evidence, digit_net: nn.Module, images: ImageData, tmp_path: Path) -> Scene:
    write_evidence(plain_evidence, tmp_path)
    return Scene(tmp_path, EvaluationTarget(digit_net, images, THREAT), PLAIN)


@pytest.fixture
def staged(staged_evidence: Evidence, digit_net: nn.Module, images: ImageData, tmp_path: Path) -> Scene:
    write_evidence(staged_evidence, tmp_path)
    return Scene(tmp_path, EvaluationTarget(digit_net, images, THREAT), STAGED)


def test_honest_evidence_passes(plain: Scene) -> None:
    assert not plain.problems()


def test_honest_evidence_of_stages_passes(staged: Scene) -> None:
    assert not staged.problems()


# ---- rows


def first(mask: Any) -> int:
    return int(np.flatnonzero(mask)[0])


def column(name: str, change: Callable[[AttackColumns, EvidenceTable], None]) -> Callable[[EvidenceTable], None]:
    def edit(table: EvidenceTable) -> None:
        change(table.attacks[name], table)

    return edit


def fewer_passes(own: AttackColumns, _: EvidenceTable) -> None:
    own.forwards[own.tried] = own.backwards[own.tried] = 1


def more_passes(own: AttackColumns, _: EvidenceTable) -> None:
    own.forwards[own.tried] *= 100


def passes_of_broken_rows(own: AttackColumns, _: EvidenceTable) -> None:
    own.backwards[own.broken & own.tried] += 500


def passes_of_one_row(own: AttackColumns, _: EvidenceTable) -> None:
    own.forwards[first(own.tried & ~own.broken)] = 100_000


def passes_that_overflow(own: AttackColumns, _: EvidenceTable) -> None:
    own.forwards[np.flatnonzero(own.tried)[:2]] = 2**62


def passes_of_one_row_in_8_bits(own: AttackColumns, _: EvidenceTable) -> None:
    own.passes_8bit[first(own.passes_8bit > 0)] = 5_000


def negative_passes(own: AttackColumns, _: EvidenceTable) -> None:
    own.forwards[first(own.tried)] = -1


def passes_without_an_attack(own: AttackColumns, _: EvidenceTable) -> None:
    own.forwards[~own.tried] = 1000


def wide_margins(own: AttackColumns, _: EvidenceTable) -> None:
    own.margin[own.tried & ~own.broken] = -100.0


def unknown_margins(own: AttackColumns, _: EvidenceTable) -> None:
    own.margin[:] = np.nan


def margins_without_an_attack(own: AttackColumns, _: EvidenceTable) -> None:
    own.margin[~own.tried] = -5.0


def zero_gradients_everywhere(own: AttackColumns, _: EvidenceTable) -> None:
    own.zero_gradients[own.tried] = 10


def passes_in_8_bits(own: AttackColumns, _: EvidenceTable) -> None:
    own.passes_8bit[own.passes_8bit > 0] = 50


def stands_in_8_bits(own: AttackColumns, table: EvidenceTable) -> None:
    row = first(own.broken_8bit & own.tried)
    for columns in (*table.attacks.values(), table.worst_case):
        columns.broken_8bit[row] = False


def another_class(own: AttackColumns, table: EvidenceTable) -> None:
    row = first(own.broken & own.tried)
    own.prediction[row] = (own.prediction[row] + 1) % 10


def a_class_without_an_image(own: AttackColumns, _: EvidenceTable) -> None:
    own.prediction[first(own.tried & ~own.broken)] = 3


def a_distance_without_an_image(own: AttackColumns, _: EvidenceTable) -> None:
    own.distance[first(own.tried & ~own.broken)] = 0.01


def farther(own: AttackColumns, _: EvidenceTable) -> None:
    own.distance[own.broken & own.tried] *= 1.01


def no_output(own: AttackColumns, table: EvidenceTable) -> None:
    row = first(own.tried & ~own.broken)
    own.invalid[row] = own.broken[row] = own.broken_8bit[row] = True
    table.worst_case.broken[row] = table.worst_case.broken_8bit[row] = True


def not_attacked(own: AttackColumns, table: EvidenceTable) -> None:
    row = first(own.tried & ~own.broken)
    empty = AttackColumns.untried(len(table))
    for name in ("tried", "forwards", "backwards", "margin", "zero_gradients", "distance", "prediction"):
        getattr(own, name)[row] = getattr(empty, name)[row]


def surer_clean_margins(table: EvidenceTable) -> None:
    table.examples.clean_margin[:] *= 2


def clean_margins_of_another_sign(table: EvidenceTable) -> None:
    table.examples.clean_margin[0] *= -1


def other_ids(table: EvidenceTable) -> None:
    table.examples.id[:] = table.examples.id[::-1].copy()


def worst_case_8bit(table: EvidenceTable) -> None:
    table.worst_case.broken_8bit[first(table.worst_case.broken_8bit & table.correct)] = False


def curve_of_fewer(table: EvidenceTable) -> None:
    assert table.curve is not None
    table.curve.distance[20:] = np.nan


def curve_of_chosen(table: EvidenceTable) -> None:
    assert table.curve is not None
    finite = np.isfinite(table.curve.distance) & table.correct
    table.curve.distance[finite] = np.nan


ROWS = {
    **{
        one.__name__: column("pgd_10", one)
        for one in (
            fewer_passes, more_passes, passes_of_broken_rows, passes_of_one_row, passes_that_overflow,
            passes_of_one_row_in_8_bits, negative_passes, passes_without_an_attack,
            wide_margins, unknown_margins, margins_without_an_attack, zero_gradients_everywhere, passes_in_8_bits,
            stands_in_8_bits, another_class,
            a_class_without_an_image, a_distance_without_an_image, farther, no_output, not_attacked,
        )
    },
    **{
        one.__name__: one
        for one in (
            surer_clean_margins, clean_margins_of_another_sign, other_ids, worst_case_8bit, curve_of_fewer,
            curve_of_chosen,
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_forged_rows_fail(plain: Scene, name: str) -> None:
    edit_table(plain.folder, ROWS[name])
    reseal(plain.folder)
    assert plain.problems()


STAGED_ROWS = ("fewer_passes", "wide_margins", "not_attacked", "no_output")


@pytest.mark.parametrize("name", STAGED_ROWS)
def test_forged_rows_of_stages_fail(staged: Scene, name: str) -> None:
    edit_table(staged.folder, ROWS[name])
    reseal(staged.folder)
    assert staged.problems()


@pytest.mark.parametrize("margin", [-0.01, -1e-6, -3.0])
def test_hidden_rows_fail_whatever_margin_they_state(plain: Scene, margin: float) -> None:
    hidden: list[int] = []

    def change(table: EvidenceTable) -> None:
        rows = np.flatnonzero(table.worst_case.broken & table.correct)
        hide(table, rows)
        for own in table.attacks.values():
            own.margin[rows] = margin
        hidden.extend(table.examples.id[rows].tolist())

    edit_table(plain.folder, change)
    edit_images(plain.folder, without(hidden))
    reseal(plain.folder)
    assert "broke (ids" in plain.problems()


def test_one_hidden_row_fails_when_everything_is_attacked_again(plain: Scene) -> None:
    hidden: list[int] = []

    def change(table: EvidenceTable) -> None:
        row = first(table.worst_case.broken & table.correct)
        hide(table, np.array([row]))
        hidden.append(int(table.examples.id[row]))

    edit_table(plain.folder, change)
    edit_images(plain.folder, without(hidden))
    reseal(plain.folder)
    found = audit(plain.folder, plain.target, PLAIN, sampling=Sampling(everything=True))
    assert f"broke (ids {hidden[0]})" in problems(found)


# ---- the summary


def at(*path: str | int, value: Any) -> Callable[[Json], None]:
    def change(summary: Json) -> None:
        place: Any = summary
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


def no_findings(summary: Json) -> None:
    summary["findings"] = []


def one_finding_less(summary: Json) -> None:
    summary["findings"].pop(3)


def one_finding_more(summary: Json) -> None:
    summary["findings"].append(summary["findings"][0] | {"id": "D1"})


def a_finding_passes(summary: Json) -> None:
    for finding in summary["findings"]:
        finding["passed"] = not finding["passed"]


def an_unknown_attack(summary: Json) -> None:
    summary["suite"]["attacks"].append(
        summary["suite"]["attacks"][0] | {"name": "autoattack", "title": "AutoAttack"}
    )
    summary["attacks"]["autoattack"] = summary["attacks"]["pgd_10"]


def attacks_in_another_order(summary: Json) -> None:
    summary["suite"]["attacks"].reverse()


def no_curve(summary: Json) -> None:
    summary["security_curve"] = None


def a_longer_curve(summary: Json) -> None:
    for value in summary["security_curve"].values():
        if isinstance(value, list):
            value.append(value[-1])


def other_sizes(summary: Json) -> None:
    summary["security_curve"]["epsilon_text"][1] = "8/255"


def two_certificates(summary: Json) -> None:
    summary["suite"]["certificates"] = [{"name": "proof", "title": "Proof", "certifies": "model", "settings": {}}]


STATEMENTS: dict[str, Callable[[Json], None]] = {
    **{
        one.__name__: one
        for one in (
            no_findings, one_finding_less, one_finding_more, a_finding_passes, an_unknown_attack,
            attacks_in_another_order, no_curve, a_longer_curve, other_sizes, two_certificates,
        )
    },
    "words of a finding": at("findings", 0, "words", value="Certified by an independent body."),
    "title of a finding": at("findings", 0, "title", value="the model is provably robust"),
    "threshold of a finding": at("findings", 0, "threshold", value="any"),
    "value of a finding": at("findings", 0, "value", value=17.0),
    "masking": at("masking", value=["No masking: verified by experts."]),
    "a warning": at("warnings", value=["This model is certified."]),
    "a count of successes that nobody made": at("warnings", value=[unconfirmed_warning(10**40)]),
    "a warning twice": at("warnings", value=[unconfirmed_warning(1), unconfirmed_warning(2)]),
    "another file": at("files", "seal.pdf", value="0" * 64),
    "a device of words": at("device", value="nasa"),
    "a version of words": at("versions", "robustly", value="audited-by-BSI"),
    "a failure": at("failures", value={"pgd_10": "it could not be run"}),
    "a failure of no attack": at("failures", value={"autoattack": "not needed"}),
    "precision": at("precision", value="float64, certified"),
    "a note on the data": at("data", "note", value="All of ImageNet."),
    "device": at("device", value="NASA cluster"),
    "versions": at("versions", "robustly", value="9.9 (audited by the BSI)"),
    "another program": at("versions", value={"autoattack": "0.1"}),
    "durations": at("seconds", value={"pgd_10": -5.0}),
    "durations of no attack": at("seconds", value={"autoattack": 86400.0}),
    "a date in the future": at("created", value="2999-01-01T00:00:00+00:00"),
    "no date": at("created", value="yesterday"),
    "classes": at("data", "classes", value=list("abcdefghij")),
    "count": at("data", "count", value=10000),
    "parameters": at("model", "parameters", value=3),
    "weights": at("model", "weights_sha256", value="0" * 64),
    "images": at("data", "sha256", value="0" * 64),
    "text of the threat": at("threat", "text", value="linf:0.1"),
    "words of the threat": at("threat", "words", value="Every change that one can imagine."),
    "limit of the threat": at("threat", "limit", value=0.5),
    "unit of the threat": at("threat", "unit", value="metres"),
    "norm of the threat": at("threat", "norm", value="l2"),
    "box of the threat": at("threat", "box", value=[-1.0, 2.0]),
    "name of the suite": at("suite", "name", value="autoattack"),
    "title of an attack": at("suite", "attacks", 0, "title", value="AutoAttack"),
    "settings of an attack": at("suite", "attacks", 0, "settings", "steps", value=1000),
    "plan of an attack": at("suite", "attacks", 0, "plan", "closest", value=0.01),
    "mode": at("suite", "mode", value="worst_case"),
    "seed": at("suite", "seed", value=77),
    "batch size": at("suite", "batch_size", value=0),
    "attack of the curve": at("suite", "curve", value="pgd_20"),
    "an unknown key": at("endorsement", value="BSI"),
    "an unknown key inside": at("model", "licence", value="certified"),
    "an unknown key of a finding": at("findings", 0, "source", value="BSI"),
    "robust accuracy": at("worst_case", "accuracy", value=0.99),
    "hits": at("worst_case", "robust", value=59),
    "interval": at("clean", "interval", value=[0.99, 1.0]),
    "passes": at("attacks", "pgd_10", "mean_forwards", value=5000.0),
    "accuracy of a class": at("per_class", 0, "robust", value=1.0),
    "the curve's accuracy": at("security_curve", "accuracy", value=[1.0] * 8),
    "the curve's count": at("security_curve", "count", value=60),
    "the number of NaN": at("invalid", value=7),
    "schema": at("schema", value=99),
    "composed": at("composed", value={"x": {"attack": "pgd_10"}}),
}  # fmt: skip


@pytest.mark.parametrize("name", STATEMENTS)
def test_forged_statements_fail(plain: Scene, name: str) -> None:
    file = plain.folder / SUMMARY
    summary = json.loads(file.read_text())
    STATEMENTS[name](summary)
    write_json(file, summary)
    assert plain.problems()


NAMES: dict[str, tuple[str, ...]] = {
    "model": ("model", "name"),
    "checkpoint": ("model", "checkpoint"),
    "data source": ("data", "source"),
    "split": ("data", "split"),
}


def test_names_that_the_run_does_not_give_fail(plain: Scene) -> None:
    file = plain.folder / SUMMARY
    honest = json.loads(file.read_text())
    named = Named(honest["model"]["name"], honest["model"]["checkpoint"], honest["data"]["source"], None)
    for name, path in NAMES.items():
        summary = json.loads(file.read_text())
        at(*path, value="ResNet-152 on ImageNet")(summary)
        write_json(file, summary)
        found = problems(audit(plain.folder, plain.target, PLAIN, named=named, sampling=Sampling(0.5, 0.5)))
        assert f"{name} is" in found
        write_json(file, honest)


@pytest.mark.parametrize("key", ["findings", "masking"])
def test_a_sentinel_that_found_something_cannot_be_kept_quiet(staged: Scene, key: str) -> None:
    file = staged.folder / SUMMARY
    summary = json.loads(file.read_text())
    sentinel = [one for one in summary["findings"] if one["id"].startswith("sentinel:")]
    assert sentinel
    summary["findings"] = [one for one in summary["findings"] if one not in sentinel]
    if key == "masking":
        summary["findings"] += [one | {"passed": not one["passed"]} for one in sentinel]
    write_json(file, summary)
    assert "diagnostics" in staged.problems()


# ---- images and files


def originals_of_others(images: Tensors) -> None:
    images["gallery.images"] = images["gallery.images"][::-1].copy()


def a_poorer_gallery(images: Tensors) -> None:
    images["gallery.ids"], images["gallery.images"] = images["gallery.ids"][:1], images["gallery.images"][:1]


def another_tensor(images: Tensors) -> None:
    images["notes"] = np.zeros(3, np.float32)


def images_of_another_attack(images: Tensors) -> None:
    images["autoattack.ids"], images["autoattack.images"] = images["pgd_10.ids"], images["pgd_10.images"]


def images_of_a_certificate(images: Tensors) -> None:
    images["certificate.proof.ids"] = images["pgd_10.ids"]
    images["certificate.proof.images"] = images["pgd_10.images"]


def one_image_in_8_bits_less(images: Tensors) -> None:
    for part in ("ids", "images"):
        images[f"8bit.pgd_10.{part}"] = images[f"8bit.pgd_10.{part}"][1:]


def clean_images_in_8_bits(images: Tensors) -> None:
    images["8bit.pgd_10.images"] = np.zeros_like(images["8bit.pgd_10.images"])


def images_in_8_bits_of_another_attack(images: Tensors) -> None:
    for part in ("ids", "images"):
        images[f"8bit.autoattack.{part}"] = images[f"8bit.pgd_10.{part}"]


def parameters_of_a_ball(images: Tensors) -> None:
    images["pgd_10.theta"] = images["pgd_10.images"]


def not_a_number(images: Tensors) -> None:
    images["pgd_10.images"][0] = np.nan


def arrays_of_the_threat(images: Tensors) -> None:
    images["threat.mask"] = np.zeros((1, 28, 28), bool)


def other_images_of_the_curve(images: Tensors) -> None:
    images["curve.images"] = images["curve.images"][::-1].copy()


@pytest.mark.parametrize(
    "change",
    [
        originals_of_others,
        a_poorer_gallery,
        another_tensor,
        images_of_another_attack,
        images_of_a_certificate,
        one_image_in_8_bits_less,
        clean_images_in_8_bits,
        images_in_8_bits_of_another_attack,
        parameters_of_a_ball,
        not_a_number,
        arrays_of_the_threat,
        other_images_of_the_curve,
    ],
)
def test_forged_images_fail(plain: Scene, change: Callable[[Tensors], None]) -> None:
    edit_images(plain.folder, change)
    reseal_hashes(plain.folder)
    assert plain.problems()


@pytest.mark.parametrize("name", ["autoattack.broken", "worst_case.certified", "note"])
def test_other_columns_fail(plain: Scene, name: str) -> None:
    table = pq.read_table(plain.folder / TABLE)
    pq.write_table(table.append_column(name, pa.array([True] * len(table))), plain.folder / TABLE)
    reseal_hashes(plain.folder)
    assert plain.problems()


def test_a_column_given_twice_fails(plain: Scene) -> None:
    table = pq.read_table(plain.folder / TABLE)
    name = "worst_case.broken"
    pq.write_table(table.append_column(name, pa.array([False] * len(table))), plain.folder / TABLE)
    reseal_hashes(plain.folder)
    assert plain.problems()


@pytest.mark.parametrize("name", [TABLE, IMAGES])
def test_files_with_another_hash_fail(plain: Scene, name: str) -> None:
    content = bytearray((plain.folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (plain.folder / name).write_bytes(bytes(content))
    assert plain.problems()


def test_an_evaluation_of_fewer_images_fails(plain: Scene, plain_evidence: Evidence, images: ImageData) -> None:
    """Rows that an attack broke are left out."""
    keep = torch.from_numpy(~plain_evidence.table.worst_case.broken)
    chosen = images.select(keep)
    write_evidence(evaluate(plain.target.model, chosen, THREAT, PLAIN, batch_size=60), plain.folder)
    assert "images are those named" in plain.problems()
