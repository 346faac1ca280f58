"""Verdicts in 8 bits: those of an attacker who searches until the image in the file is misclassified."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustly.attacks import FMN, PGD, AttackResult, DeepFool
from robustly.attacks.core.contract import ANY_BALL, Needs
from robustly.data import ImageData, Splits
from robustly.evaluation import Suite, evaluate
from robustly.evidence import Evidence
from robustly.randomness import KeyedGenerator
from robustly.threats import Threat, ThreatModel, parse_threat

COUNT, PIXELS = 240, 16


@dataclass(frozen=True)
class JustBehind:
    """Images just behind the boundary of a linear model with logits (m, -m), as of minimum-norm attacks."""

    needs: ClassVar[Needs] = ANY_BALL
    minimum_norm: ClassVar[bool] = False

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, threat: ThreatModel, generator: KeyedGenerator
    ) -> AttackResult:
        (weight,) = [value for name, value in model.named_parameters() if name.endswith("weight")]
        across = weight[0].detach().view(x.shape[1:])
        gap, sign = model(x)[:, 0].detach(), 1.0 - 2.0 * y
        if threat.norm == "linf":
            direction, length = across.sign(), across.abs().sum()
        else:
            direction, length = across / across.norm(), across.norm()
        needed = sign * gap / length + 1e-6
        moved = x - (sign * needed)[:, None, None, None] * direction
        broken = (needed <= float(threat.epsilon)) & (model(moved).argmax(1) != y)
        ones = torch.ones(len(x), dtype=torch.int64)
        return AttackResult(moved, broken, torch.where(broken, needed, torch.inf), ones, ones, ones, ~ones.bool())


class WithoutGradient(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).detach()  # type: ignore[no-any-return]


def linear() -> tuple[nn.Module, ImageData, Tensor, Tensor]:
    """A linear model with logits (m, -m), images around its boundary, the weights of m, and its values."""
    weight = torch.linspace(-1.0, 1.0, PIXELS).mul(7).round().add(0.5) / 8
    layer = nn.Linear(PIXELS, 2)
    layer.weight.data = torch.stack([weight, -weight])
    draws = KeyedGenerator(5, torch.arange(COUNT))
    levels = (100 + draws.integers(56, PIXELS)).to(torch.uint8).view(COUNT, 1, 4, 4)
    values = (levels.flatten(1).double() / 255) @ weight.double()
    middle = float(values.median()) + 0.5 / (16 * 255)  # no image of 8 bits lies on the boundary
    layer.bias.data = torch.tensor([-middle, middle])
    margins = values - middle
    labels = (margins <= 0).long()
    labels[-1:] = 1 - labels[-1:]
    net = nn.Sequential(nn.Flatten(), layer).eval()
    return net, ImageData(levels, labels, torch.arange(COUNT), ("a", "b"), "plane"), weight.double(), margins


def test_on_a_half_space_exactly_the_images_that_a_file_can_carry_across_are_broken() -> None:
    """Under linf the best image of 8 bits moves every pixel by the whole levels in epsilon."""
    net, data, weight, margins = linear()
    whole, length = 4, weight.abs().sum()
    threat = ThreatModel("linf", (whole + 0.5) / 255)
    found = evaluate(net, data, threat, Suite("s", {"behind": JustBehind()}), batch_size=50)
    columns, correct = found.table.attacks["behind"], torch.from_numpy(found.table.correct)
    assert int((~correct).sum()) == 1
    in_float = ~correct | (margins.abs() < length * float(threat.epsilon) - 1e-6)
    in_a_file = ~correct | (margins.abs() < length * whole / 255)
    assert 20 < int(in_a_file.sum()) < int(in_float.sum()) < COUNT - 20, "a test of nothing"
    assert columns.broken.tolist() == in_float.tolist()
    assert columns.broken_8bit.tolist() == in_a_file.tolist()
    searched = correct & in_float
    assert ((columns.passes_8bit > 0) == searched.numpy()).all()
    saved = found.images.eight_bit["behind"]
    assert saved.ids.tolist() == (searched & in_a_file).nonzero()[:, 0].tolist()
    change = torch.from_numpy(saved.levels).int() - data.images[saved.ids].int()
    assert int(change.abs().max()) == whole
    across = (torch.from_numpy(saved.levels).flatten(1).double() / 255) @ weight - float(net[1].bias[1].detach())  # type: ignore[index, union-attr]
    assert ((across * margins[saved.ids]) < 0).all()


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.02), ("l2", 0.06)])
def test_random_rounding_needs_no_gradients(norm: str, epsilon: float) -> None:
    """Inside the ball about every second random rounding of a point on the boundary lies behind it."""
    net, data, _, _ = linear()
    suite, threat = Suite("s", {"behind": JustBehind()}), ThreatModel(norm, epsilon)
    blind = evaluate(WithoutGradient(net), data, threat, suite, batch_size=50)
    columns, correct = blind.table.attacks["behind"], blind.table.correct
    broken = int((columns.broken & correct).sum())
    at_once = int((columns.passes_8bit == 1).sum())
    in_files = len(blind.images.eight_bit["behind"])
    assert broken > 60
    assert at_once < 0.8 * broken, "a test of nothing"
    assert in_files > 0.95 * broken
    again = evaluate(WithoutGradient(net), data, threat, suite, batch_size=COUNT)
    for name, values in blind.images.tensors().items():
        np.testing.assert_array_equal(values, again.images.tensors()[name], err_msg=name)
    np.testing.assert_array_equal(again.table.attacks["behind"].passes_8bit, columns.passes_8bit)


def by_the_older_rule(found: Evidence, data: ImageData, net: nn.Module, name: str) -> int:
    """Number of examples whose first success, with every change rounded towards zero, is misclassified."""
    stored = found.images.attacks[name]
    rows = torch.from_numpy(stored.ids)
    rows = torch.tensor([data.ids.tolist().index(identity) for identity in rows.tolist()])
    inside = torch.from_numpy(found.table.attacks[name].broken)[rows]
    x, x_adv = data.floats(rows), torch.from_numpy(stored.images)
    rounded = ((x * 255).round() + ((x_adv - x) * 255 * (1 + 1e-6)).trunc()) / 255
    with torch.no_grad():
        wrong = net(rounded).argmax(1) != data.labels[rows]
    return int((wrong & inside).sum())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "attacks"),
    [
        ("linf:0.1", {"pgd": PGD(10), "deepfool": DeepFool()}),
        ("l2:1.5", {"pgd": PGD(10), "fmn": FMN(20)}),
    ],
)
def test_on_digits_the_accuracy_as_files_is_nearly_that_in_floats(
    digit_net: nn.Module, digits: Splits, text: str, attacks: dict[str, PGD | DeepFool | FMN]
) -> None:
    """The older rule lost most successes of minimum-norm attacks."""
    data, suite = digits.test.select(torch.arange(120)), Suite("s", dict(attacks))
    found = evaluate(digit_net, data, parse_threat(text), suite, batch_size=64)
    correct, minimum = found.table.correct, list(attacks)[1]
    for name, columns in found.table.attacks.items():
        broken, in_files = (int((one & correct).sum()) for one in (columns.broken, columns.broken_8bit))
        assert broken - 2 <= in_files <= broken
        assert columns.passes_8bit.sum() < 0.1 * (columns.forwards + columns.backwards).sum()
        if name == minimum:
            assert by_the_older_rule(found, data, digit_net, name) < 0.75 * broken - 5
    assert not (found.table.worst_case.broken_8bit & ~found.table.worst_case.broken).any()


MIDDLE = torch.zeros(28, 28, dtype=torch.bool)
MIDDLE[6:22, 6:22] = True
THREATS = (
    *(parse_threat(text) for text in ("l1:9", "l0:15", "rotation:40", "rotation:15+linf:0.05")),
    ThreatModel("linf", 0.2, mask=MIDDLE),
    ThreatModel("l2", 1.5, mask=MIDDLE),
)


@pytest.mark.slow
@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_every_threat_has_images_of_8_bits(digit_net: nn.Module, digits: Splits, threat: Threat) -> None:
    data = digits.test.select(torch.arange(40))
    found = evaluate(digit_net, data, threat, Suite("s", {"pgd": PGD(8)}), batch_size=40)
    columns, saved = found.table.attacks["pgd"], found.images.eight_bit["pgd"]
    broken = int((columns.broken & found.table.correct).sum())
    assert broken > 3
    assert len(saved) >= broken - 1
    rows = torch.tensor([data.ids.tolist().index(identity) for identity in saved.ids.tolist()])
    allowed = threat.around(data.floats(rows))
    images = torch.from_numpy(saved.inputs().images)
    assert (saved.theta is None) == isinstance(threat, ThreatModel)
    if saved.theta is None:
        assert allowed.contains(images).all()
    else:
        theta = torch.from_numpy(saved.theta)
        assert allowed.contains(theta).all()
        assert ((allowed.apply(theta) - images).abs() <= 0.5 / 255 + 1e-5).all()
    with torch.no_grad():
        assert (digit_net(images).argmax(1) != data.labels[rows]).all()


def test_in_worst_case_mode_earlier_images_count_and_later_attacks_add_theirs() -> None:
    net, data, _, _ = linear()
    half = replace(JustBehind())
    suite = Suite("s", {"behind": half, "pgd": PGD(10)}, worst_case=True)
    found = evaluate(net, data, ThreatModel("linf", 0.018), suite, batch_size=64)
    first, second = found.table.attacks["behind"], found.table.attacks["pgd"]
    assert not second.passes_8bit[~second.tried].any()
    assert (second.broken_8bit >= first.broken_8bit).all()
    own = np.isin(found.table.examples.id, found.images.eight_bit["pgd"].ids)
    assert np.array_equal(second.broken_8bit, first.broken_8bit | own)
    assert np.array_equal(found.table.worst_case.broken_8bit, second.broken_8bit)
