"""`robustly.certify`: the interval, the rows, and what is refused."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import robustly
from robustly.evaluation import EvaluationError


def network() -> nn.Sequential:
    """A network of two inputs and two classes: z_0 - z_1 = x_0 - x_1, through ReLUs."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        net[1].weight.copy_(torch.eye(2))
        net[3].weight.copy_(torch.eye(2))
    return net


def images() -> tuple[Tensor, Tensor]:
    """Images with l-inf distances 0.1, 0.2, 0.3 and 0.4 to the boundary; the last has a wrong label."""
    apart = torch.tensor([51, 102, 153, 204]) / 255
    x = torch.stack([0 * apart, apart], 1).view(4, 1, 1, 2)
    return x, torch.tensor([1, 1, 1, 0])


@pytest.mark.slow  # with an audit
def test_every_image_is_falsified_or_verified_at_its_distance() -> None:
    net = network().train()
    result = robustly.certify(net, images(), "linf:0.25", halvings=6, progress=False)
    assert net.training
    verdicts = [one["verdict"] for one in result.proofs]
    assert verdicts == ["falsified", "falsified", "verified", "falsified"]
    assert [one["stage"] for one in result.proofs if one["verdict"] == "verified"] == ["ibp"]
    assert [one["id"] for one in result.proofs] == [0, 1, 2, 3]
    radii = [one["radius"] for one in result.proofs]
    exact = [0.1, 0.2, 0.3, 0.0]
    for found, true in zip(radii, exact, strict=True):
        assert isinstance(found, float)
        assert true - 0.25 / 64 - 1e-6 <= found <= true + 1e-9, "a radius up to the last halving below the distance"
    interval = result.interval
    assert interval is not None
    assert (interval.certified.hits, interval.attacked.hits, interval.undecided) == (1, 1, 0)
    assert "interval    25.0 % certified to 25.0 % attacked, 0 undecided" in repr(result)
    assert result.audit().passed


def test_a_method_names_its_certificate_and_its_open_images() -> None:
    result = robustly.certify(network(), images(), "linf:0.15", "ibp", count=2, halvings=0, progress=False)
    assert result.summary.suite.name == "quick+ibp"
    assert {one["certificate"] for one in result.proofs} == {"ibp"}
    assert [one["verdict"] for one in result.proofs] == ["falsified", "verified"]
    assert robustly.evaluate(network(), images(), "linf:0.15", "pgd_10", progress=False).interval is None


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.01 * torch.randn_like(x)


@pytest.mark.parametrize(
    ("last", "threat", "words"),
    [
        (Sine(), "linf:0.1", r"'certify' cannot be computed: Operator 'sin' of module '4' .* supported are abs, "),
        (Noisy(), "linf:0.1", "is not deterministic"),
        (nn.Identity(), "rotation:10", "the threat is 'rotation': certify a ball such as linf:0.1"),
    ],
)
def test_what_cannot_be_proved_is_refused_before_the_attacks(last: nn.Module, threat: str, words: str) -> None:
    def attacked(*arguments: object) -> None:
        raise AssertionError("the attacks started")

    with pytest.raises(EvaluationError, match=words):
        robustly.certify(nn.Sequential(*network(), last), images(), threat, progress=attacked)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="the time for branch and bound is -1 seconds"):
        robustly.certify(network(), images(), "linf:0.1", seconds=-1)
    with pytest.raises(ValueError, match="halvings is -2"):
        robustly.certify(network(), images(), "linf:0.1", halvings=-2)


@pytest.mark.slow
def test_a_killed_call_continues_with_the_same_numbers(tmp_path: Path) -> None:
    whole = robustly.certify(network(), images(), "linf:0.25", progress=False)

    def stop(name: str, done: int, total: int) -> None:
        if name.startswith("certify") and done:
            raise KeyboardInterrupt

    words = {"checkpoint": tmp_path / "parts", "batch_size": 2}
    with pytest.raises(KeyboardInterrupt):
        robustly.certify(network(), images(), "linf:0.25", progress=stop, **words)  # type: ignore[arg-type]
    assert len([*(tmp_path / "parts" / "certificate.certify").glob("*.safetensors")]) == 1
    again = robustly.certify(network(), images(), "linf:0.25", progress=False, **words)  # type: ignore[arg-type]
    for mine, theirs in zip(again.proofs, whole.proofs, strict=True):
        assert {**mine, "seconds": 0} == {**theirs, "seconds": 0}
