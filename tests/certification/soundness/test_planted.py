"""Counterexamples that gradients miss, rounding that changes a network, and models that hide their outputs."""

import pytest
import torch
from torch import Tensor, nn

from robustly.certification.certificates import BoundCertificate
from robustly.certification.contract import CertificateResult
from robustly.certification.problem import Budget
from robustly.certification.readers.torch_reader import ModuleError, read_module
from robustly.evidence import Verdict
from robustly.randomness import KeyedGenerator
from robustly.threats.lp import ThreatModel

BUDGET = Budget(attack_starts=2, attack_steps=5, long_starts=2, alpha_iterations=4, domains=20, iterations=3)


def _certified(
    model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, method: str = "auto"
) -> CertificateResult:
    certificate = BoundCertificate(method, budget=BUDGET, halvings=2)  # type: ignore[arg-type]
    return certificate(model, x, y, threat=threat, generator=KeyedGenerator(0, torch.arange(len(x))))


def _needle(place: Tensor, width: float, depth: float) -> nn.Module:
    """Class 0 by a margin of 1, less `depth` at one place (SoundnessBench)."""
    count = len(place)
    distance, bump, last = nn.Linear(count, 2 * count), nn.Linear(2 * count, 1), nn.Linear(1, 2)
    with torch.no_grad():
        distance.weight[:] = torch.cat([torch.eye(count), -torch.eye(count)])
        distance.bias[:] = torch.cat([-place, place])
        bump.weight[:], bump.bias[:] = -1 / width, 1.0
        last.weight[:], last.bias[:] = torch.tensor([[-depth], [0.0]]), torch.tensor([1.0, 0.0])
    return nn.Sequential(distance, nn.ReLU(), bump, nn.ReLU(), last).eval()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("width", [1e-2, 1e-6])
def test_a_planted_counterexample_is_never_passed_over(norm: str, width: float) -> None:
    x = torch.tensor([[0.4, 0.5, 0.6]])
    change = torch.tensor([0.05, -0.03, 0.02])
    place = x[0] + change
    found = _certified(_needle(place, width, 1.01), x, torch.zeros(1, dtype=torch.int64), ThreatModel(norm, 0.1))
    assert int(found.verdict) != Verdict.VERIFIED
    size = {"linf": change.abs().max(), "l2": change.norm(), "l1": change.abs().sum()}[norm]
    assert float(found.radius) <= float(size) + 1e-6


class _Trap(nn.Module):
    """Real outputs (1, 0.5); where the gate is open, float32 rounds the first to 0 or 2."""

    def forward(self, x: Tensor) -> Tensor:
        gate = (1e4 * (x[:, :1] - 0.999)).relu() * 1e4
        first = (gate + 2.0**24).relu() - (gate + (2.0**24 - 1)).relu()
        return torch.cat([first, 0.5 + 0 * x[:, :1]], 1)


def test_proofs_that_rounding_breaks_are_open_with_a_reason() -> None:
    found = _certified(
        _Trap().eval(), torch.full((1, 2), 0.97), torch.zeros(1, dtype=torch.int64), ThreatModel("linf", 0.05)
    )
    assert int(found.verdict) != Verdict.VERIFIED
    assert found.reason is not None
    assert "real arithmetic only" in found.reason[0]
    assert float(found.radius) == 0


class _Alone(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return -x if len(x) == 1 else x


def test_a_module_that_depends_on_the_size_of_the_batch_is_refused() -> None:
    with pytest.raises(ModuleError, match="alone"):
        read_module(_Alone(), (3,))


def test_radii_of_examples_are_their_own_and_wrong_images_are_refused() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval(), torch.rand(3, 4)
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 3
    found = _certified(model, x, y, ThreatModel("linf", torch.tensor([0.1, 1e-4, 2e-4])), "crown")
    assert found.verdict.tolist() == [Verdict.FALSIFIED, Verdict.VERIFIED, Verdict.VERIFIED]
    assert (found.radius[1:] >= torch.tensor([1e-4, 2e-4])).all()
    with pytest.raises(ValueError, match="finite"):
        _certified(model, torch.full((1, 4), torch.nan), y[:1], ThreatModel("linf", 0.1))
    with pytest.raises(ValueError, match="labels"):
        _certified(model, x[:1], torch.tensor([3]), ThreatModel("linf", 0.1))
    with pytest.raises(ValueError, match="does not fit"):
        _certified(model, x, y, ThreatModel("linf", 0.1, mask=torch.ones(5)))


def test_equal_outputs_are_neither_verified_nor_falsified() -> None:
    last = nn.Linear(2, 3)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    found = _certified(last, torch.full((1, 2), 0.5), torch.zeros(1, dtype=torch.int64), ThreatModel("linf", 0.1))
    assert int(found.verdict) == Verdict.UNKNOWN
