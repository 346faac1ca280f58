"""Models and images that an evaluation meets sooner or later: refused with a reason, or counted, never robust."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustly.attacks import APGD, PGD, AttackError
from robustly.attacks.adaptive import ExpectationOverTransformation
from robustly.attacks.square import Square
from robustly.data import ImageData
from robustly.evaluation import EvaluationError, Plan, Suite, evaluate, suite_named
from robustly.evaluation.suites.builtin import standard
from robustly.objectives import scaled_cross_entropy
from robustly.randomness import KeyedGenerator
from robustly.threats.contract import ThreatError
from robustly.threats.lp import ThreatModel

LINF = ThreatModel("linf", 0.3)
SHORT = Suite(
    "short",
    {"screen": APGD(5, scaled_cross_entropy), "watch": Square(queries=60), "more": Square(queries=200)},
    plans={"watch": Plan(sample=20, sentinel=True), "more": Plan(on_suspicion=True)},
    worst_case=True,
)


def images(net: nn.Module, count: int = 24, shape: tuple[int, ...] = (1, 6, 6), classes: int = 3) -> ImageData:
    """Random images that the net has right."""
    draws = KeyedGenerator(5, torch.arange(count))
    pixels = draws.integers(256, *shape).to(torch.uint8)
    with torch.no_grad():
        labels = net.eval()(pixels.float() / 255).argmax(1)
    return ImageData(pixels, labels, torch.arange(count), tuple(str(k) for k in range(classes)), "random")


class Linear(nn.Module):
    def __init__(self, classes: int = 3, size: int = 36) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(size, classes))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits


class Blocked(Linear):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x.detach())
        return logits


class NoGrad(Linear):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits


class Rounded(Linear):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net((x * 8).round() / 8)
        return logits


@pytest.mark.parametrize("kind", [Blocked, NoGrad, Rounded])
def test_a_model_without_gradients_is_broken_without_them_and_the_headline_says_so(kind: type[Linear]) -> None:
    net = kind()
    found = evaluate(net, images(net), LINF, SHORT, batch_size=24)
    assert found.summary.masking, found.summary.findings
    assert found.table.attacks["more"].tried.any() or found.table.attacks["watch"].broken.all()
    assert found.summary.metrics.worst_case.robust.share < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Blocked, NoGrad, Rounded, Linear])
def test_the_whole_standard_suite_is_not_fooled(kind: type[Linear]) -> None:
    net = kind()
    found = evaluate(net, images(net, 12), LINF, standard("linf"), batch_size=12, curve_count=4)
    assert found.summary.metrics.worst_case.robust.share < 0.2
    assert bool(found.summary.masking) == (kind is not Linear)


class SometimesNaN(Linear):
    def forward(self, x: Tensor) -> Tensor:
        known = ((x * 255 - (x * 255).round()).abs() < 1e-3).flatten(1).all(1)
        return self.net(x).masked_fill(~known[:, None], float("nan"))


def test_nan_off_the_data_counts_as_broken() -> None:
    net = SometimesNaN()
    with pytest.warns(UserWarning, match=r"NaN.* broken"):
        found = evaluate(net, images(net), LINF, Suite("s", {"pgd": PGD(3)}), batch_size=24)
    assert found.summary.metrics.worst_case.robust.share == 0


def test_nan_on_the_data_is_refused() -> None:
    class Sick(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) * float("nan")

    with pytest.raises(EvaluationError, match=r"NaN .*24 of 24"):
        evaluate(Sick(), images(Linear()), LINF, SHORT, batch_size=24)


class Noisy(Linear):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits + 0.05 * torch.randn_like(logits)


def test_a_randomised_model_is_refused_with_the_way_out_and_evaluated_when_wrapped() -> None:
    net = Noisy()
    data = images(Linear())
    with pytest.raises(EvaluationError, match="ExpectationOverTransformation"):
        evaluate(net, data, LINF, SHORT, batch_size=24)
    found = evaluate(ExpectationOverTransformation(net, draws=20), data, LINF, SHORT, batch_size=24)
    assert found.summary.metrics.worst_case.robust.share < 0.2


def test_train_mode_does_not_leak_into_the_verdict() -> None:
    net = Linear()
    net.net.insert(1, nn.Dropout(0.5))
    data = images(net)
    net.train()
    found = evaluate(net, data, LINF, Suite("s", {"pgd": PGD(3)}), batch_size=24)
    assert found.summary.metrics.clean.share == 1
    assert net.training


def test_two_classes_are_enough() -> None:
    net = Linear(classes=2)
    found = evaluate(net, images(net, classes=2), LINF, suite_named("quick", "linf"), batch_size=24)
    assert found.summary.metrics.worst_case.robust.share < 0.2


@pytest.mark.parametrize("shape", [(36,), (4, 9)], ids=["flat", "sequence"])
def test_inputs_need_not_be_images(shape: tuple[int, ...]) -> None:
    net = Linear()
    draws = KeyedGenerator(5, torch.arange(8))
    x = draws.uniform(*shape)
    y = net(x).argmax(1)
    for attack in (PGD(5, precision="bfloat16"), APGD(5), Square(queries=50)):
        found = attack(net, x, y, threat=LINF, generator=draws)
        assert found.x_adv.shape == x.shape
        assert found.broken.any()


def test_epsilon_zero_is_clean_accuracy() -> None:
    net = Linear()
    found = evaluate(net, images(net), ThreatModel("linf", 0), suite_named("quick", "linf"), batch_size=24)
    assert found.summary.metrics.worst_case.robust.share == found.summary.metrics.clean.share == 1


def test_an_epsilon_wider_than_the_box_is_refused_and_one_as_wide_breaks_all() -> None:
    with pytest.raises(ThreatError, match="wider than the box"):
        ThreatModel("linf", Fraction(3, 2))
    net = Linear()
    found = evaluate(net, images(net), ThreatModel("linf", 1), suite_named("quick", "linf"), batch_size=24)
    assert found.summary.metrics.worst_case.robust.share == 0


@pytest.mark.slow
def test_constant_images_and_batches_of_one() -> None:
    net = Linear()
    pixels = torch.full((3, 1, 6, 6), 128, dtype=torch.uint8)
    pixels[1], pixels[2] = 0, 255
    with torch.no_grad():
        labels = net(pixels.float() / 255).argmax(1)
    data = ImageData(pixels, labels, torch.arange(3), ("0", "1", "2"), "constant")
    whole = evaluate(net, data, LINF, suite_named("quick", "linf"), batch_size=3)
    single = evaluate(net, data, LINF, suite_named("quick", "linf"), batch_size=1)
    assert np.array_equal(whole.table.worst_case.broken, single.table.worst_case.broken)


def test_a_half_precision_model_is_evaluated_as_it_is() -> None:
    net = Linear()
    data = images(net)
    found = evaluate(net.to(torch.bfloat16), data, LINF, suite_named("quick", "linf"), batch_size=24)
    assert found.summary.metrics.worst_case.robust.share < 0.2


def test_a_model_elsewhere_is_refused_with_both_places() -> None:
    net = Linear()
    data = images(net)
    x, y = data.floats(), data.labels
    with pytest.raises(AttackError, match=r"model .*\bmeta\b.*images .*\bcpu\b"):
        PGD(2)(net.to("meta"), x, y, threat=LINF, generator=KeyedGenerator(0, data.ids))
