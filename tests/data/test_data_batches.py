"""Batches: every example once, the same for any number of processes, resumable."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustly.data import Augmentation, ImageData, batch_count, batches


def made(count: int) -> ImageData:
    images = torch.randint(0, 256, (count, 1, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return ImageData(images, torch.arange(count) % 2, torch.arange(count) + 100, ("a", "b"), "made")


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 4), st.booleans(), st.integers(0, 3))
def test_processes_share_each_global_batch(count: int, size: int, world: int, shuffle: bool, epoch: int) -> None:
    size = max(size, world)
    data = made(count)
    alone = [batch.ids for batch in batches(data, size, seed=1, epoch=epoch, shuffle=shuffle)]
    assert sorted(torch.cat(alone).tolist()) == data.ids.tolist()
    assert [len(ids) for ids in alone[:-1]] == [size] * (len(alone) - 1)
    ranks = [
        [
            batch.ids
            for batch in batches(data, size, seed=1, epoch=epoch, shuffle=shuffle, rank=rank, world_size=world)
        ]
        for rank in range(world)
    ]
    for number, ids in enumerate(alone):
        shares = [rank[number] for rank in ranks]
        assert sorted(torch.cat(shares).tolist()) == sorted(ids.tolist())
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 8), st.data())
def test_a_resumed_epoch_goes_on_where_it_stopped(count: int, size: int, choice: st.DataObject) -> None:
    data, augment = made(count), Augmentation(1, True)
    start = choice.draw(st.integers(0, batch_count(count, size, False)))
    whole = list(batches(data, size, seed=2, epoch=1, augmentation=augment))
    rest = list(batches(data, size, seed=2, epoch=1, augmentation=augment, start=start))
    assert len(rest) == len(whole) - start
    for left, correct in zip(whole[start:], rest, strict=True):
        assert torch.equal(left.x, correct.x)
        assert torch.equal(left.ids, correct.ids)
        assert torch.equal(left.generator.uniform(3), correct.generator.uniform(3))


def test_contents_belong_to_the_ids() -> None:
    data = made(11)
    for batch in batches(data, 4, seed=0, epoch=0):
        place = batch.ids - 100
        assert torch.equal(batch.x, data.floats(place))
        assert torch.equal(batch.y, data.labels[place])
        assert torch.equal(batch.generator.ids, batch.ids)
        assert batch.x.dtype == torch.float32


def test_an_example_is_the_same_in_any_batch() -> None:
    data, augment = made(20), Augmentation(2, True)
    seen = []
    for size, world in ((20, 1), (3, 1), (8, 2)):
        images: dict[int, Tensor] = {}
        draws: dict[int, Tensor] = {}
        for rank in range(world):
            for batch in batches(data, size, seed=4, epoch=2, augmentation=augment, rank=rank, world_size=world):
                images.update(zip(batch.ids.tolist(), batch.x, strict=True))
                draws.update(zip(batch.ids.tolist(), batch.generator.uniform(2), strict=True))
        seen.append((images, draws))
    for (left, left_draws), (correct, right_draws) in pairwise(seen):
        assert left.keys() == correct.keys() == left_draws.keys()
        assert all(torch.equal(left[key], correct[key]) for key in left)
        assert all(torch.equal(left_draws[key], right_draws[key]) for key in left)


def test_order_and_numbers_change_with_seed_and_epoch() -> None:
    data = made(30)

    def epoch(seed: int, number: int) -> tuple[list[int], list[float]]:
        (batch,) = batches(data, 30, seed=seed, epoch=number)
        draw = batch.generator.uniform()[batch.ids.argsort()]
        return batch.ids.tolist(), draw.flatten().tolist()

    first = epoch(0, 0)
    assert epoch(0, 0) == first
    for other in (epoch(0, 1), epoch(1, 0)):
        assert other[0] != first[0]
        assert other[1] != first[1]
    assert first[0] != data.ids.tolist()
    (plain,) = batches(data, 30, seed=0, epoch=0, shuffle=False)
    assert torch.equal(plain.ids, data.ids)


def test_the_last_batch_can_be_left_out() -> None:
    assert [len(batch) for batch in batches(made(10), 4, seed=0, epoch=0)] == [4, 4, 2]
    assert [len(batch) for batch in batches(made(10), 4, seed=0, epoch=0, drop_last=True)] == [4, 4]
    assert (batch_count(10, 4, False), batch_count(10, 4, True), batch_count(8, 4, False)) == (3, 2, 2)


@pytest.mark.parametrize(
    ("size", "rank", "world", "start", "words"),
    [
        (0, 0, 1, 0, "at least 1 for each"),
        (2, 0, 3, 0, "at least 1 for each of 3"),
        (4, 2, 2, 0, "rank is 2 of 2"),
        (4, -1, 2, 0, "rank is -1"),
        (4, 0, 0, 0, "rank is 0 of 0"),
        (4, 0, 1, 4, "an epoch has 3 batches"),
        (4, 0, 1, -1, "start is -1"),
    ],
)
def test_wrong_numbers_are_refused_at_the_call(size: int, rank: int, world: int, start: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        batches(made(10), size, seed=0, epoch=0, rank=rank, world_size=world, start=start)


def test_an_epoch_without_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves no batch"):
        batches(made(10), 11, seed=0, epoch=0, drop_last=True)
