"""Changes within principal directions: their geometry, and the data that the directions come from."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustly.attacks import PGD
from robustly.data import ImageData, make_planes
from robustly.objectives import margin
from robustly.randomness import KeyedGenerator
from robustly.threats import Planes, Subspace, ThreatError, parse_threat
from robustly.threats.planes import nearest_plane, read_planes, write_planes

SHAPE = (2, 3, 3)


def planes(classes: int = 2, directions: int = 4) -> Planes:
    basis = torch.linalg.qr(KeyedGenerator(7, torch.arange(classes)).normal(18, directions))[0].mT
    means = torch.linspace(0.3, 0.7, classes)[:, None, None].expand(-1, 1, 18)
    return Planes(torch.cat([means, basis], 1))


def inputs(count: int = 4) -> torch.Tensor:
    return KeyedGenerator(0, torch.arange(count)).uniform(*SHAPE) * 0.2 + 0.4


def test_changes_lie_in_the_span_of_the_own_class_and_have_its_length() -> None:
    labels, given = torch.tensor([1, 0, 1, 1]), planes()
    allowed = Subspace("0.3", given, classes=labels).around(inputs())
    theta = allowed.random_start(KeyedGenerator(1, torch.arange(4)))
    change = (allowed.apply(theta) - allowed.x).flatten(1)
    for row, label in enumerate(labels):
        basis = given.values[label, 1:]
        assert torch.allclose(change[row] @ basis.T @ basis, change[row], atol=1e-6)
        other = given.values[1 - label, 1:]
        assert not torch.allclose(change[row] @ other.T @ other, change[row], atol=1e-3)
    assert torch.allclose(change.norm(dim=1), allowed.size(theta), atol=1e-6)
    assert float(allowed.size(theta).max()) <= 0.3


class Linear(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", KeyedGenerator(3, torch.arange(1)).normal(18)[0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        lead = x.flatten(1) @ self.weight - 100
        return torch.stack([torch.zeros_like(lead), lead], 1)


def test_ascent_on_a_linear_model_gains_the_length_of_its_shadow() -> None:
    """The largest gain is epsilon * |V w|, by Cauchy and Schwarz, while the box is inactive."""
    x, y, draws = inputs(), torch.zeros(4, dtype=torch.int64), KeyedGenerator(0, torch.arange(4))
    one = Planes(planes().values[:1])
    found = PGD(30, objective=margin, start="none")(Linear(), x, y, threat=Subspace("0.2", one), generator=draws)
    before = Linear()(x)[:, 1]
    shadow = (one.values[0, 1:] @ Linear().weight).norm()
    assert torch.allclose(found.margin - before, (0.2 * shadow).expand(4), rtol=1e-3)


def test_with_all_directions_it_is_the_l2_ball() -> None:
    whole = Planes(torch.cat([torch.zeros(1, 18), torch.linalg.qr(torch.randn(18, 18))[0]])[None])
    x, y, draws = inputs(), torch.zeros(4, dtype=torch.int64), KeyedGenerator(0, torch.arange(4))
    attack = PGD(5, objective=margin, start="none")
    one, two = (
        attack(Linear(), x, y, threat=threat, generator=draws).x_adv
        for threat in (Subspace("0.1", whole), parse_threat("l2:0.1"))
    )
    assert torch.allclose(one, two, atol=1e-5)


def test_without_classes_the_nearest_plane_is_used() -> None:
    given = planes(3)
    basis = given.values[:, 1:]
    x = given.values[:, 0] + torch.ones(3, 1, 4).bmm(basis)[:, 0] * 0.01
    assert nearest_plane(x.reshape(3, *SHAPE), given).tolist() == [0, 1, 2]
    threat = Subspace(1, given)
    assert "nearest to it" in threat.words()
    assert "its class" in threat.of_classes(torch.tensor([0])).words()
    assert "of the data" in Subspace(1, Planes(given.values[:1])).words()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 5), st.permutations(range(4)), st.booleans())
def test_changes_stay_inside_and_do_not_depend_on_the_batch(seed: int, size: float, order, labelled: bool) -> None:
    x, rows = inputs(), torch.tensor(order)
    threat = Subspace(size, planes(), classes=torch.tensor([0, 1, 1, 0]) if labelled else None)

    def moved(rows: torch.Tensor) -> torch.Tensor:
        allowed, draws = threat.select(rows).around(x[rows]), KeyedGenerator(seed, rows)
        theta = allowed.random_start(draws)
        theta = allowed.step(theta, draws.fold("gradient").normal(4), allowed.default_step_size(3))
        assert allowed.contains(theta).all()
        assert float(theta.norm(dim=1).max()) <= size * 1.00001
        return allowed.apply(theta)

    found = moved(torch.arange(4))
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    assert torch.allclose(moved(rows), found[rows], atol=1e-5)
    assert torch.allclose(moved(torch.tensor([1])), found[1:2], atol=1e-5)


def digits(count: int = 24, shift: int = 0) -> ImageData:
    bits = KeyedGenerator(5, torch.arange(shift, shift + count)).integers(256, *SHAPE).to(torch.uint8)
    labels = torch.arange(count) % 2
    return ImageData(bits, labels, torch.arange(count), ("a", "b"), "made up")


def test_planes_are_those_of_the_data_and_name_them(tmp_path: Path) -> None:
    data = digits()
    file = make_planes(data, tmp_path / "planes.safetensors", directions=3, per_class=True)
    given = read_planes(file)
    points = data.floats(data.labels == 1).flatten(1)
    assert given.values.shape == (2, 4, 18)
    assert torch.allclose(given.values[1, 0], points.mean(0), atol=1e-6)
    exact = torch.linalg.eigh((points - points.mean(0)).T @ (points - points.mean(0)))[1][:, -3:]
    assert torch.allclose(given.values[1, 1:].T @ given.values[1, 1:], exact @ exact.T, atol=1e-4)
    threat = parse_threat(f"subspace:2@{file}")
    assert isinstance(threat, Subspace)
    threat.check_data(data.digest)
    with pytest.raises(ThreatError, match="were made from other training data"):
        threat.check_data(digits(shift=1).digest)
    stored = parse_threat(str(threat), arrays=threat.arrays)
    assert stored == threat
    assert str(threat) == f"subspace:2@{given.digest}"


def test_bad_planes_are_refused(tmp_path: Path) -> None:
    data = digits()
    with pytest.raises(ValueError, match="12 images of class 'a' have at most 11 principal"):
        make_planes(data, tmp_path / "file", directions=12, per_class=True)
    with pytest.raises(ThreatError, match="for inputs of 18 values, got 8"):
        Subspace(1, planes()).around(torch.rand(2, 2, 2, 2))
    with pytest.raises(ThreatError, match="must be orthonormal"):
        Planes(2 * planes().values)
    with pytest.raises(ThreatError, match=r"got the shape \(0, 5, 18\)"):
        Planes(planes().values[:0])
    with pytest.raises(ThreatError, match=r"int64 \(N,\) in 0..1"):
        Subspace(1, planes(), classes=torch.tensor([2]))
    with pytest.raises(ThreatError, match="classes of 1 inputs, got 4 inputs"):
        Subspace(1, planes(), classes=torch.tensor([1])).around(inputs())
    (tmp_path / "text").write_text("no planes")
    for name in ("text", "missing"):
        with pytest.raises(ThreatError, match="is not a file of planes"):
            parse_threat(f"subspace:1@{tmp_path / name}")
    file = write_planes(tmp_path / "planes", planes())
    assert torch.equal(read_planes(file).values, planes().values)
