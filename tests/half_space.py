"""A half-space in the space of 4x4 images, with an attack and a certificate in closed form."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustly.attacks import AttackResult
from robustly.attacks.core.contract import ANY_BALL, Needs
from robustly.certification import CertificateResult, Verdict, verdicts_of_radii
from robustly.data import ImageData
from robustly.evaluation import EvaluationTarget, Suite
from robustly.randomness import KeyedGenerator
from robustly.threats.lp import ThreatModel

CLASSES = ("left", "right")
THREAT = ThreatModel("l2", 0.2)


def half_space() -> nn.Module:
    """A linear model whose arithmetic is exact on 8-bit images."""
    linear = nn.Linear(16, 2)
    steps = torch.arange(16) % 5 - 2.0
    linear.weight.data = torch.stack([steps, -steps]) / 4
    linear.bias.data = torch.tensor([-0.125, 0.125])
    return nn.Sequential(nn.Flatten(), linear).eval()


def images() -> ImageData:
    """Twenty images on both sides; every seventh has the wrong label."""
    rows, pixels = torch.arange(20)[:, None], torch.arange(16)[None]
    values = (64 + (rows * 29 + pixels * (17 + rows)) % 128).to(torch.uint8).reshape(20, 1, 4, 4)
    labels = half_space()(values.float() / 255).argmax(1)
    labels[::7] = 1 - labels[::7]
    return ImageData(values, labels, torch.arange(100, 120), CLASSES, "half-space")


def distance(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Euclidean distances from the boundary, and the unit normal that points into class 0."""
    weight = model[1].weight.detach()  # type: ignore[index]
    logits = model(x).detach()
    normal = weight[0] - weight[1]
    return (logits[:, 0] - logits[:, 1]).abs() / normal.norm(), normal / normal.norm()


def across(model: nn.Module, x: Tensor, y: Tensor, reach: float | Tensor) -> Tensor:
    """Images moved straight across the boundary by at most `reach`, misclassified ones unmoved."""
    logits = model(x).detach()
    correct = logits.argmax(1) == y
    far, normal = distance(model, x)
    sign = torch.where(y == 0, -1.0, 1.0)[:, None]
    size = torch.minimum(far * 1.001 + 1e-5, torch.as_tensor(reach).to(far).expand_as(far))
    moved = (x.flatten(1) + sign * size[:, None] * normal).view_as(x).clamp(0, 1)
    return torch.where(correct[:, None, None, None], moved, x)


@dataclass(frozen=True)
class StraightAcross:
    """Move an image straight across the boundary, by at most `reach` epsilons."""

    reach: float = 1.0
    needs: ClassVar[Needs] = ANY_BALL
    minimum_norm: ClassVar[bool] = False

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, threat: ThreatModel, generator: KeyedGenerator
    ) -> AttackResult:
        moved = across(model, x, y, self.reach * float(threat.epsilon))
        after = model(moved).detach()
        broken = after.argmax(1) != y
        gap = after.gather(1, 1 - y[:, None])[:, 0] - after.gather(1, y[:, None])[:, 0]
        ones = torch.ones(len(x), dtype=torch.int64)
        moved_by = torch.where(broken, threat.distance(moved, x), torch.inf)
        return AttackResult(
            moved, broken, moved_by, 2 * ones, ones, ones, ~ones.bool(), margin=gap, zero_gradients=0 * ones
        )


@dataclass(frozen=True)
class HalfSpaceProof:
    """The distance from the boundary as certified radius."""

    certifies: str = "model"

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, threat: ThreatModel, generator: KeyedGenerator
    ) -> CertificateResult:
        radius, prediction = distance(model, x)[0] * (1 - 1e-4), model(x).argmax(1)
        verdict = verdicts_of_radii(radius, prediction, y, threat)
        return CertificateResult(verdict, radius, prediction, self.certifies)


@dataclass(frozen=True)
class HalfSpaceDecision:
    """A complete verifier: it proves the label or shows a counterexample; `spoil` changes its result."""

    certifies: str = "model"
    spoil: Callable[[CertificateResult, Tensor], CertificateResult] | None = None

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, threat: ThreatModel, generator: KeyedGenerator
    ) -> CertificateResult:
        epsilon = float(threat.epsilon)
        logits = model(x).detach()
        prediction, far = logits.argmax(1), distance(model, x)[0]
        verified = (prediction == y) & (far > epsilon)
        found = CertificateResult(
            verdict=torch.where(verified, int(Verdict.VERIFIED), int(Verdict.FALSIFIED)).to(torch.int8),
            radius=torch.where(verified, epsilon, 0.0),
            prediction=prediction,
            certifies=self.certifies,
            lower_bound=(torch.where(prediction == y, far, -far) - epsilon)
            * 2
            * (model[1].weight[0]).detach().norm(),  # type: ignore[index]
            counterexample=across(model, x, y, epsilon),
        )
        return found if self.spoil is None else self.spoil(found, x)


SUITE = Suite(
    "half_space",
    {"across": StraightAcross(), "halfway": StraightAcross(0.5)},
    titles={"across": "Straight across"},
    certificates={"proof": HalfSpaceProof()},
    curve="across",
)


def target() -> EvaluationTarget:
    """The model on the images under the threat."""
    return EvaluationTarget(half_space(), images(), THREAT)
