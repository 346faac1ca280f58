"""Corruptions as a threat: its value, its finite set, the exhaustive search, and searches that need a gradient."""

import copy
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from robustly.attacks import AttackError, ExhaustiveSearch, dynat_pgd
from robustly.corruptions import STANDARD, corrupt
from robustly.corruptions.mnist_c import corrupt_digits
from robustly.data import Splits
from robustly.evaluation.suites.builtin import quick, standard, strong
from robustly.evaluation.suites.semantic import semantic
from robustly.evaluation.suites.unforeseen import unforeseen
from robustly.randomness import KeyedGenerator
from robustly.testing import check_threat
from robustly.threats import CorruptionSet, CorruptionThreat, EditSet, Threat, ThreatError, ThreatSet, parse_threat


def images(count: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    return KeyedGenerator(0, torch.arange(count)).uniform(3, 8, 9).to(dtype)


def test_the_value_follows_the_contract_of_threats() -> None:
    threat = parse_threat("corruption:3")
    assert isinstance(threat, Threat)
    assert str(threat) == "corruption:3"
    assert threat == CorruptionThreat(3) == threat.scaled(1.0)
    assert hash(threat) == hash(CorruptionThreat("3"))
    assert (str(threat.scaled(0.5)), str(threat.scaled(9.0))) == ("corruption:1", "corruption:5")
    assert threat.extents_at((0.0, 0.25, 0.5, 1.0, 2.0)) == [Fraction(1), Fraction(3)]
    assert threat.with_extent(Fraction(5)) == CorruptionThreat(5)
    assert "severity of at most 3." in threat.words()
    assert isinstance(threat.around(images()), ThreatSet)
    assert isinstance(threat.around(images()), EditSet)


@pytest.mark.parametrize("severity", [2, 5])
def test_the_contract_of_threats_holds_but_for_gradients(severity: int) -> None:
    check_threat(CorruptionThreat(severity), shape=(3, 9, 8))


def test_the_identity_is_exact_and_choices_are_the_corruptions() -> None:
    x = images()
    allowed = CorruptionThreat(3).around(x)
    assert torch.equal(allowed.apply(allowed.identity()), x)  # values off the 8-bit grid stay
    assert (allowed.size(allowed.identity()) == 0).all()
    theta = torch.tensor([[0, 0, 5], [1, 3, 77], [12, 1, 9], [1, 3, 77]], dtype=x.dtype)
    rendered = allowed.apply(theta)
    assert torch.equal(rendered[0], x[0])
    pixels = (x * 255).round().to(torch.uint8)
    noise = corrupt(pixels[1::2], "gaussian_noise", 3, ids=torch.tensor([77, 77]))
    assert torch.equal(rendered[1::2], noise / 255)
    assert torch.equal(rendered[2], corrupt(pixels[2:3], STANDARD[11], 1)[0] / 255)
    assert allowed.size(theta).tolist() == [0, 3, 1, 3]
    rows = torch.tensor([3, 1])
    assert torch.equal(allowed.select(rows).apply(theta[rows]), rendered[rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_random_choices_are_contained_and_depend_on_the_example_alone(dtype: torch.dtype) -> None:
    x = images(40, dtype)
    allowed = CorruptionThreat(2).around(x)
    theta = allowed.random_start(KeyedGenerator(3, torch.arange(40)))
    assert theta.dtype == dtype
    assert allowed.contains(theta).all()
    assert set(theta[:, 1].tolist()) == {1, 2}
    assert len(set(theta[:, 0].tolist())) > 8
    assert torch.equal(allowed.project(theta), theta)
    rows = torch.tensor([7, 2])
    assert torch.equal(allowed.select(rows).random_start(KeyedGenerator(3, rows)), theta[rows])
    assert allowed.apply(theta).dtype == dtype
    assert CorruptionThreat(2).around(x[:0]).identity().shape == (0, 3)
    nothing = CorruptionThreat(0).around(x)
    start = nothing.random_start(KeyedGenerator(3, torch.arange(40)))
    assert torch.equal(nothing.apply(start), x)


def test_choices_outside_the_set_are_not_contained() -> None:
    allowed = CorruptionThreat(2).around(images(6))
    nan = float("nan")
    theta = torch.tensor([[1, 3, 0], [16, 1, 0], [1.5, 1, 0], [1, 1, -1], [nan, 1, 0], [0, 1, 0]])
    assert not allowed.contains(theta).any()
    assert allowed.contains(allowed.project(theta.nan_to_num(0.0))).all()


def test_candidates_are_the_whole_set_by_severity() -> None:
    allowed = CorruptionThreat(2).around(images(2))
    theta = torch.tensor([[0.0, 0.0, 5.0], [0.0, 0.0, 6.0]])
    found = allowed.candidates(theta, theta, allowed.count)
    assert found.shape == (2, 30, 3)
    assert [tuple(one) for one in found[0, :, :2].tolist()] == [(k, s) for s in (1, 2) for k in range(1, 16)]
    assert found[:, :, 2].tolist() == [[5.0] * 30, [6.0] * 30]
    assert all(allowed.contains(found[:, place]).all() for place in range(30))


class Brightness(nn.Module):
    """Class 1 from a mean of 0.6 on."""

    def forward(self, x: Tensor) -> Tensor:
        level = 20 * (x.flatten(1).mean(1) - 0.6)
        return torch.stack([-level, level], 1)


def test_the_search_finds_the_smallest_severity_that_breaks() -> None:
    # grey of 0.51, 0.42 and 0.31: brightness adds at most 0.1 (severity 2), snow and fog less or more
    x = torch.stack([torch.full((3, 8, 8), level / 255) for level in (130, 108, 80)])
    y = torch.zeros(3, dtype=torch.int64)
    model, generator = Brightness(), KeyedGenerator(0, torch.arange(3))
    found = ExhaustiveSearch()(model, x, y, threat=CorruptionThreat(2), generator=generator)
    assert found.theta is not None
    allowed = CorruptionThreat(2).around(x)
    assert torch.equal(allowed.apply(found.theta), found.x_adv)
    assert torch.equal(model(found.x_adv).argmax(1) == 1, found.broken)
    for row in range(3):  # by hand, all choices with the same random numbers
        candidates = [
            (kind, severity)
            for severity in (1, 2)
            for kind in range(1, 16)
            if int(model(allowed.select(torch.tensor([row])).apply(
                torch.tensor([[kind, severity, float(_number(generator, row))]]))).argmax()) == 1
        ]  # fmt: skip
        assert bool(found.broken[row]) == bool(candidates)
        if candidates:
            assert tuple(found.theta[row, :2].tolist()) == candidates[0]
            assert float(found.distance[row]) == candidates[0][1]
    assert found.broken.any()
    assert not found.broken.all()
    assert int(found.forwards[~found.broken][0]) == 31  # the clean pass and 15 corruptions at 2 severities


def _number(generator: KeyedGenerator, row: int) -> int:
    return int(generator.fold("exhaustive", 0).integers(1 << 24, 1)[row, 0])


@pytest.mark.slow
def test_more_draws_never_break_fewer_and_batches_do_not_matter(digits: Splits, digit_net: nn.Module) -> None:
    data = digits.test.select(torch.arange(10))
    x, y, generator = data.floats(), data.labels, KeyedGenerator(1, data.ids)
    threat = CorruptionThreat(1)
    one, more = (ExhaustiveSearch(k)(digit_net, x, y, threat=threat, generator=generator) for k in (1, 3))
    assert not (one.broken & ~more.broken).any()
    rows = torch.tensor([8, 3])
    part = ExhaustiveSearch(1)(digit_net, x[rows], y[rows], threat=threat, generator=generator.select(rows))
    assert torch.equal(part.broken, one.broken[rows])
    assert torch.equal(part.x_adv, one.x_adv[rows])


def digit_images(count: int = 4) -> Tensor:
    return KeyedGenerator(0, torch.arange(count)).uniform(1, 28, 28)


def test_the_corruptions_of_mnist_c_are_a_threat_of_their_own() -> None:
    threat = parse_threat("mnist_c:1")
    assert isinstance(threat, CorruptionThreat)
    assert (threat.kind, str(threat), threat.extents_at((0.5, 1.0, 2.0))) == ("mnist_c", "mnist_c:1", [Fraction(1)])
    assert threat == threat.scaled(1.7) == copy.deepcopy(threat)
    assert threat != parse_threat("corruption:1")
    assert str(threat.scaled(0.5)) == "mnist_c:0"
    assert "15 corruptions of MNIST-C" in threat.words()
    check_threat(threat, shape=(1, 28, 28))
    x = digit_images()
    allowed = threat.around(x)
    theta = torch.tensor([[0, 0, 5], [6, 1, 77], [10, 1, 9], [6, 1, 78]], dtype=x.dtype)
    rendered = allowed.apply(theta)
    pixels = (x * 255).round().to(torch.uint8)
    assert torch.equal(rendered[0], x[0])
    scaled = corrupt_digits(pixels[1::2], "scale", ids=torch.tensor([77, 78]))
    assert torch.equal(rendered[1::2], scaled / 255)
    assert torch.equal(rendered[2], corrupt_digits(pixels[2:3], "stripe")[0] / 255)
    assert torch.equal(allowed.select(torch.tensor([2])).apply(theta[2:3])[0], rendered[2])
    every = allowed.candidates(theta, theta, allowed.count)
    assert [tuple(one) for one in every[0, :, :2].tolist()] == [(kind, 1) for kind in range(1, 16)]


def test_the_exhaustive_search_tries_every_corruption_of_mnist_c() -> None:
    x = torch.full((2, 1, 28, 28), 0.5)  # inverted quarters of grey change the mean by less than fog does
    x[1] = 0.1
    y, generator = torch.zeros(2, dtype=torch.int64), KeyedGenerator(0, torch.arange(2))
    found = ExhaustiveSearch()(Brightness(), x, y, threat=parse_threat("mnist_c:1"), generator=generator)
    assert found.theta is not None
    allowed = parse_threat("mnist_c:1").around(x)
    assert torch.equal(allowed.apply(found.theta), found.x_adv)
    tried = [
        [allowed.select(torch.tensor([row])).apply(torch.tensor([[kind, 1.0, float(_number(generator, row))]]))
         for kind in range(1, 16)]
        for row in range(2)
    ]  # fmt: skip
    broken = [any(int(Brightness()(one).argmax()) == 1 for one in images) for images in tried]
    assert found.broken.tolist() == broken == [True, False]
    assert found.forwards.tolist()[1] == 16
    for suite in (quick, standard, strong, semantic, unforeseen):
        assert suite("mnist_c").attacks == suite("corruption").attacks


def test_mnist_c_is_refused_by_name_for_other_images_and_severities() -> None:
    threat = parse_threat("mnist_c:1")
    for shape in ((2, 3, 28, 28), (2, 1, 32, 32), (2, 784)):
        with pytest.raises(ThreatError, match=r"mnist_c is defined for grey images \(N, 1, 28, 28\), got"):
            threat.around(torch.zeros(shape))
    for text in ("mnist_c:0", "mnist_c:2", "mnist_c:0.5", "mnist_c:fog", "corruption:mnist_c"):
        with pytest.raises(ThreatError, match="MNIST-C have one severity, mnist_c:1, got"):
            parse_threat(text)
    with pytest.raises(ThreatError, match=r"images in \[0, 1\], the box is"):
        parse_threat("mnist_c:1", (-1.0, 1.0))
    with pytest.raises(ThreatError, match="'mnist_c' must have the form KIND:SIZE, such as mnist_c:1"):
        parse_threat("mnist_c")
    with pytest.raises(ThreatError, match="mnist_c:1 cannot be a part of a chain"):
        parse_threat("mnist_c:1+linf:0.1")


def test_what_is_not_defined_is_refused_in_one_sentence() -> None:
    for text in ("corruption:0", "corruption:6", "corruption:2.5"):
        with pytest.raises(ThreatError, match=f"whole number from 1 to 5, got {text.partition(':')[2]}"):
            parse_threat(text)
    with pytest.raises(ThreatError, match=r"images in \[0, 1\], the box is"):
        parse_threat("corruption:2", (-1.0, 1.0))
    with pytest.raises(ThreatError, match=r"at least 8 x 8 pixels, got \(2, 3, 7, 9\)"):
        CorruptionThreat(1).around(torch.zeros(2, 3, 7, 9))
    with pytest.raises(ThreatError, match="cannot be a part of a chain"):
        parse_threat("corruption:2+linf:0.1")
    x = images()
    with pytest.raises(AttackError, match="with gradients, the threat is corruption:2, which has no gradient: use"):
        dynat_pgd(2)(
            Brightness(),
            x,
            torch.zeros(4).long(),
            threat=CorruptionThreat(2),
            generator=KeyedGenerator(0, torch.arange(4)),
        )
    with pytest.raises(ThreatError, match="corruptions have no gradient"):
        CorruptionSet(x, torch.ones(4)).step(torch.zeros(4, 3), torch.zeros(4, 3), torch.ones(4))
    with pytest.raises(ValueError, match="restarts must be at least 1, got 0"):
        ExhaustiveSearch(0)
