"""A map of colours without the grid points that no pixel uses gives the images of the whole map."""

import pytest
import torch
from torch import Tensor, nn

from robustly.attacks import PGD
from robustly.randomness import KeyedGenerator
from robustly.threats import parse_threat
from robustly.threats.colour.recolour import ColourMapSet
from robustly.threats.colour.used_points import UsedPointsSet

IDS = torch.arange(4)
IMAGES = KeyedGenerator(0, IDS).uniform(3, 6, 5)
IMAGES[1] = 0.5  # one colour: fewer used points than the others
THREAT = parse_threat("recolor:0.06")
DRAWS = KeyedGenerator(1, IDS)


def both(images: Tensor = IMAGES) -> tuple[ColourMapSet, UsedPointsSet]:
    whole = THREAT.around(images)
    assert isinstance(whole, ColourMapSet)
    few = whole.condensed()
    assert isinstance(few, UsedPointsSet)
    return whole, few


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_starts_images_and_gradients_are_those_of_the_whole_map(dtype: torch.dtype) -> None:
    whole, few = both(IMAGES.to(dtype))
    theta = whole.random_start(DRAWS).requires_grad_()
    used = few.random_start(DRAWS).requires_grad_()
    assert used.shape[2] < 8 * 30 + 1
    images = [one.apply(at) for one, at in ((whole, theta), (few, used))]
    assert images[0].dtype == dtype
    assert torch.equal(*images)
    weights = torch.linspace(-1, 1, IMAGES.numel(), dtype=dtype).view_as(IMAGES)
    slopes = [
        torch.autograd.grad((one * weights).sum(), at)[0] for one, at in zip(images, (theta, used), strict=True)
    ]
    assert torch.equal(few.expanded(slopes[1]), slopes[0])  # at the other points it is 0
    lengths = torch.full((4,), 0.01, dtype=dtype)
    moved = few.step(used.detach(), slopes[1], lengths)
    assert torch.equal(few.apply(moved), whole.apply(whole.step(theta.detach(), slopes[0], lengths)))


def test_the_whole_map_of_few_points_renders_the_same_images_and_has_the_same_size() -> None:
    whole, few = both()
    used = few.random_start(DRAWS)
    theta = few.expanded(used)
    assert theta.shape == (4, 3, 16, 32, 32)
    assert torch.equal(whole.apply(theta), few.apply(used))
    assert torch.equal(whole.size(theta), few.size(used))
    assert 0 < int((theta[1] != 0).sum()) <= 3 * 8  # one colour lies between eight points


def test_an_image_without_company_has_the_same_points() -> None:
    _, few = both()
    used = few.random_start(DRAWS)
    for number in range(4):
        row = torch.tensor([number])
        _, alone = both(IMAGES[row])
        start = alone.random_start(DRAWS.select(row))
        assert torch.equal(alone.apply(start), few.apply(used)[row])
        assert torch.equal(alone.expanded(start), few.expanded(used)[row])
    order = torch.tensor([3, 1])
    some = few.select(order)
    assert torch.equal(some.apply(used[order]), few.apply(used)[order])
    assert torch.equal(some.random_start(DRAWS.select(order)), used[order])
    assert torch.equal(some.expanded(used[order]), few.expanded(used)[order])


def test_no_change_is_the_original_and_other_images_are_refused() -> None:
    _, few = both()
    assert torch.equal(few.apply(few.identity()), IMAGES)
    with pytest.raises(NotImplementedError, match="those of one image"):
        few.moved_to(IMAGES)


def test_images_with_gradients_and_empty_batches_keep_the_whole_map() -> None:
    for images in (IMAGES.clone().requires_grad_(), IMAGES[:0]):
        whole = THREAT.around(images)
        assert isinstance(whole, ColourMapSet)
        assert whole.condensed() is whole


class Projection(nn.Module):
    """Three fixed linear functions of an image."""

    def forward(self, x: Tensor) -> Tensor:
        weights = KeyedGenerator(3, torch.arange(3)).normal(x[0].numel()).to(x)
        return (x.flatten(1)[:, None] * weights).sum(2)  # a product of matrices is rounded by the size of the batch


@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize("update", ["steepest", "adam", "normalised"])
def test_an_attack_returns_the_whole_map_of_its_images(keep: str, update: str) -> None:
    model, labels = Projection(), Projection()(IMAGES).argmax(1)
    attack = PGD(3, keep=keep, update=update, restarts=2)  # type: ignore[arg-type]
    found = attack(model, IMAGES, labels, threat=THREAT, generator=DRAWS)
    assert found.theta is not None
    assert found.theta.shape == (4, 3, 16, 32, 32)
    whole, few = both()
    assert torch.equal(whole.apply(found.theta), found.x_adv)
    assert bool(whole.contains(found.theta).all())
    assert not torch.allclose(found.x_adv, IMAGES, atol=1e-3)
    unused = few.expanded(torch.ones_like(few.identity())) == 0
    assert bool(found.theta[unused].any()) == (update == "normalised")  # a norm sums over all parameters
    for number in range(4):
        row = torch.tensor([number])
        alone = attack(model, IMAGES[row], labels[row], threat=THREAT, generator=DRAWS.select(row))
        assert torch.equal(alone.x_adv, found.x_adv[row])
