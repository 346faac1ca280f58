"""A goal on maps instead of logits: searches use the model's output only through the goal."""

from dataclasses import dataclass

import pytest
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from robustly.attacks import APGD, FAB, MIM, PGD, AttackError
from robustly.objectives import Goal
from robustly.randomness import KeyedGenerator
from robustly.threats import Rotation, ThreatModel


@dataclass(frozen=True)
class Segmentation:
    """At least `share` of the pixels of a map `(N, K, H, W)` misclassified."""

    y: Int64[Tensor, "n h w"]
    share: float = 0.5

    def check(self, output: Float[Tensor, "n ..."]) -> None:
        if output.ndim != 4 or output.shape[2:] != self.y.shape[1:]:
            raise ValueError(f"a map (N, K, H, W) is needed, got {tuple(output.shape)}")

    def reached(self, output: Float[Tensor, "n k h w"]) -> Bool[Tensor, " n"]:
        return self.margin(output) > 0

    def margin(self, output: Float[Tensor, "n k h w"]) -> Float[Tensor, " n"]:
        return (output.argmax(1) != self.y).flatten(1).float().mean(1) - self.share + 1e-6

    def select(self, index: Tensor) -> "Segmentation":
        return Segmentation(self.y[index], self.share)


def pixel_loss(output: Float[Tensor, "n k h w"], goal: Segmentation) -> Float[Tensor, " n"]:
    return nn.functional.cross_entropy(output, goal.y, reduction="none").flatten(1).mean(1)


class Segmenter(nn.Module):
    """Class 1 where a pixel is brighter than a half."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([0.5 - x, x - 0.5], dim=1) * 10


@pytest.fixture
def scene() -> tuple[Tensor, Segmentation]:
    x = KeyedGenerator(0, torch.arange(8)).uniform(1, 6, 6)
    return x, Segmentation((x[:, 0] > 0.5).long())


@pytest.mark.parametrize("attack", [PGD(10, pixel_loss), MIM(10, objective=pixel_loss), APGD(10, pixel_loss)])
def test_a_map_is_attacked_like_logits(attack: PGD, scene: tuple[Tensor, Segmentation]) -> None:
    x, goal = scene
    assert isinstance(goal, Goal)
    draws = KeyedGenerator(1, torch.arange(len(x)))
    near = (x - 0.5).abs().flatten(1)
    for epsilon in (0.1, 0.3):
        found = attack(Segmenter(), x, goal, threat=ThreatModel("linf", epsilon), generator=draws)
        possible = (near < epsilon).float().mean(1) >= goal.share
        assert torch.equal(found.broken, possible)
        assert found.margin is not None
        assert torch.equal(found.margin > 0, found.broken)
    turned = attack(Segmenter(), x, goal, threat=Rotation(180), generator=draws)
    assert turned.theta is not None


def test_what_needs_classes_says_so(scene: tuple[Tensor, Segmentation]) -> None:
    x, goal = scene
    draws = KeyedGenerator(1, torch.arange(len(x)))
    with pytest.raises(AttackError, match=r"classification.* Segmentation"):
        FAB()(Segmenter(), x, goal, threat=ThreatModel("linf", 0.1), generator=draws)


def test_an_output_that_does_not_fit_is_refused_by_the_goal(scene: tuple[Tensor, Segmentation]) -> None:
    x, goal = scene
    draws = KeyedGenerator(1, torch.arange(len(x)))
    with pytest.raises(AttackError, match=r"a map .* is needed, got"):
        PGD(2, pixel_loss)(nn.Flatten(), x, goal, threat=ThreatModel("linf", 0.1), generator=draws)
