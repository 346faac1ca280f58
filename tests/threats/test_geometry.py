"""Shifts, scalings, shears and their joint family move pixels to the places that geometry says."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustly.randomness import KeyedGenerator
from robustly.threats import Affine, Described, Rotation, ThreatError, parse_threat
from robustly.threats.geometry import shifted, warped
from robustly.threats.rotation import rotated


def pictures(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def moved(images: Tensor, **given: float) -> Tensor:
    values = {"degrees": 0.0, "right": 0.0, "down": 0.0, "factor": 1.0, "shear": 0.0} | given
    return warped(images, **{name: torch.full((len(images),), value) for name, value in values.items()})


def pointed(height: int, width: int, right: int, down: int) -> Tensor:
    """One white pixel, at a place from the centre."""
    x = torch.zeros(1, 1, height, width)
    x[0, 0, height // 2 + down, width // 2 + right] = 1.0
    return x


@pytest.mark.parametrize(("right", "down"), [(2, -1), (-3, 0), (0, 4), (-7, 7), (7, 9)])
def test_shifts_by_whole_pixels_are_exact(right: int, down: int) -> None:
    x = pictures(2, 3, 9, 7)
    expected = torch.zeros_like(x)
    for row in range(9):
        for column in range(7):
            if 0 <= row - down < 9 and 0 <= column - right < 7:
                expected[:, :, row, column] = x[:, :, row - down, column - right]
    found = shifted(x, torch.full((2,), float(right)), torch.full((2,), float(down)))
    assert torch.equal(found, expected)
    assert torch.allclose(moved(x, right=float(right), down=float(down)), expected, atol=1e-5)


def test_a_shift_by_half_a_pixel_is_the_mean_of_two() -> None:
    x = pictures(1, 1, 4, 5)
    found = shifted(x, torch.tensor([0.5]), torch.tensor([0.0]))
    assert torch.allclose(found[..., 1:], (x[..., 1:] + x[..., :-1]) / 2)
    assert torch.allclose(found[..., 0], x[..., 0] / 2)


def test_parts_of_shifts_and_shifts_of_the_family_agree() -> None:
    x, theta = pictures(3, 2, 8, 6), torch.tensor([[1.3, -0.4], [-2.0, 0.7], [0.0, 2.5]])
    alone = parse_threat("shift:3").around(x).apply(theta)
    assert torch.allclose(parse_threat("affine:shift=3").around(x).apply(theta), alone, atol=1e-5)


def test_a_quarter_turn_of_the_family_is_exact_and_any_turn_is_a_rotation() -> None:
    x = pictures(2, 3, 8, 8)
    family = parse_threat("affine:rotation=180,scale=0.2").around(x)
    assert torch.allclose(family.apply(torch.tensor([[90.0, 1.0]] * 2)), torch.rot90(x, 1, (2, 3)), atol=1e-5)
    turns = torch.tensor([[25.0, 1.0], [-70.0, 1.0]])
    assert torch.allclose(family.apply(turns), rotated(x, turns[:, 0]), atol=1e-5)


def test_a_shift_follows_the_rotation() -> None:
    """A point right of the centre is turned to above it; then it moves by the shift, which is not turned."""
    found = moved(pointed(11, 11, 3, 0), degrees=90.0, right=1.0, down=-1.0)
    assert torch.allclose(found, pointed(11, 11, 1, -4), atol=1e-5)


def test_scaling_moves_points_from_the_centre_and_keeps_a_line() -> None:
    ramp = torch.arange(-5.0, 6.0).expand(1, 1, 11, 11)
    assert torch.allclose(moved(ramp, factor=1.25), ramp / 1.25, atol=1e-5)
    assert float(moved(pointed(11, 15, 4, 2), factor=0.5)[0, 0, 6, 9]) == pytest.approx(1.0, abs=1e-5)


def test_a_shear_leans_the_rows_above_the_centre_to_the_right() -> None:
    slope = math.degrees(math.atan(0.5))
    found = moved(pointed(11, 15, 1, -4), shear=slope)
    assert torch.allclose(found, pointed(11, 15, 3, -4), atol=1e-5)


def test_the_background_has_the_least_value_of_the_box() -> None:
    x = torch.full((1, 1, 6, 6), 2.0)
    for text, theta in (("shift:3", [3.0, 0.0]), ("scale:0.5", [0.5]), ("affine:rotation=45,shift=2", [0.0, 2, 0])):
        found = parse_threat(text, (-1.0, 3.0)).around(x).apply(torch.tensor([theta]))
        assert float(found[0, 0, 0, 0]) == pytest.approx(-1.0, abs=1e-5), text
        assert float(found[0, 0, 3, 3]) == pytest.approx(2.0, abs=1e-5), text


def test_the_family_moves_each_part_within_its_own_limit() -> None:
    x = pictures(400, 1, 4, 4)
    allowed = parse_threat("affine:rotation=30,shift=2,scale=0.1").around(x)
    theta = allowed.random_start(KeyedGenerator(0, torch.arange(400)))
    reach = (theta - allowed.identity()).abs().amax(0)
    limits = torch.tensor([30, 2, 2, 0.1])
    assert (reach <= limits * 1.00001).all()
    assert (reach > 0.95 * limits).all()
    half = torch.tensor([[15.0, 0.5, -1.0, 1.05]]).expand(400, -1)
    assert torch.allclose(allowed.size(half), torch.full((400,), 0.5))
    outside = torch.tensor([[0.0, 0.0, 2.1, 1.0]]).expand(400, -1)
    assert not allowed.contains(outside).any()


def test_shares_of_a_family_are_shares_of_every_limit() -> None:
    family = parse_threat("affine:rotation=120,shift=3")
    assert str(family.scaled(0.5)) == "affine:rotation=60,shift=1.5"
    assert [float(share) for share in family.extents_at((0.5, 1, 1.5, 2))] == [0.5, 1.0, 1.5]
    assert isinstance(family, Affine)
    assert parse_threat(str(family.scaled(0.5))) == family.with_extent(0.5).whole()
    still = parse_threat("affine:rotation=0,shift=2").around(pictures(2, 1, 4, 4))
    assert still.contains(torch.tensor([[0.0, 1, 2], [1e-3, 0, 0]])).tolist() == [True, False]


def test_a_chain_of_interpolations_blurs_and_the_family_does_not() -> None:
    """Turned by 45 degrees and back by two parts, an image loses contrast; by zero in one, it does not."""
    x = pictures(1, 1, 15, 15)
    twice = rotated(rotated(x, torch.tensor([45.0])), torch.tensor([-45.0]))
    assert float((twice - x)[..., 5:10, 5:10].abs().max()) > 0.05
    assert torch.equal(parse_threat("affine:rotation=45,shift=1").around(x).apply(torch.zeros(1, 3)), x)


@pytest.mark.parametrize("text", ["shift:6", "affine:rotation=10,shift=6", "shift:6+linf:0.1"])
def test_a_shift_larger_than_the_image_is_refused(text: str) -> None:
    with pytest.raises(ThreatError, match="at most the smaller side of the image, 5 pixels of 8 x 5, got 6"):
        parse_threat(text).around(pictures(2, 1, 8, 5))


def test_the_parts_of_a_family_fit_together() -> None:
    with pytest.raises(ThreatError, match="share one box"):
        Affine([Rotation(30), parse_threat("shift:2", (0, 255))])
    with pytest.raises(ThreatError, match="got none"):
        Affine([])
    with pytest.raises(ThreatError, match=r"\(N, C, H, W\)"):
        parse_threat("affine:shift=1").around(torch.rand(2, 5))


LIMITS = {"rotation": 180.0, "shift": 4.0, "scale": 0.9, "shear": 80.0}


@settings(max_examples=25, deadline=None)
@given(
    shares=st.dictionaries(st.sampled_from(list(LIMITS)), st.floats(0, 1), min_size=1),
    shape=st.sampled_from([(1, 4, 4), (3, 5, 9), (2, 8, 4)]),
    box=st.sampled_from([(0.0, 1.0), (-1.0, 3.0), (0.0, 255.0)]),
    seed=st.integers(0, 99),
)
def test_random_families_stay_inside_and_treat_each_image_alone(
    shares: dict[str, float], shape: tuple[int, ...], box: tuple[float, float], seed: int
) -> None:
    text = ",".join(f"{name}={round(LIMITS[name] * shares[name], 3)}" for name in LIMITS if name in shares)
    threat, ids = parse_threat(f"affine:{text}", box), torch.arange(5)
    assert parse_threat(str(threat), box) == threat
    x = box[0] + (box[1] - box[0]) * KeyedGenerator(seed, ids).uniform(*shape)
    allowed = threat.around(x)
    theta = allowed.random_start(KeyedGenerator(seed, ids).fold("start"))
    images = allowed.apply(theta)
    assert allowed.contains(theta).all()
    assert ((images >= box[0]) & (images <= box[1])).all()
    assert torch.equal(allowed.apply(allowed.identity()), x)
    for row in (torch.tensor([3]), torch.tensor([4, 0])):
        own = threat.around(x[row])
        assert torch.equal(own.random_start(KeyedGenerator(seed, row).fold("start")), theta[row])
        assert torch.allclose(own.apply(theta[row]), images[row], atol=1e-4 * (box[1] - box[0]))


@pytest.mark.parametrize(
    ("text", "theta", "words"),
    [
        ("rotation:30", [-12.34], "rotated by 12.3 degrees clockwise"),
        ("rotation:30", [5.0], "rotated by 5.0 degrees counter-clockwise"),
        ("shift:3", [2.0, -1.0], "moved 2 pixels right and 1 up"),
        ("shift:3", [0.0, 1.0], "moved 1 pixel down"),
        ("shift:3", [0.0, 0.0], "unchanged"),
        ("scale:0.5", [0.88], "shrunk by 12 %"),
        ("shear:20", [-5.0], "sheared by 5.0 degrees to the left"),
        ("affine:rotation=30,shift=3", [-9.0, -2, 0.0], "rotated by 9.0 degrees clockwise, moved 2 pixels left"),
        ("affine:shift=3,scale=0.5", [0.0, 0.0, 1.25], "enlarged by 25 %"),
        ("affine:shift=3,scale=0.5", [0.0, 0.0, 1.0], "unchanged"),
    ],
)  # fmt: skip
def test_parameters_are_described_in_words(text: str, theta: list[float], words: str) -> None:
    allowed = parse_threat(text).around(pictures(1, 1, 6, 6))
    assert isinstance(allowed, Described)
    assert allowed.describe(torch.tensor([theta])) == [words]


def test_a_chain_describes_the_parts_that_change_something() -> None:
    allowed = parse_threat("rotation:30+linf:0.1").around(pictures(3, 1, 2, 2))
    theta = torch.tensor([[10.0, 0.1, 0, 0, 0], [0.0, 0, 0, -0.05, 0], [0.0, 0, 0, 0, 0]])
    assert allowed.describe(theta) == [
        "rotated by 10.0 degrees counter-clockwise, changed by 0.1 (linf)",
        "changed by 0.05 (linf)",
        "unchanged",
    ]
