"""Batches of two sources: how many of each, every labelled image once per pass, the same for any processes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustly.data import Augmentation, DataConfig, Extra, ImageData, load_extra, load_splits, mixed_batches
from robustly.data.mixing import FIRST_ID


def images(count: int, seed: int = 0, source: str = "made") -> ImageData:
    draws = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, 1, 4, 4), generator=draws, dtype=torch.uint8)
    return ImageData(pixels, torch.arange(count) % 3, torch.arange(count), ("a", "b", "c"), source)


@pytest.mark.slow
@settings(deadline=None)
@given(
    count=st.integers(5, 40),
    more=st.integers(1, 60),
    batch=st.integers(2, 20),
    fraction=st.floats(0.05, 0.95),
)
def test_every_batch_has_its_share_and_every_image_its_turn(
    count: int, more: int, batch: int, fraction: float
) -> None:
    data, extra = images(count), Extra(images(more, 1), fraction)
    drawn = int(batch * fraction)
    if not 0 < drawn < batch:
        with pytest.raises(ValueError, match="at least one"):
            mixed_batches(data, extra, batch, seed=1, epoch=0)
        return
    seen = []
    for epoch in range(4):
        parts = list(mixed_batches(data, extra, batch, seed=1, epoch=epoch))
        assert len(parts) == -(-count // batch)
        for part in parts:
            assert len(part) == batch
            assert int((part.ids >= FIRST_ID).sum()) == drawn
            own = part.ids < FIRST_ID
            assert torch.equal(part.y[own], data.labels[part.ids[own]])
            assert torch.equal(part.y[~own], extra.data.labels[part.ids[~own] - FIRST_ID])
            assert torch.equal(part.x[own], data.floats(part.ids[own]))
            assert torch.equal(part.x[~own], extra.data.floats(part.ids[~own] - FIRST_ID))
            seen += part.ids[own].tolist()
    for first in range(0, len(seen) - count + 1, count):
        assert sorted(seen[first : first + count]) == list(range(count)), "one pass after the other"


def test_processes_share_what_one_would_see() -> None:
    data, extra, change = images(30), Extra(images(50, 1), 0.7), Augmentation(1, True)
    whole = list(mixed_batches(data, extra, 10, seed=3, epoch=2, augmentation=change))
    shares = [
        list(mixed_batches(data, extra, 10, seed=3, epoch=2, augmentation=change, rank=rank, world_size=3))
        for rank in range(3)
    ]
    for number, batch in enumerate(whole):
        for rank in range(3):
            mine = shares[rank][number]
            assert torch.equal(mine.ids, batch.ids[rank::3])
            assert torch.equal(mine.x, batch.x[rank::3])
            assert torch.equal(mine.generator.uniform(2), batch.generator.uniform(2)[rank::3])


def test_an_image_drawn_twice_gets_other_random_numbers() -> None:
    batch = next(iter(mixed_batches(images(30), Extra(images(1, 1), 0.5), 10, seed=3, epoch=0)))
    assert len(set(batch.generator.uniform(1)[:, 0].tolist())) == 10


def test_draws_are_even() -> None:
    extra = Extra(images(20, 1), 0.5)
    counts = torch.zeros(20)
    for epoch in range(40):
        for batch in mixed_batches(images(40), extra, 20, seed=0, epoch=epoch):
            counts += (batch.ids[batch.ids >= FIRST_ID] - FIRST_ID).bincount(minlength=20)
    assert counts.sum() == 800
    assert float(counts.std()) < 3 * 40**0.5 / 2


def digits_file(path: Path, count: int = 60, stolen: bool = False) -> Path:
    """Digits with a pixel changed, as a generator might make them; some are test digits, if stolen."""
    splits = load_splits(DataConfig(train_limit=count))
    pixels = splits.train.images.clone()
    pixels[:, 0, 0, 0] = 7
    if stolen:
        pixels[:5] = splits.test.images[:5]
    np.savez(path, images=pixels[:, 0].numpy(), labels=splits.train.labels.numpy())
    return path


def test_extra_images_come_from_a_file(tmp_path: Path) -> None:
    config = DataConfig(train_limit=100, extra_source=str(digits_file(tmp_path / "made.npz")), extra_fraction=0.7)
    extra = load_extra(config, load_splits(config))
    assert extra is not None
    assert (len(extra.data), extra.fraction) == (60, 0.7)
    assert load_extra(DataConfig(), load_splits(DataConfig(train_limit=100))) is None


def test_what_does_not_fit_or_was_held_out_is_refused(tmp_path: Path) -> None:
    stolen = DataConfig(train_limit=100, extra_source=str(digits_file(tmp_path / "stolen.npz", stolen=True)))
    with pytest.raises(ValueError, match=r"^5 .*stolen\.npz .*validation or test"):
        load_extra(stolen, load_splits(stolen))
    np.savez(tmp_path / "odd.npz", images=np.zeros((4, 9, 9), np.uint8), labels=np.arange(4))
    odd = DataConfig(train_limit=100, extra_source=str(tmp_path / "odd.npz"))
    with pytest.raises(ValueError, match="have the shape"):
        load_extra(odd, load_splits(odd))
    missing = DataConfig(train_limit=100, extra_source=str(tmp_path / "generated.npz"))
    with pytest.raises(FileNotFoundError, match=r"generated\.npz"):
        load_extra(missing, load_splits(missing))
    for fraction in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match=r"extra_fraction .*between 0 and 1"):
            DataConfig(extra_fraction=fraction)


def test_published_samples_are_read_by_their_names(tmp_path: Path) -> None:
    splits = load_splits(DataConfig(train_limit=30))
    np.savez(tmp_path / "1m.npz", image=splits.train.images[:, 0].numpy() // 2, label=splits.train.labels.numpy())
    config = DataConfig(train_limit=30, extra_source=str(tmp_path / "1m.npz"))
    extra = load_extra(config, load_splits(config))
    assert extra is not None
    assert len(extra.data) == 30
