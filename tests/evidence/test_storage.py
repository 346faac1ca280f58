"""Evidence on disk: what is written is read, whole or not at all, and damage is named."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from half_space import SUITE, THREAT, half_space, images
from robustly.evaluation import evaluate
from robustly.evidence import Evidence, EvidenceError, StoredImages, Verdict, read_evidence, write_evidence
from robustly.evidence.records import to_json
from robustly.evidence.schema import IMAGES, SUMMARY, TABLE, EvidenceTable
from robustly.evidence.storage import read_images, read_pictures, read_table, read_threat_arrays


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    return evaluate(half_space(), images(), THREAT, SUITE, batch_size=7)


@pytest.fixture
def folder(evidence: Evidence, tmp_path: Path) -> Path:
    write_evidence(evidence, tmp_path)
    return tmp_path


def assert_same(one: Evidence, other: Evidence) -> None:
    for mine, theirs in (
        (one.table.columns(), other.table.columns()),
        (one.images.tensors(), other.images.tensors()),
    ):
        assert list(mine) == list(theirs) or mine.keys() == theirs.keys()
        for name, values in mine.items():
            assert values.dtype == theirs[name].dtype
            np.testing.assert_array_equal(values, theirs[name])
    assert to_json(replace(one.summary, files={})) == to_json(replace(other.summary, files={}))


def test_evidence_survives_the_disk(folder: Path, evidence: Evidence) -> None:
    assert_same(read_evidence(folder), evidence)
    assert sorted(path.name for path in folder.iterdir()) == sorted([SUMMARY, TABLE, IMAGES])


def test_parameters_of_the_change_and_arrays_of_the_threat_survive_the_disk(
    evidence: Evidence, tmp_path: Path
) -> None:
    """Room for threats whose search does not move the image itself, and for masks."""
    kept = evidence.images.attacks["across"]
    theta = np.arange(3 * len(kept), dtype=np.float32).reshape(len(kept), 3)
    mask = np.eye(4, dtype=bool)
    stored = replace(
        evidence.images,
        attacks={**evidence.images.attacks, "across": replace(kept, theta=theta)},
        threat={"mask": mask},
    )
    threat = replace(evidence.summary.threat, text="rotation:30", kind="rotation", unit="degrees", norm=None)
    changed = Evidence(evidence.table, stored, replace(evidence.summary, threat=threat))
    write_evidence(changed, tmp_path)
    assert {"across.theta", "threat.mask"} <= set(load_file(tmp_path / IMAGES))
    back = read_evidence(tmp_path)
    assert_same(back, changed)
    arrays = read_threat_arrays(tmp_path)
    assert arrays.keys() == {"mask"}
    np.testing.assert_array_equal(arrays["mask"], mask)
    assert back.images.attacks["halfway"].theta is None
    assert back.summary.threat.norm is None
    chosen = back.images.attacks["across"].only(np.arange(len(kept)) % 2 == 0)
    assert chosen.theta is not None
    np.testing.assert_array_equal(chosen.theta, theta[::2])
    joined = StoredImages.joined([chosen, chosen])
    assert joined.theta is not None
    assert joined.theta.shape == (2 * len(chosen), 3)


def test_verdicts_are_words_in_the_file(folder: Path, evidence: Evidence) -> None:
    words = pq.read_table(folder / TABLE)["certificate.proof.verdict"].to_pylist()
    codes = evidence.table.certificates["proof"].verdict
    assert words == [Verdict(code).word for code in codes]
    assert set(words) == {"verified", "unknown"}


def change_column(folder: Path, name: str, values: object) -> None:
    table = pq.read_table(folder / TABLE)
    place = table.column_names.index(name)
    table = table.remove_column(place)
    pq.write_table(table if values is None else table.append_column(name, values), folder / TABLE)


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("across.tried", None, ["across.tried", "missing"]),
        ("label", None, ["label", "missing"]),
        ("certificate.proof.radius", None, ["certificate.proof.radius", "missing"]),
        ("across.broken", pa.array([1] * 20), ["across.broken", "bool", "int64"]),
        ("across.margin", pa.array([1.0] * 20), ["across.margin", "float32", "float64"]),
        ("id", pa.array([None, *range(19)]), ["id", "missing"]),
        ("certificate.proof.verdict", pa.array(["safe"] * 20), ["certificate.proof.verdict", "safe"]),
    ],
)
def test_a_wrong_column_is_named(folder: Path, name: str, values: object, words: list[str]) -> None:
    change_column(folder, name, values)
    with pytest.raises(EvidenceError) as error:
        read_table(folder)
    for word in (TABLE, *words):
        assert word in str(error.value)


@pytest.mark.parametrize("name", ["depth", "worst_case.depth", "certificate.proof.depth", "other.broken"])
def test_a_column_that_the_schema_does_not_have_is_refused(folder: Path, name: str) -> None:
    table = pq.read_table(folder / TABLE)
    pq.write_table(table.append_column(name, pa.array([1.0] * 20)), folder / TABLE)
    with pytest.raises(EvidenceError, match=f"{name}|other"):
        read_evidence(folder)


@pytest.mark.parametrize("name", ["depth", "across.depth", "curve.depth"])
def test_a_tensor_that_the_schema_does_not_have_is_refused(folder: Path, name: str) -> None:
    tensors = load_file(folder / IMAGES)
    save_file(tensors | {name: np.zeros(1, np.float32)}, folder / IMAGES)
    with pytest.raises(EvidenceError, match=f"{name}.*is not one of this schema"):
        read_evidence(folder)


@pytest.mark.parametrize("part", ["ids", "images"])
def test_images_that_do_not_fit_their_ids_are_named(folder: Path, part: str) -> None:
    tensors = load_file(folder / IMAGES)
    tensors[f"across.{part}"] = tensors[f"across.{part}"][1:].copy()
    save_file(tensors, folder / IMAGES)
    for read in (read_images, read_pictures):
        with pytest.raises(EvidenceError, match=rf"{IMAGES}.*across\.images does not fit"):
            read(folder)


def test_parameters_that_do_not_fit_their_ids_are_named(folder: Path) -> None:
    tensors = load_file(folder / IMAGES)
    save_file(tensors | {"across.theta": np.zeros((1, 3), np.float32)}, folder / IMAGES)
    with pytest.raises(EvidenceError, match=rf"{IMAGES}.*across\.theta does not fit"):
        read_images(folder)


@pytest.mark.parametrize("name", [SUMMARY, TABLE, IMAGES])
def test_a_file_that_is_missing_or_cut_off_is_named(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(EvidenceError, match=name):
        read_evidence(folder)
    (folder / name).unlink()
    with pytest.raises(EvidenceError, match=f"{name} is missing"):
        read_evidence(folder)


def test_after_a_crash_no_old_summary_stands_beside_new_files(
    folder: Path, evidence: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("robustly.array_files.save_file", crash)
    with pytest.raises(OSError, match="disk full"):
        write_evidence(evidence, folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted([TABLE, IMAGES])


def test_numbers_of_other_attacks_than_the_suite_are_refused(folder: Path) -> None:
    file = folder / SUMMARY
    summary = json.loads(file.read_text())
    summary["attacks"]["extra"] = summary["attacks"].pop("halfway")
    file.write_text(json.dumps(summary))
    with pytest.raises(EvidenceError, match=r"summary\.json.*across, halfway"):
        read_evidence(folder)


def test_only_images_of_the_gallery_are_read_for_a_report(folder: Path, evidence: Evidence) -> None:
    pictures = read_pictures(folder)
    np.testing.assert_array_equal(pictures.ids, evidence.images.gallery.ids)
    own = evidence.images.attacks["across"]
    assert set(pictures.adversarial) == {"across", "halfway"}
    for identity, image in pictures.adversarial["across"].items():
        assert identity in pictures.ids
        np.testing.assert_array_equal(image, own.images[own.ids == identity][0])


def test_a_table_of_its_own_columns_is_the_same_table(evidence: Evidence) -> None:
    columns = evidence.table.columns()
    assert list(EvidenceTable.from_columns(columns).columns()) == list(columns)


def test_a_summary_reads_like_its_file(folder: Path, evidence: Evidence) -> None:
    on_disk = json.loads((folder / SUMMARY).read_text())
    for key in ("worst_case", "threat", "masking", "schema"):
        assert evidence.summary[key] == on_disk[key]
    with pytest.raises(KeyError):
        evidence.summary["nothing"]
