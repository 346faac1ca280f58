"""Frequency-conditional convolution: masks, bands, hard and soft routes."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from robustly.models.frequency import FrequencyConv2d, Route, _radial, fixed_route, zernike_basis

SIZES = [(8, 8), (7, 9), (6, 5), (1, 4)]


def layer(domains: int = 2, image_size: tuple[int, int] = (8, 8), seed: int = 0, **changes: int) -> FrequencyConv2d:
    """A layer in double precision, whose masks differ from 1 / K."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = FrequencyConv2d(3, 4, 3, domains=domains, image_size=image_size, padding=1, **changes).double()
        torch.nn.init.normal_(made.embedding)
    return made


def features(height: int = 8, width: int = 8, count: int = 5) -> Tensor:
    return torch.randn(count, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def route(domains: list[int], count: int = 2, soft: Tensor | None = None) -> Route:
    return Route(fixed_route(torch.tensor(domains), count, features()).hard, soft)


def probabilities(count: int = 5, domains: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(count, domains, dtype=torch.float64, generator=generator).softmax(1).requires_grad_()


def test_the_basis_is_that_of_zernike() -> None:
    assert float(_radial(2, 0, torch.zeros(()))) == -1
    assert float(_radial(3, 1, torch.ones(()))) == float(_radial(3, 3, torch.ones(()))) == 1
    for size in SIZES:
        basis = zernike_basis(*size)
        assert basis.shape == (10, size[0], size[1] // 2 + 1)
        squares = basis.square().mean((1, 2))
        assert bool(((squares - 1).abs() < 1e-12).logical_or(squares < 1e-12).all())
    basis = zernike_basis(8, 8)
    assert torch.equal(basis[0], torch.ones(8, 5, dtype=torch.float64))
    up, down = basis[:, 2], basis[:, -2]  # the same frequency of rows with both signs
    sine = torch.tensor([m in (2, 5, 7, 9) for m in range(10)])
    assert torch.allclose(up[~sine], down[~sine])
    assert torch.allclose(up[sine], -down[sine])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("domains", [1, 2, 3])
def test_the_bands_of_an_image_add_up_to_it(size: tuple[int, int], domains: int) -> None:
    made, h = layer(domains, size), features(*size)
    masks = made.masks(route([0, 1, 2, 0, 1], 3).hard[:, :domains] if domains > 1 else torch.ones(5, 1), *size)
    assert torch.allclose(masks.sum(1), torch.ones_like(masks[:, 0]), atol=1e-12, rtol=0)
    spectrum = torch.fft.rfft2(h, norm="ortho")
    bands = [torch.fft.irfft2(spectrum * masks[:, k, None], s=size, norm="ortho") for k in range(domains)]
    assert torch.allclose(torch.stack(bands).sum(0), h, atol=1e-12, rtol=0)
    if domains > 1:
        assert float((masks[0] - masks[1]).detach().abs().max()) > 0.01, "domains have masks of their own"


@pytest.mark.parametrize("size", SIZES[:3])
@pytest.mark.parametrize(("stride", "bias"), [(1, False), (2, True)])
def test_the_output_is_the_formula(size: tuple[int, int], stride: int, bias: bool) -> None:
    made, h, domains = layer(3, size, stride=stride, bias=bias), features(*size), [0, 1, 2, 2, 0]
    out = made(h, route(domains, 3))
    for row, d in enumerate(domains):
        embedding = made.embedding[d]
        scores = embedding[:, 0, None, None] + torch.einsum("km,mhf->khf", embedding[:, 1:], zernike_basis(*size))
        spectrum = torch.fft.rfft2(h[row], norm="ortho") * scores.softmax(0)[d]
        band = torch.fft.irfft2(spectrum, s=size, norm="ortho")
        plain = F.conv2d(h[row : row + 1], made.kernels[0], made.bias, stride, 1)
        expert = F.conv2d(band[None], made.kernels[1 + d], None, stride, 1)
        assert torch.allclose(out[row : row + 1], plain + expert, atol=1e-6, rtol=0)  # the basis kept in float32


def test_with_masks_of_one_and_equal_experts_it_is_the_plain_convolution() -> None:
    h = features()
    one = layer(domains=1)
    plain = F.conv2d(h, one.kernels[0] + one.kernels[1], None, 1, 1)
    assert torch.allclose(one(h, route([0] * 5, 1)), plain, atol=1e-12, rtol=0)
    made = layer(domains=3)
    with torch.no_grad():
        made.embedding.zero_()
        made.weight[:, 6:].copy_(made.weight[:, 3:6].repeat(1, 2, 1, 1))
    plain = F.conv2d(h, made.kernels[0] + made.kernels[1] / 3, None, 1, 1)
    assert torch.allclose(made(h, route([0, 1, 2, 0, 1], 3)), plain, atol=1e-12, rtol=0)
    soft = Route(torch.full((5, 3), 1 / 3, dtype=torch.float64))
    assert torch.allclose(made(h, soft), plain, atol=1e-12, rtol=0)


def test_values_are_those_of_the_hard_route_and_gradients_those_of_the_soft_one() -> None:
    made, h, soft = layer(), features().requires_grad_(), probabilities()
    domains = [0, 1, 1, 0, 1]
    both, hard, mixed = made(h, route(domains, soft=soft)), made(h, route(domains)), made(h, Route(soft))
    assert torch.equal(both, hard)
    assert float((both - mixed).detach().abs().max()) > 0.01
    pull = torch.randn(both.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    sought = [h, soft, made.weight, made.embedding]
    ours, theirs = (torch.autograd.grad((out * pull).sum(), sought) for out in (both, mixed))
    assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))
    assert float(ours[1].abs().max()) > 0


def test_each_domain_uses_its_own_expert() -> None:
    made, h = layer(), features()
    before = [made(h, route([d] * 5)) for d in (0, 1)]
    with torch.no_grad():
        made.weight[:, 6:].zero_()
    after = [made(h, route([d] * 5)) for d in (0, 1)]
    assert torch.allclose(before[0], after[0], atol=1e-14)
    assert torch.allclose(after[1], F.conv2d(h, made.kernels[0], None, 1, 1), atol=1e-14)


def test_other_sizes_than_the_kept_one_have_a_basis_of_their_own() -> None:
    made, h, where = layer(image_size=(8, 8)), features(6, 10), route([0, 1, 0, 1, 1])
    other = layer(image_size=(6, 10))
    assert torch.allclose(made(h, where), other(h, where), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precisions_agree(dtype: torch.dtype) -> None:
    made, h, where = layer(), features(), route([0, 1, 1, 0, 1])
    out = made(h, where)
    low = made.to(dtype)(h.to(dtype), Route(where.hard.to(dtype)))
    assert low.dtype == dtype
    assert float((low.double() - out).detach().abs().max()) < (1e-5 if dtype == torch.float32 else 0.1)


def test_an_empty_batch_and_no_domain() -> None:
    made = layer()
    assert made(features(count=0), Route(torch.zeros(0, 2, dtype=torch.float64))).shape == (0, 4, 8, 8)
    with pytest.raises(ValueError, match="domains must be at least 1"):
        FrequencyConv2d(3, 4, 3, domains=0, image_size=(8, 8))


def test_an_image_is_independent_of_its_batch() -> None:
    made, h, soft = layer(), features(), probabilities()
    together = made(h, route([0, 1, 1, 0, 1], soft=soft))
    for row, domain in itertools.islice(enumerate([0, 1, 1, 0, 1]), 3):
        alone = made(h[row : row + 1], route([domain], soft=soft[row : row + 1]))
        assert torch.allclose(alone, together[row : row + 1], atol=1e-13)


@pytest.mark.parametrize("stride", [1, 2])
def test_without_masks_the_experts_have_the_whole_features(stride: int) -> None:
    made = FrequencyConv2d(
        3, 4, 3, domains=2, image_size=(8, 8), stride=stride, padding=1, bias=True, masked=False
    ).double()
    h, domains, p = features(7, 9), [0, 1, 1, 0, 1], probabilities()
    shared, *experts = made.kernels
    assert "embedding" not in made.state_dict()
    assert torch.equal(made.masks(route(domains).hard, 7, 9), torch.ones(5, 2, 7, 5, dtype=torch.float64))

    def convolved(kernel: Tensor) -> Tensor:
        return F.conv2d(h, kernel, made.bias, stride, 1)

    branches = [convolved(shared + expert) for expert in experts]
    expected = torch.stack([branches[d][i] for i, d in enumerate(domains)])
    assert torch.allclose(made(h, route(domains)), expected, atol=1e-12)
    mixed = p[:, 0, None, None, None] * branches[0] + p[:, 1, None, None, None] * branches[1]
    assert torch.allclose(made(h, Route(p)), mixed, atol=1e-12)
    stand_in = made(h, route(domains, soft=p))
    assert torch.allclose(stand_in, expected, atol=1e-12)
    (found,) = torch.autograd.grad(stand_in.square().sum(), p)
    own = [F.conv2d(h, expert, None, stride, 1) for expert in experts]
    slopes = [(2 * expected.detach() * one).sum((1, 2, 3)) for one in own]
    assert torch.allclose(found, torch.stack(slopes, 1), atol=1e-9)
    assert made(features(count=0), Route(p[:0])).shape[0] == 0


def test_without_masks_there_are_fewer_parameters() -> None:
    counts = [
        sum(p.numel() for p in FrequencyConv2d(3, 4, 3, domains=2, image_size=(8, 8), masked=masked).parameters())
        for masked in (True, False)
    ]
    assert counts[0] - counts[1] == 2 * 2 * 11
