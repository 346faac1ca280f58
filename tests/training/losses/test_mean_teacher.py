"""The mean teacher: its average, its loss, its beginning, and what it refuses."""

import pytest
import torch
from torch import nn
from training_tools import make_step, mlp

from robustly.objectives import kl
from robustly.testing.training import check_part
from robustly.training import AdversarialLoss, MeanTeacherLoss, Method, MethodError, Moment, PGDInner

X = torch.rand(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.arange(6) % 4


def test_the_loss_is_that_of_the_labels_and_of_the_average() -> None:
    model, teacher = mlp(0), mlp(1).eval()
    loss = MeanTeacherLoss(share=0.3, begin=0.0, temperature=2.0)
    memory = {"MeanTeacherLoss": {name: value.clone() for name, value in teacher.state_dict().items()}}
    step = make_step(X, Y, model, inner=PGDInner(steps=2), memory=memory, own=loss.own_quantities)
    terms, z = loss(step), step.adversarial_logits
    assert torch.allclose(terms["adversarial"], 0.7 * -z.log_softmax(1)[torch.arange(6), Y])
    assert torch.allclose(terms["teacher"], 0.3 * 4 * kl(teacher(X).detach() / 2, z / 2))
    assert model.training, "the average's pass leaves the mode of the model as it was"


def test_the_average_moves_by_its_decay_and_copies_the_first_state_and_buffers() -> None:
    model, loss = mlp(0), MeanTeacherLoss(decay=0.5)
    steps = make_step(X, Y, model, moment=Moment(9, 9, 10, 20), memory={})
    loss.after_step(steps)
    first = {name: value.clone() for name, value in model.state_dict().items()}
    assert all(torch.equal(steps.remember(loss)[name], value) for name, value in first.items())
    with torch.no_grad():
        for value in (*model.parameters(), *(one for one in model.buffers() if one.is_floating_point())):
            value.add_(1.0)
    loss.after_step(steps)
    for name, value in steps.remember(loss).items():
        expected = first[name] + (1.0 if "running" in name else 0.5 if "num" not in name else 0)
        assert torch.allclose(value, expected), name


class WithFeatures(nn.Module):
    """A network that returns its logits beside something else."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(0)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.net(x), x


def test_the_average_of_a_network_with_several_outputs_gives_its_logits() -> None:
    loss, model = MeanTeacherLoss(begin=0.0), WithFeatures()
    step = make_step(X, Y, model, inner=PGDInner(steps=1), memory={}, own=loss.own_quantities)
    loss.after_step(step)
    assert torch.equal(step.quantity("average"), mlp(0).eval()(X))


def test_until_it_begins_it_is_adversarial_training() -> None:
    loss = MeanTeacherLoss(share=0.9, begin=2.0)
    early = make_step(X, Y, mlp(0), inner=PGDInner(steps=2), moment=Moment(1, 9, 10, 4), own=loss.own_quantities)
    plain = make_step(X, Y, mlp(0), inner=PGDInner(steps=2))
    assert torch.equal(loss(early)["adversarial"], AdversarialLoss()(plain)["adversarial"])
    assert not loss(early)["teacher"].any()
    assert "average" not in loss.reads_at(early.moment), "no pass for an average that has no weight"
    assert "average" in loss.reads_at(Moment(2, 0, 10, 4))


def test_it_is_a_training_part() -> None:
    check_part(MeanTeacherLoss(begin=1.0))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"share": 1.5}, r"share must lie in \[0, 1\]"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"decay": 1.0}, "decay must lie"),
        ({"begin": -1.0}, "begin be at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        MeanTeacherLoss(**settings)
    with pytest.raises(MethodError, match="never learn from its average"):
        Method(inner=PGDInner(), loss=MeanTeacherLoss(begin=3)).check_epochs(3)
