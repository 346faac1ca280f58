"""Augmentation: a true shift, a true mirror image, and independence of the batch."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustly.data import Augmentation
from robustly.randomness import KeyedGenerator

shapes = st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(3, 7), st.integers(3, 7))


def random_images(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(0, 2), st.booleans(), st.integers(0, 1000))
def test_an_example_does_not_see_its_batch(shape: tuple[int, ...], pad: int, flip: bool, seed: int) -> None:
    images, ids = random_images(shape, seed), torch.arange(shape[0]) + seed
    augment = Augmentation(pad, flip)
    whole = augment(images, KeyedGenerator(seed, ids))
    order = torch.randperm(shape[0], generator=torch.Generator().manual_seed(seed))
    assert torch.equal(augment(images[order], KeyedGenerator(seed, ids[order])), whole[order])
    single = [augment(images[i : i + 1], KeyedGenerator(seed, ids[i : i + 1])) for i in range(shape[0])]
    assert torch.equal(torch.cat(single), whole)
    assert (whole.shape, whole.dtype) == (images.shape, torch.uint8)


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(1, 2), st.integers(0, 1000))
def test_a_crop_is_a_shift_with_zeros_at_the_border(shape: tuple[int, ...], pad: int, seed: int) -> None:
    images = random_images(shape, seed)
    _, _, height, width = shape
    padded = F.pad(images, (pad, pad, pad, pad))
    out = Augmentation(pad)(images, KeyedGenerator(seed, torch.arange(shape[0])))
    for source, result in zip(padded, out, strict=True):
        windows = [
            source[:, top : top + height, left : left + width]
            for top in range(2 * pad + 1)
            for left in range(2 * pad + 1)
        ]
        assert any(torch.equal(window, result) for window in windows)


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(0, 1000))
def test_flipping_twice_is_the_identity(shape: tuple[int, ...], seed: int) -> None:
    images, generator = random_images(shape, seed), KeyedGenerator(seed, torch.arange(shape[0]))
    once = Augmentation(flip=True)(images, generator)
    assert torch.equal(Augmentation(flip=True)(once, generator), images)
    for source, result in zip(images, once, strict=True):
        assert torch.equal(result, source) or torch.equal(result, source.flip(-1))


def test_all_shifts_and_both_sides_are_equally_likely() -> None:
    count = 4000
    images = torch.zeros(count, 1, 5, 5, dtype=torch.uint8)
    images[:, 0, 2, 2] = 255
    out = Augmentation(1)(images, KeyedGenerator(0, torch.arange(count)))
    places = out.flatten(1).argmax(1).bincount(minlength=25).reshape(5, 5)[1:4, 1:4]
    assert places.sum() == count
    # nine cells: mean 444, standard deviation 20
    assert int(places.min()) > 344
    assert int(places.max()) < 544
    images = torch.tensor([0, 255], dtype=torch.uint8).expand(count, 1, 1, 2)
    flipped = Augmentation(flip=True)(images, KeyedGenerator(0, torch.arange(count)))[:, 0, 0, 0] == 255
    assert abs(int(flipped.sum()) - count // 2) < 160  # five standard deviations


def test_crop_and_flip_are_drawn_apart() -> None:
    images = random_images((64, 1, 6, 6), 0)
    generator = KeyedGenerator(1, torch.arange(64))
    both = Augmentation(2, True)(images, generator)
    cropped, flipped = Augmentation(2)(images, generator), Augmentation(0, True)(images, generator)
    mirrored = (flipped != images).flatten(1).any(1)
    assert torch.equal(both, torch.where(mirrored[:, None, None, None], cropped.flip(-1), cropped))


def test_nothing_to_do_and_nothing_allowed() -> None:
    images = random_images((2, 1, 4, 6), 0)
    generator = KeyedGenerator(0, torch.arange(2))
    assert torch.equal(Augmentation()(images, generator), images)
    assert Augmentation(2, True)(images[:0], KeyedGenerator(0, torch.arange(0))).shape == (0, 1, 4, 6)
    with pytest.raises(ValueError, match="use pixels of padding"):
        Augmentation(-1)
    with pytest.raises(ValueError, match=r"less than .*side.*\b4x6\b"):
        Augmentation(4)(images, generator)
