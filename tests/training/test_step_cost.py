"""The passes that a dry run prints are those of the specification's cost model, and those of real steps."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn
from training_tools import make_step, mlp

from robustly.cli.recipes import read_recipe, recipe_names
from robustly.experiments.configuration import build_config
from robustly.training import (
    DklLoss,
    DynatLoss,
    GklLoss,
    Iad2Loss,
    IadLoss,
    KdLoss,
    MartLoss,
    Method,
    OuterLoss,
    PGDInner,
    TradesLoss,
    WeightPerturbation,
)
from robustly.training.cost import step_cost
from robustly.training.method import outer_loss
from robustly.training.step import Moment

K = 10
# passes of the model, forward and backward, of the guide, of the teachers (specification, section 12); a KL attack
# asks for the clean prediction in evaluation mode: one forward pass more
EXPECTED = {
    "standard": ((1, 1), (0, 0), 0),
    "pgd_at": ((K + 1, K + 1), (0, 0), 0),
    "trades": ((1 + K + 2, K + 2), (0, 0), 0),
    "fast_at": ((2, 2), (0, 0), 0),
    "n_fgsm": ((2, 2), (0, 0), 0),
    "gradalign": ((4, 5), (0, 0), 0),  # two gradients of the input, one of them differentiated again
    "free_at": ((8, 8), (0, 0), 0),  # one for each replay
    "alp": ((K + 2, K + 2), (0, 0), 0),
    "mart": ((K + 2, K + 2), (0, 0), 0),
    "fat": ((K + 1, K + 1), (0, 0), 0),
    "fat_trades": ((1 + K + 2, K + 2), (0, 0), 0),
    "fat_mart": ((K + 2, K + 2), (0, 0), 0),
    "sat": ((K + 1, K + 1), (0, 0), 0),
    "h_sat": ((K + 1, K + 1), (0, 0), 0),  # in the last epoch nothing is limited
    "gairat": ((K + 1, K + 1), (0, 0), 0),
    "mail_at": ((K + 1, K + 1), (0, 0), 0),
    "mail_trades": ((1 + K + 2, K + 2), (0, 0), 0),
    "mail_mart": ((K + 2, K + 2), (0, 0), 0),
    "at_awp": ((K + 1 + 1, K + 1 + 1), (0, 0), 0),
    "trades_awp": ((1 + K + 2 + 2, K + 2 + 2), (0, 0), 0),
    "lbgat0": ((1 + K + 1, K + 1), (1, 1), 0),
    "lbgat6": ((1 + K + 2, K + 2), (1, 1), 0),
    "dynat": ((1 + K + 1, K + 1), (1, 1), 0),
    "dynat_inner": ((K + 1, K + 1), (1, 1), 0),
    "dynat_awp_0": ((1 + K + 1 + 2, K + 1 + 2), (1, 1), 0),
    "dynat_awp_1": ((1 + K + 2 + 2, K + 2 + 2), (1, 1), 0),
    "dynat_inner_awp": ((K + 2 + 2, K + 2 + 2), (1, 1), 0),
    "dynat_gairat": ((1 + K + 1, K + 1), (1, 1), 0),
    "dynat_inner_mail": ((K + 1, K + 1), (1, 1), 0),
    "ard": ((K + 1, K + 1), (0, 0), 1),
    "rslad": ((K + 2, K + 2), (0, 0), 1),
    "iad": ((K + 2, K + 2), (0, 0), 2),
    "adaad": ((K + 1, K + 1), (0, 0), (K + 1) + K),  # the attack goes through the teacher and back
    "kd_swa": ((K + 1, K + 1), (0, 0), 2),
    "gkl": ((1 + 5 + 2 + 2, 5 + 2 + 2), (0, 0), 0),
    "ikl": ((1 + 5 + 2 + 2, 5 + 2 + 2), (0, 0), 0),
    "dkl": ((1 + K + 2, K + 2), (0, 0), 0),
    "iad2": ((K + 2, K + 2), (0, 0), 2),
    "gair_fat": ((K + 1, K + 1), (0, 0), 0),
    "mail_mse": ((1 + K + 1, K + 1), (1, 1), 0),
    "mart_wrn": ((K + 2, K + 2), (0, 0), 0),
    "dynat_mail": ((1 + K + 1, K + 1), (1, 1), 0),
    "dynat_inner_gairat": ((K + 1, K + 1), (1, 1), 0),
    "dynat_swapped": ((1 + K + 1, K + 1), (1, 1), 0),
    "pgd_at_wrn": ((K + 1, K + 1), (0, 0), 0),
    "gairat_resnet18": ((K + 1, K + 1), (0, 0), 0),
    "dynat_gairat_swapped": ((1 + K + 1, K + 1), (1, 1), 0),
    "dynat_inner_gairat_swapped": ((K + 1, K + 1), (1, 1), 0),
    "trades_smoothed": ((1 + K + 2, K + 2), (0, 0), 0),
    "trades_ema": ((1 + K + 2, K + 2), (0, 0), 0),
    "trades_awp_ema": ((1 + K + 2 + 2, K + 2 + 2), (0, 0), 0),
    "trades_extra": ((1 + K + 2, K + 2), (0, 0), 0),
    "trades_extra_gowal": ((1 + K + 2, K + 2), (0, 0), 0),
}


def method_of(recipe: str) -> tuple[Method, int]:
    settings = read_recipe(recipe)
    for role in ("teacher", "standard_teacher"):
        if settings.get(role) is not None:
            settings[role] = {**settings[role], "weights": "of.safetensors"}  # type: ignore[dict-item]
    config = build_config(settings)
    return config.method, config.training.epochs


@pytest.mark.parametrize("name", EXPECTED)
def test_passes_are_those_of_the_cost_model(name: str) -> None:
    method, epochs = method_of(f"cifar10/{name}")
    cost = step_cost(method, epochs)
    of_model, of_guide, of_teachers = EXPECTED[name]
    assert (cost.forwards["model"], cost.backwards["model"]) == of_model
    assert (cost.forwards.get("guide", 0), cost.backwards.get("guide", 0)) == of_guide
    roles = [role for role in cost.forwards if role.endswith("teacher")]
    assert sum(cost.forwards[role] + cost.backwards[role] for role in roles) == of_teachers
    assert cost.total == sum(of_model) + sum(of_guide) + of_teachers


class Watched(nn.Module):
    """A network of another kind than the stand-in, which counts."""

    def __init__(self, passes: Counter[str], classes: int = 4) -> None:
        super().__init__()
        self.net, self.passes = mlp(classes=classes), passes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.net(x)
        self.passes["forward"] += len(x)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: self.passes.update(backward=len(gradient)))
        return logits


@pytest.mark.parametrize("recipe", [name for name in recipe_names() if name.startswith("mnist5k/")])
def test_real_steps_take_as_many(recipe: str) -> None:
    """At most as many where examples may settle early, and never more."""
    method, epochs = method_of(recipe)
    cost = step_cost(method, epochs)
    torch.manual_seed(0)
    x, y = torch.rand(8, 6, dtype=torch.float64), torch.randint(4, (8,))
    counts = {role: Counter[str]() for role in ("model", *method.networks)}
    classes = max(4, *(part.classes for _, part in method.slots()))
    networks = {role: Watched(passes, classes) for role, passes in counts.items()}
    teachers = {role: network for role, network in networks.items() if role not in ("model", "guide")}
    memory: dict[str, dict[str, torch.Tensor]] = {}
    for replay in range(method.replays):
        step = make_step(
            x,
            y,
            networks["model"],
            guide=networks.get("guide"),
            teachers=teachers,
            label_source=method.labels,
            inner=method.inner,
            memory=memory,
            slot_of=method.slot_of,
            own=method.own_quantities,
            moment=Moment(epochs - 1, 0, 1, epochs),
            replay=replay,
        )
        outer_loss(method, step)[0].backward()
        method.after_backward(step)
        method.after_step(step)
    settles = type(method.inner).__name__ in ("FriendlyInner", "CurriculumInner")
    for role, passes in counts.items():
        for way, declared in (("forward", cost.forwards[role]), ("backward", cost.backwards[role])):
            spent = passes[way] / len(x)
            assert 1 < spent <= declared if settles else spent == declared, (role, way)


@pytest.mark.parametrize("name", ["ard", "rslad", "iad", "iad2", "adaad", "kd_swa"])
def test_weight_perturbation_runs_no_teacher_again(name: str) -> None:
    method, epochs = method_of(f"cifar10/{name}")
    alone = step_cost(method, epochs)
    both = step_cost(replace(method, parameters=(WeightPerturbation(),)), epochs)
    for role in alone.forwards:
        more = both.forwards[role] - alone.forwards[role], both.backwards[role] - alone.backwards[role]
        assert more == (0, 0) if role != "model" else more in ((1, 1), (2, 2)), role


@pytest.mark.parametrize(
    ("loss", "one_clean_pass"),
    [
        (IadLoss(alpha=0.0, begin=0), True),
        (GklLoss(alpha=0.0, beta=0.0), True),
        (DklLoss(alpha=0.0, beta=0.0), True),
        (TradesLoss(0.0), True),
        (MartLoss(0.0), False),
        (KdLoss(clean=0.0, robust=0.0), False),
        (Iad2Loss(robust=0.0, clean=0.0, begin=0), False),
        (DynatLoss(beta=1.0, consistency=0.0), False),
    ],
)
def test_terms_without_weight_cost_nothing(loss: OuterLoss, one_clean_pass: bool) -> None:
    method = Method(inner=PGDInner(steps=2), loss=loss)
    cost = step_cost(method, 1)
    assert (cost.forwards.pop("model"), cost.backwards.pop("model")) == (3, 3), "the attack, and one pass"
    assert not any((*cost.forwards.values(), *cost.backwards.values())), "no teacher runs"
    x, y = torch.rand(6, 6, dtype=torch.float64), torch.arange(6) % 4
    step = make_step(x, y, mlp(), inner=method.inner, slot_of=method.slot_of)
    outer_loss(method, step)
    assert (step.quantities.computed("clean") is not None) is one_clean_pass
