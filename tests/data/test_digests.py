"""Digests of rows: of the image alone, and of image, label and id; what was exchanged is counted."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from robustly.data import ImageData, RowDigests, row_digests
from robustly.data.digests import joined_digests


def made(count: int = 6) -> ImageData:
    pixels = torch.arange(count * 2 * 3 * 4).reshape(count, 2, 3, 4) % 251
    return ImageData(
        pixels.to(torch.uint8), torch.arange(count) % 3, torch.arange(count) * 10, ("a", "b", "c"), "made"
    )


def test_a_digest_is_of_pixels_and_shape_alone() -> None:
    data = made()
    found = row_digests(data)
    strided = replace(data, images=data.images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2))
    floats = ImageData.from_floats(data.floats().double(), data.labels, data.classes, ids=data.ids)
    for same in (strided, floats, replace(data, labels=data.labels.flip(0)), replace(data, ids=data.ids + 1)):
        assert np.array_equal(row_digests(same).images, found.images)
    for other in (replace(data, images=data.images ^ 1), replace(data, images=data.images.reshape(6, 2, 4, 3))):
        assert not (row_digests(other).images == found.images).all(axis=1).any()
    assert len({image.tobytes() for image in found.images}) == 6


def test_a_known_digest() -> None:
    one = ImageData(
        torch.zeros(1, 1, 1, 1, dtype=torch.uint8), torch.tensor([0]), torch.tensor([0]), ("a",), "made"
    )
    # blake2b of "(1, 1, 1)", byte 30, byte 0: the format on the disk, which may not change
    assert row_digests(one).images.tobytes().hex() == "bf04ff7079d5a24284fe82904284e81b"


def test_rows_are_found_under_any_label_but_are_the_same_with_label_and_id_only() -> None:
    data = made()
    all_rows, last = row_digests(data), row_digests(data.select(torch.tensor([5, 2])))
    assert all_rows.found_in(last).tolist() == [False, False, True, False, False, True]
    relabelled = row_digests(replace(data, labels=(data.labels + 1) % 3))
    moved = row_digests(replace(data, ids=data.ids.flip(0)))
    assert all_rows.found_in(relabelled).all()
    assert all_rows.found_in(moved).all()
    assert all_rows.same_in(row_digests(data)).all()
    assert not all_rows.same_in(relabelled).any()
    assert not all_rows.same_in(moved).any()


def test_exchanged_rows_are_counted_with_repetitions() -> None:
    data = made()
    before = row_digests(data)
    assert before.exchanged(row_digests(replace(data, ids=data.ids.flip(0)))) == (0, 0)
    after = row_digests(data.select(torch.arange(4)))
    assert before.exchanged(after) == (2, 0)
    assert after.exchanged(before) == (0, 2)
    assert joined_digests([before, before]).exchanged(before) == (6, 0)
    assert before.exchanged(row_digests(replace(data, labels=data.labels.clamp(max=1)))) == (2, 2)


def test_the_hash_of_a_split_is_of_rows_and_their_order() -> None:
    data = made()
    hashes = {
        row_digests(one).sha256()
        for one in (
            data,
            data.select(torch.tensor([1, 0, 2, 3, 4, 5])),
            replace(data, labels=data.labels.flip(0)),
            replace(data, ids=data.ids + 1),
            replace(data, images=data.images ^ 1),
        )
    }
    assert len(hashes) == 5
    assert row_digests(made()).sha256() in hashes


def test_digests_of_another_form_are_refused() -> None:
    rows = row_digests(made())
    with pytest.raises(ValueError, match=r"are uint8 of shape \(6, 8\): use uint8 of \(6, 16\)"):
        RowDigests(rows.images[:, :8], rows.labels, rows.ids)
    with pytest.raises(ValueError, match="ids of row digests are int32"):
        RowDigests(rows.images, rows.labels, rows.ids.astype(np.int32))
