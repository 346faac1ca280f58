"""Masks and per-pixel epsilons: nothing outside changes, whatever attack searches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from robustly.attacks import ATTACK_KINDS, PGD, Attack
from robustly.randomness import KeyedGenerator
from robustly.testing import small_network
from robustly.threats import NORMS, ThreatError, ThreatModel, parse_threat

SHAPE = (2, 6, 6)
REGION = torch.zeros(6, 6, dtype=torch.bool)
REGION[1:4, 2:6] = True
CHANNEL = torch.tensor([True, False]).view(2, 1, 1)
RADII = {"linf": 0.4, "l2": 2.0, "l1": 8.0, "l0": 6}
CHEAP = {
    "cw_l2": {"steps": 20, "search_steps": 3, "initial_c": 0.1},
    "ead": {"steps": 20, "search_steps": 3, "initial_c": 0.1},
    "sigma_zero": {"steps": 30},
    "boundary": {"steps": 60, "tries": 50},
    "hopskipjump": {"steps": 2, "evaluations": 30, "tries": 50},
    "square": {"queries": 100},
    "sparse_rs": {"queries": 100},
    "apgd": {"steps": 20},
    "apgd_t": {"steps": 10},
    "pma": {"steps": 10},
    "fab": {"steps": 20},
}


def victim(count: int = 8) -> tuple[torch.nn.Module, Tensor, Tensor]:
    net = small_network(SHAPE).eval()
    x = KeyedGenerator(0, torch.arange(count)).uniform(*SHAPE) * 0.6 + 0.2
    with torch.no_grad():
        return net, x, net(x).argmax(1)


def cases() -> list[tuple[str, str]]:
    return [(name, norm) for name, kind in ATTACK_KINDS.items() for norm in kind().needs.norms]


def built(name: str) -> Attack:
    kind = ATTACK_KINDS[name]
    return kind(**CHEAP.get(name, {}))


@pytest.mark.slow
@pytest.mark.parametrize("mask", [REGION, CHANNEL], ids=["region", "channel"])
@pytest.mark.parametrize(("name", "norm"), cases())
def test_every_attack_changes_the_masked_values_alone(name: str, norm: str, mask: Tensor) -> None:
    net, x, y = victim()
    threat = ThreatModel(norm, RADII[norm], mask=mask)
    found = built(name)(net, x, y, threat=threat, generator=KeyedGenerator(1, torch.arange(len(x))))
    outside = ~mask.expand(SHAPE)
    for images in (found.x_adv, x if found.beyond is None else found.beyond):
        assert torch.equal(images[:, outside], x[:, outside])
    assert threat.contains(found.x_adv, x).all()
    assert bool(found.broken.any()), "the mask leaves room to succeed, which the attack has to find"


@pytest.mark.parametrize("norm", NORMS)
def test_a_mask_of_everything_is_no_mask(norm: str) -> None:
    net, x, y = victim()
    draws = KeyedGenerator(1, torch.arange(len(x)))
    whole = PGD(5)(net, x, y, threat=ThreatModel(norm, RADII[norm]), generator=draws)
    masked = PGD(5)(
        net, x, y, threat=ThreatModel(norm, RADII[norm], mask=torch.ones(SHAPE, dtype=torch.bool)), generator=draws
    )
    assert torch.allclose(whole.x_adv, masked.x_adv, atol=1e-6)


def test_an_image_changed_outside_of_the_mask_is_not_contained() -> None:
    _, x, _ = victim()
    threat = ThreatModel("linf", 0.4, mask=REGION)
    for row, column, allowed in ((2, 3, True), (0, 0, False)):
        changed = x.clone()
        changed[:, 0, row, column] += 0.01
        assert threat.contains(changed, x).tolist() == [allowed] * len(x)


def test_every_pixel_has_its_own_epsilon() -> None:
    epsilon = torch.linspace(0, 0.2, 36).reshape(6, 6)
    threat = ThreatModel("linf", epsilon)
    _, x, _ = victim()
    allowed = threat.around(x)
    widest = allowed.step(x, torch.ones_like(x), torch.full((len(x),), 1.0))
    assert torch.allclose(widest - x, epsilon.expand(SHAPE)[None].expand_as(x), atol=1e-6)
    assert str(threat).startswith("linf:0.2@")
    assert allowed.size(widest).tolist() == pytest.approx([0.2] * len(x), rel=1e-5)
    assert threat.contains(widest, x).all()
    assert not threat.contains(x + 0.1, x).any()
    half = threat.scaled(0.5).around(x).step(x, torch.ones_like(x), torch.full((len(x),), 1.0))
    assert torch.allclose(half - x, 0.5 * (widest - x), atol=1e-6)
    start = allowed.random_start(KeyedGenerator(0, torch.arange(len(x))))
    assert ((start - x).abs() <= epsilon + 1e-6).all()


@pytest.mark.parametrize("share", [0.1, 1e-2, 1e-3, 1e-4])
def test_points_of_a_ball_with_small_shares_are_contained(share: float) -> None:
    """Rounding of a pixel is large relative to a small share: successes there would not be confirmed."""
    mask = torch.ones(6, 6)
    mask[:3] = share
    _, x, _ = victim()
    allowed = ThreatModel("linf", "8/255", mask=mask).around(x)
    moved = allowed.step(x, torch.ones_like(x), allowed.radius)
    assert allowed.contains(moved).all()
    assert allowed.contains(allowed.boundary_start(KeyedGenerator(0, torch.arange(len(x))))).all()
    moved[:, :, 0, 0] += 5e-6
    assert not allowed.contains(moved).any()


def test_masks_belong_to_the_value() -> None:
    one, other = ThreatModel("linf", 0.1, mask=REGION), ThreatModel("linf", 0.1, mask=~REGION)
    assert one != other
    assert one != ThreatModel("linf", 0.1)
    assert one == ThreatModel("linf", 0.1, mask=REGION.clone())
    assert hash(one) == hash(ThreatModel("linf", 0.1, mask=REGION.clone()))
    assert str(one).startswith("linf:0.1@")
    assert str(one) != str(other)
    assert "33.3 % of the values" in one.words()
    assert one.with_epsilon(0.2).mask is not None


@pytest.mark.parametrize(
    ("norm", "mask", "message"),
    [
        ("linf", torch.zeros(6, 6), "allows no value to change"),
        ("linf", torch.full((6, 6), 2.0), "shares of epsilon in .0, 1."),
        ("linf", torch.full((6, 6), float("nan")), "shares of epsilon in .0, 1."),
        ("linf", torch.tensor(True), "per value of an image"),
        ("linf", torch.ones(6, 6, dtype=torch.complex64), "per value of an image"),
        ("linf", np.ones((6, 6)), "per value of an image"),
        ("l2", torch.full((6, 6), 0.5), "shares of epsilon are possible under linf only"),
    ],
)
def test_nonsense_is_refused(norm: str, mask: Tensor, message: str) -> None:
    with pytest.raises(ThreatError, match=message):
        ThreatModel(norm, 1 if norm != "linf" else 0.1, mask=mask)


DOUBLED = torch.full((6, 6), 2.0)
DOUBLED[0, 0] = 1.0


@pytest.mark.parametrize(
    ("mask", "message"),
    [(DOUBLED, "shares of epsilon in .0, 1."), (torch.ones(3, 7), r"\(3, 7\) and \(6, 6\)")],
)
def test_a_mask_beside_epsilons_per_pixel_is_checked_too(mask: Tensor, message: str) -> None:
    epsilon = torch.full((6, 6), 0.1)
    epsilon[0, 0] = 0.2
    with pytest.raises(ThreatError, match=message):
        ThreatModel("linf", 0.5 * epsilon, mask=mask)


def test_epsilons_per_pixel_may_be_in_half_precision() -> None:
    assert ThreatModel("linf", torch.full((6, 6), 0.25, dtype=torch.bfloat16)).epsilon == 0.25


def test_a_mask_that_does_not_fit_the_images_is_refused() -> None:
    _, x, _ = victim()
    with pytest.raises(ThreatError, match=r"\(5, 6\).* \(2, 6, 6\)"):
        ThreatModel("linf", 0.1, mask=torch.ones(5, 6, dtype=torch.bool)).around(x)


def test_a_mask_is_read_from_a_file_and_named_by_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "a+b.npy"
    np.save(path, REGION.numpy())
    read = parse_threat(f"linf:8/255@{path}")
    assert read == ThreatModel("linf", "8/255", mask=REGION)
    assert parse_threat(str(read), arrays=read.arrays) == read
    chain = parse_threat(f"rotation:30+l2:0.5@{path}")
    assert parse_threat(str(chain), arrays=chain.arrays) == chain
    with pytest.raises(ThreatError, match="NumPy file"):
        parse_threat(str(read))
    with pytest.raises(ThreatError, match=r"mask .*Lp.* 'rotation:30@"):
        parse_threat(f"rotation:30@{path}")
    np.save(tmp_path / "complex.npy", REGION.numpy().astype(complex))
    with pytest.raises(ThreatError, match="complex"):
        parse_threat(f"linf:0.1@{tmp_path / 'complex.npy'}")
    np.save(tmp_path / "object.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ThreatError, match="NumPy file"):
        parse_threat(f"linf:0.1@{tmp_path / 'object.npy'}")


def test_a_text_with_its_arrays_reads_no_file(tmp_path: Path) -> None:
    np.save(tmp_path / "mask.npy", REGION.numpy())
    with pytest.raises(ThreatError, match=r"mask\.npy.* stored arrays"):
        parse_threat(f"linf:0.1@{tmp_path / 'mask.npy'}", arrays={})
