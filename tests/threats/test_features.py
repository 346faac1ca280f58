"""Limits per feature, for inputs that are not images."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustly.attacks import APGD, PGD
from robustly.randomness import KeyedGenerator
from robustly.threats import Features, ThreatError, parse_threat

LIMITS = torch.tensor([[0.1, 0.0, 0.0, 0.3], [0.2, 0.0, 0.4, 0.0]])  # both ways, frozen, up only, down only


def rows(count: int = 5) -> torch.Tensor:
    return KeyedGenerator(0, torch.arange(count)).uniform(4)


def test_every_feature_has_its_own_limits() -> None:
    allowed = Features(1, LIMITS).around(torch.full((3, 4), 0.5))
    far = torch.tensor([[1.0, 1, 1, 1], [-1, -1, -1, -1], [0, 0, 0, 0]])
    expected = torch.tensor([[0.2, 0, 0.4, 0], [-0.1, 0, 0, -0.3], [0, 0, 0, 0]])
    assert torch.allclose(allowed.project(far), expected)
    assert allowed.size(expected / 2).tolist() == pytest.approx([0.5, 0.5, 0])
    frozen = torch.zeros(3, 4)
    frozen[0, 1], frozen[1, 2] = 1e-20, -1e-20
    assert allowed.contains(frozen).tolist() == [False, False, True]
    assert allowed.describe(expected)[0] == "2 features changed, most feature 2, by +0.4"
    assert allowed.describe(expected)[2] == "unchanged"
    assert "1 of them may not change, and 2 in one direction only" in Features(1, LIMITS).words()


def test_the_box_cuts_the_limits() -> None:
    allowed = Features(2, LIMITS).around(torch.tensor([[0.05, 0.5, 0.9, 0.2]]))
    start = allowed.random_start(KeyedGenerator(0, torch.arange(1)))
    found = allowed.apply(allowed.step(start, torch.tensor([[-1.0, -1, 1, -1]]), torch.tensor([5.0])))
    assert torch.allclose(found, torch.tensor([[0.0, 0.5, 1.0, 0.0]]))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 5), st.permutations(range(5)))
def test_changes_stay_inside_and_do_not_depend_on_the_batch(seed: int, share: float, order) -> None:
    x, index, threat = rows(), torch.tensor(order), Features(share, LIMITS)

    def moved(index: torch.Tensor) -> torch.Tensor:
        allowed, draws = threat.around(x[index]), KeyedGenerator(seed, index)
        theta = allowed.random_start(draws)
        theta = allowed.step(theta, draws.fold("gradient").normal(4), allowed.default_step_size(3))
        assert allowed.contains(theta).all()
        return allowed.apply(theta)

    found = moved(torch.arange(5))
    assert (found - x <= share * LIMITS[1] + 1e-6).all()
    assert (x - found <= share * LIMITS[0] + 1e-6).all()
    assert torch.equal(found[:, 1], x[:, 1])
    assert torch.equal(moved(index), found[index])
    assert torch.equal(moved(torch.tensor([1])), found[1:2])


class Linear(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        lead = x @ torch.tensor([1.0, 100.0, -1.0, -2.0]) - 55
        return torch.stack([torch.zeros_like(lead), lead], 1)


@pytest.mark.parametrize("attack", [PGD(10), APGD(20)], ids=["pgd", "apgd"])
def test_the_worst_case_of_a_linear_model_is_reached(attack) -> None:
    """The best change is +0.2 * 1 + 0.3 * 2: the heavy feature is frozen, the third may not fall."""
    x, y = torch.full((3, 4), 0.5), torch.zeros(3, dtype=torch.int64)
    draws = KeyedGenerator(0, torch.arange(3))
    found = attack(Linear(), x, y, threat=Features(1, LIMITS), generator=draws)
    gain = (found.x_adv - x) @ torch.tensor([1.0, 100.0, -1.0, -2.0])
    assert gain.tolist() == pytest.approx([0.8] * 3, abs=1e-5)


def test_limits_are_read_from_a_table(tmp_path: Path) -> None:
    file = tmp_path / "limits.csv"
    file.write_text('feature,decrease,increase\n"size, mean",0.1,0.2\nage,0,0\nweight,0,0.4\nlength,0.3,0\n')
    threat = parse_threat(f"features:0.5@{file}")
    assert threat == Features("0.5", LIMITS)
    assert parse_threat(str(threat), arrays=threat.arrays) == threat
    assert threat != Features("0.5", 2 * LIMITS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must have the columns feature,decrease,increase"),
        ("name,low,high\na,0,1\n", "must have the columns"),
        ("feature,decrease,increase\n", "has no features"),
        ("feature,decrease,increase\na,0\n", "line 2 must be a name and two numbers, got 'a,0'"),
        ("feature,decrease,increase\na,0,1\nb,x,1\n", "line 3 must be a name and two numbers"),
        ("feature,decrease,increase\na,0,1\nb,-1,1\n", "that of feature 1 is not"),
        ("feature,decrease,increase\na,0,inf\n", "that of feature 0 is not"),
        ("feature,decrease,increase\na,0,0\n", "no feature to change"),
    ],
)
def test_bad_files_are_refused(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "limits.csv"
    file.write_text(content)
    with pytest.raises(ThreatError, match=message):
        parse_threat(f"features:1@{file}")


def test_inputs_of_another_length_are_refused() -> None:
    with pytest.raises(ThreatError, match=r"for 4 features, the inputs have 5 \(shape \(2, 5\)\)"):
        Features(1, LIMITS).around(torch.rand(2, 5))
    with pytest.raises(ThreatError, match=r"tensor \(2, features\).*got \(4,\)"):
        Features(1, LIMITS[0])
    with pytest.raises(ThreatError, match="at least 0, got -1"):
        Features(-1, LIMITS)
