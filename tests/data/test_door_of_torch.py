"""Data sets and loaders of PyTorch become images in the order of the data set."""

import gc
import itertools
import resource
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from labelled_pictures import COUNT, FORMS, LABELS, PIXELS, Pictures, check
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
)

from robustly.data import as_image_data


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("item", ["tuple", "triple", "dict"])
def test_data_sets(form: str, item: str) -> None:
    data = Pictures(FORMS[form], LABELS.tolist(), item)
    check(as_image_data(data))
    places = torch.tensor([9, 3, 4, 20])
    check(as_image_data(Pictures(FORMS[form], LABELS[:, None], item)))
    chosen = as_image_data(Subset(data, places.tolist()))
    check(chosen, PIXELS[places], LABELS[places])
    assert chosen.ids.tolist() == [0, 1, 2, 3]
    check(as_image_data(ConcatDataset([data, data])), PIXELS.repeat(2, 1, 1, 1), LABELS.repeat(2))


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(Pictures(FORMS["uint8"]))

    def forever(self) -> Iterator[Any]:
        return itertools.cycle((image, label) for image, label in self)


def test_streams() -> None:
    check(as_image_data(Stream()))
    check(as_image_data(DataLoader(Stream(), batch_size=7)))
    check(as_image_data(Stream().forever(), limit=COUNT))
    check(as_image_data(iter(DataLoader(Pictures(FORMS["floats"]), batch_size=5))))


def as_dictionary(items: list[Any]) -> dict[str, Any]:
    return {"pixel_values": [image for image, _ in items], "y": [label for _, label in items]}


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 7},
        {"batch_size": 7, "shuffle": True, "drop_last": True},
        {"batch_size": None},
        {"batch_size": 5, "sampler": RandomSampler(range(COUNT))},
        {"batch_size": 4, "collate_fn": as_dictionary},
        {"batch_size": 4, "collate_fn": lambda items: items},
        {"batch_sampler": [[place] for place in range(COUNT)]},
    ],
)  # fmt: skip
def test_loaders_are_read_in_the_order_of_the_data_set(settings: dict[str, Any]) -> None:
    check(as_image_data(DataLoader(Pictures(FORMS["floats"]), **settings)))
    check(as_image_data(DataLoader(Pictures(FORMS["floats"], form="dict"), batch_size=9, shuffle=True)))


@pytest.mark.slow
def test_workers_of_a_loader_are_used() -> None:
    check(as_image_data(DataLoader(Pictures(FORMS["floats"]), batch_size=5, shuffle=True, num_workers=2)))


def test_an_error_of_a_worker_is_one_line() -> None:
    def as_torch_raises_it(items: list[Any]) -> Any:
        raise RuntimeError(
            "Caught KeyError in DataLoader worker process 0.\nOriginal Traceback (...):\nKeyError: 'x'"
        )

    with pytest.raises(ValueError, match=r"Pictures: cannot be read after 0 examples \(KeyError: 'x'\)"):
        as_image_data(DataLoader(Pictures(FORMS["uint8"]), batch_size=5, collate_fn=as_torch_raises_it))


def test_samplers_that_choose_are_followed() -> None:
    data = Pictures(FORMS["floats"])
    chosen = as_image_data(DataLoader(data, batch_size=2, sampler=SubsetRandomSampler([8, 2, 15])))
    assert chosen.ids.tolist() == [2, 8, 15]
    check(chosen, PIXELS[[2, 8, 15]], LABELS[[2, 8, 15]])
    share = as_image_data(DataLoader(data, batch_size=5, sampler=DistributedSampler(data, 2, 1, shuffle=False)))
    check(share, PIXELS[1::2], LABELS[1::2])


@pytest.mark.parametrize("known", [True, False])
def test_a_limit_keeps_the_first_or_some_of_every_class(known: bool) -> None:
    mixed, ordered = Pictures(FORMS["uint8"]), Pictures(FORMS["uint8"], LABELS.sort().values)
    if known:
        mixed.targets, ordered.targets = mixed.labels.tolist(), ordered.labels.tolist()  # type: ignore[attr-defined]
    check(as_image_data(mixed, limit=10), PIXELS[:10], LABELS[:10])
    assert mixed.reads < 40
    for data in (ordered, DataLoader(ordered, batch_size=3), (PIXELS, ordered.labels)):
        few = as_image_data(data, limit=8)
        assert few.labels.bincount().tolist() == [2] * 4
        assert torch.equal(few.images, PIXELS[few.ids])
    assert len(as_image_data(mixed, limit=1000)) == COUNT
    for wrong in (0, 2.5, True):
        with pytest.raises(ValueError, match=f"limit is {wrong}: use a whole number"):
            as_image_data(mixed, limit=wrong)  # type: ignore[arg-type]


def test_random_transforms_are_repeatable_and_named() -> None:
    data = Pictures(lambda place: PIXELS[place].roll(int(torch.randint(0, 5, ())), 1))
    state = torch.get_rng_state()
    with pytest.warns(UserWarning, match="Pictures: its first images differ .* transforms are random"):
        first = as_image_data(data)
    with pytest.warns(UserWarning, match="random"):
        assert torch.equal(as_image_data(data).images, first.images)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_a_large_data_set_is_never_held_as_floats() -> None:
    size = 12_000
    image = torch.arange(3 * 32 * 32).reshape(3, 32, 32).remainder(256).float() / 255
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    data = as_image_data(Pictures(image.roll, torch.arange(size) % 10))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 2 * data.images.numel()  # floats alone would be four times as large
    assert torch.equal(data.images[-1], image.roll(size - 1).mul(255).round().to(torch.uint8))
