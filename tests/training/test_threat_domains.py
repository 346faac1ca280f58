"""Spectral descriptors of images, and the domains of their means."""

from itertools import product

import pytest
import torch
from torch import Tensor

from robustly.training.threat_domains import clustered, dealt, spectral_descriptor


def images(channels: int = 3, height: int = 16, width: int = 12) -> Tensor:
    return torch.rand(4, channels, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_shares_add_up_to_one_and_do_not_depend_on_size_or_place(channels: int) -> None:
    x = images(channels)
    found = spectral_descriptor(x)
    assert found.shape == (4, 15)
    assert torch.allclose(found[:, :9].sum(1), torch.ones(4, dtype=torch.float64))
    assert torch.allclose(spectral_descriptor(x.roll((3, 5), (2, 3))), found, atol=1e-6)
    assert torch.allclose(spectral_descriptor(0.3 * x.double()), spectral_descriptor(x.double()), atol=1e-12)
    if channels != 3:
        assert float(found[:, 3:].abs().max()) == 0


def test_grey_images_stored_in_three_channels_have_no_colour() -> None:
    grey = images(1)
    assert torch.allclose(spectral_descriptor(grey.repeat(1, 3, 1, 1)), spectral_descriptor(grey), atol=1e-6)


def test_bands_have_the_stated_parts_of_a_white_spectrum() -> None:
    """An impulse has the same energy in every bin: 13.1 %, 63.1 % and 23.9 % of them, at 32x32."""
    x = torch.zeros(1, 1, 32, 32)
    x[0, 0, 5, 7] = 1
    assert torch.allclose(spectral_descriptor(x)[0, :3], torch.tensor([71.0, 343, 130]).double() / 544, atol=1e-9)


def test_a_wave_is_in_its_band_and_colour() -> None:
    column = torch.arange(20.0)[None, :].expand(20, 20)
    for cycles, band in ((0.1, 0), (0.3, 1)):
        wave = 0.1 * torch.cos(2 * torch.pi * cycles * column)
        blue = torch.stack([torch.zeros(20, 20), torch.zeros(20, 20), wave])[None]
        found = spectral_descriptor(blue)[0]
        shares = found[:9].view(3, 3)
        assert float(shares[:, band].sum()) > 0.999
        assert float(shares[1, band]) > float(shares[2, band]) > 0
        assert float(found[12 + band]) == pytest.approx((0.081312**2 - 0.25) / (0.081312**2 + 0.25), abs=1e-4)


def points(*numbers: float) -> Tensor:
    rest = torch.rand(len(numbers), 14, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.cat([torch.tensor(numbers, dtype=torch.float64)[:, None].repeat(1, 14), 1e-3 * rest], dim=1)


def test_threats_of_one_kind_share_a_domain_and_the_first_has_domain_0() -> None:
    assert clustered(points(5, 0, 5.1, 0.1, 4.9), 2).tolist() == [0, 1, 0, 1, 0]
    assert clustered(points(0, 5, 9), 3).tolist()[0] == 0
    assert sorted(clustered(points(0, 5, 9), 3).tolist()) == [0, 1, 2]
    assert clustered(points(3), 1).tolist() == [0]


def test_the_order_of_threats_changes_no_cluster() -> None:
    prototypes = torch.rand(6, 15, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    found = clustered(prototypes, 2)
    for seed in range(4):
        order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
        other = clustered(prototypes[order], 2)
        same = torch.equal(other, found[order]) or torch.equal(1 - other, found[order])
        assert same


def test_clusters_have_the_least_sum_of_squares() -> None:
    prototypes = torch.rand(5, 15, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    scaled = (prototypes - prototypes.mean(0)) / prototypes.std(
        0, correction=0
    )  # of five, four components have all

    def squares(labels: Tensor) -> float:
        groups = [scaled[labels == number] for number in labels.unique()]
        return float(sum((group - group.mean(0)).square().sum() for group in groups))

    best = min(squares(torch.tensor(labels)) for labels in product(range(2), repeat=5))
    assert squares(clustered(prototypes, 2)) == pytest.approx(best)


def test_numbers_stay_those_of_before() -> None:
    prototypes = points(0, 5, 9, 0.2)
    first = clustered(prototypes, 3)
    swapped = torch.tensor([2, 0, 1])[first]
    assert torch.equal(clustered(prototypes, 3, swapped), swapped)
    moved = torch.tensor([1, 0, 0, 0])  # one of four agrees with either numbering of (0, 3), (1), (2)
    assert clustered(prototypes, 2, torch.tensor([1, 0, 0, 1])).tolist() == [1, 0, 0, 1]
    assert len(set(clustered(prototypes, 3, moved).tolist())) == 3


def test_dealt_domains_depend_on_the_seed_alone_and_are_all_used() -> None:
    drawn = {tuple(dealt(4, 2, seed).tolist()) for seed in range(40)}
    assert drawn == {(0, 0, 1, 1), (0, 1, 0, 1), (0, 1, 1, 0)}, "two threats each, and the first in domain 0"
    assert torch.equal(dealt(7, 3, 5), dealt(7, 3, 5))
    assert sorted(dealt(7, 3, 5).bincount().tolist()) == [2, 2, 3]
    assert dealt(3, 3, 1)[0] == 0
    assert dealt(2, 1, 0).tolist() == [0, 0]


def test_equal_prototypes_are_in_one_domain() -> None:
    assert clustered(torch.ones(3, 15), 2).tolist() == [0, 0, 0]


def test_an_empty_image_has_no_share() -> None:
    assert bool(spectral_descriptor(torch.zeros(2, 3, 8, 8)).isfinite().all())
