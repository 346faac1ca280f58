"""One step: what runs how often, in which order, and what stays untouched."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from training_tools import NormNet, Splits, make_job, make_step, run

from robustly.cli.recipes import read_recipe, recipe_names
from robustly.experiments.configuration import build_config
from robustly.training import (
    AdaadLoss,
    AdversarialLoss,
    AlpLoss,
    ArdLoss,
    CleanLoss,
    DklLoss,
    DynatLoss,
    GklLoss,
    GuideLabels,
    Iad2Loss,
    IadLoss,
    KdLoss,
    LbgatLoss,
    MartLoss,
    Method,
    MixtureLoss,
    OptimizerConfig,
    OuterLoss,
    Part,
    PGDInner,
    RsladLoss,
    TradesLoss,
)
from robustly.training.method import outer_loss

CE = PGDInner(steps=3)
KL = PGDInner(objective="kl", start="gaussian", steps=3)


class Counter:
    """Counts forward passes of a network, how many of them in train mode, and gradients that came back."""

    def __init__(self, network: nn.Module) -> None:
        self.forwards = self.train_forwards = self.backwards = 0
        network.register_forward_hook(self._forward)

    def _forward(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.forwards += 1
        self.train_forwards += module.training
        if output.requires_grad:
            output.register_hook(self._backward)

    def _backward(self, gradient: Tensor) -> None:
        self.backwards += 1


# recipe: forward and backward passes of the model in units of batches, those in train mode, passes of the guide;
# K attack steps. A KL attack needs the clean prediction in evaluation mode: one forward pass more.
COSTS = {
    "standard": lambda k: (1, 1, 1, 0),
    "fgsm_at": lambda k: (2, 2, 1, 0),
    "pgd_at": lambda k: (k + 1, k + 1, 1, 0),
    "pgd_at_wrn": lambda k: (k + 1, k + 1, 1, 0),
    "mixture": lambda k: (k + 2, k + 2, 2, 0),
    "trades": lambda k: (k + 2 + 1, k + 2, 2, 0),
    "dynat": lambda k: (k + 1 + 1, k + 1, 1, 1),
    "dynat_inner": lambda k: (k + 1, k + 1, 1, 1),
    "alp": lambda k: (k + 2, k + 2, 2, 0),
    "mart": lambda k: (k + 2, k + 2, 2, 0),
    "mart_wrn": lambda k: (k + 2, k + 2, 2, 0),
    "lbgat0": lambda k: (k + 1 + 1, k + 1, 1, 1),
    "lbgat6": lambda k: (k + 2 + 1, k + 2, 2, 1),
    "ard": lambda k: (k + 1, k + 1, 1, 0),
    "rslad": lambda k: (k + 2, k + 2, 2, 0),  # the attack starts from the teacher's prediction
    "iad": lambda k: (k + 1, k + 1, 1, 0),
    "adaad": lambda k: (k + 1, k + 1, 1, 0),
    "kd_swa": lambda k: (k + 1, k + 1, 1, 0),
    "gkl": lambda k: (k + 2 + 1, k + 2, 2, 0),
    "ikl": lambda k: (k + 2 + 1, k + 2, 2, 0),
}


def method_of(recipe: str) -> Method:
    settings = read_recipe(recipe)
    for role in {"teacher", "standard_teacher"} & settings.keys():
        settings[role] = {**settings[role], "weights": "FILE"}  # type: ignore[dict-item]
    return build_config(settings).method


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.partition("/")[2] in COSTS])
def test_every_recipe_spends_what_its_method_needs(name: str) -> None:
    method = method_of(name)
    model, guide = NormNet(0), NormNet(1)
    of_model, of_guide = Counter(model), Counter(guide)
    step = make_step(
        torch.rand(8, 1, 16, 16),
        torch.arange(8),
        model.train(),
        guide=guide.train() if "guide" in method.networks else None,
        teachers={"teacher": NormNet(2), "standard_teacher": NormNet(3)},
        label_source=method.labels,
        inner=method.inner,
    )
    outer_loss(method, step)[0].backward()
    steps = 0 if method.inner is None else method.inner.steps  # type: ignore[attr-defined]
    forwards, backwards, in_train, guided = COSTS[name.partition("/")[2]](steps)
    attack_in_train = steps if getattr(method.inner, "mode", "eval") == "train" else 0
    assert (of_model.forwards, of_model.backwards) == (forwards, backwards)
    assert of_model.train_forwards == in_train + attack_in_train
    assert (of_guide.forwards, of_guide.backwards) == (guided, guided)
    if method.inner is not None:
        assert step.adversarial.backwards.unique().tolist() == [steps]


def test_a_consistency_term_costs_one_clean_pass() -> None:
    costs = []
    for consistency in (0.0, 1.0):
        model, guide = NormNet(0), NormNet(1)
        count = Counter(model)
        source = {"guide": guide, "label_source": GuideLabels(), "inner": CE}
        step = make_step(torch.rand(8, 1, 16, 16), torch.arange(8), model, **source)
        outer_loss(Method(labels=GuideLabels(), inner=CE, loss=DynatLoss(1.0, consistency)), step)[0].backward()
        costs.append((count.forwards, count.backwards))
    assert costs == [(4, 4), (5, 5)]


# batch normalisation


def moved(norm: nn.BatchNorm2d, features: Tensor) -> nn.BatchNorm2d:
    """The statistics after one more batch, by the rule of batch normalisation."""
    after = nn.BatchNorm2d(norm.num_features)
    m = norm.momentum or 0.0
    after.running_mean = (1 - m) * norm.running_mean + m * features.mean((0, 2, 3))
    after.running_var = (1 - m) * norm.running_var + m * features.var((0, 2, 3))
    return after


@pytest.mark.parametrize(
    ("loss", "order"),
    [
        (CleanLoss(), ["clean"]),
        (AdversarialLoss(), ["adversarial"]),
        (MixtureLoss(), ["clean", "adversarial"]),
        (TradesLoss(), ["clean", "adversarial"]),
        (DynatLoss(consistency=1.0), ["clean", "adversarial"]),
        (DynatLoss(), ["adversarial"]),
        (LbgatLoss(beta=0.0), ["adversarial"]),
        (LbgatLoss(beta=6.0), ["clean", "adversarial"]),
        (AlpLoss(), ["clean", "adversarial"]),
        (MartLoss(), ["clean", "adversarial"]),
        (DklLoss(), ["clean", "adversarial"]),
        (GklLoss(), ["clean", "adversarial"]),
        (ArdLoss(alpha=1.0), ["adversarial"]),
        (ArdLoss(alpha=0.5), ["clean", "adversarial"]),
        (RsladLoss(), ["clean", "adversarial"]),
        (IadLoss(begin=0), ["clean", "adversarial"]),
        (IadLoss(begin=1), ["adversarial"]),
        (Iad2Loss(begin=0), ["clean", "adversarial"]),
        (AdaadLoss(alpha=1.0), ["adversarial"]),
        (KdLoss(), ["adversarial"]),
    ],
)
def test_running_statistics_see_clean_then_adversarial_images_once(loss: OuterLoss, order: list[str]) -> None:
    x, y = torch.rand(8, 1, 16, 16), torch.arange(8)
    model = NormNet(0).train()
    inner = KL if loss.needs_inner else None
    teachers = {role: NormNet(number).eval() for number, role in enumerate(("teacher", "standard_teacher"), 2)}
    step = make_step(x, y, model, inner=inner, guide=NormNet(1).train(), teachers=teachers)
    before = nn.BatchNorm2d(4)
    outer_loss(Method(inner=inner, loss=loss), step)
    assert all(int(teacher.norm.num_batches_tracked) == 0 for teacher in teachers.values())
    images = {"clean": x, "adversarial": step.adversarial.x_adv if inner is not None else x}
    expected = before
    with torch.no_grad():
        for which in order:
            expected = moved(expected, model.conv(images[which]))
    assert int(model.norm.num_batches_tracked) == len(order)
    assert torch.allclose(model.norm.running_mean, expected.running_mean, atol=1e-6)
    assert torch.allclose(model.norm.running_var, expected.running_var, atol=1e-6)


def test_an_attack_in_evaluation_mode_leaves_the_model_as_it_is() -> None:
    model = NormNet(0).train()
    model.conv.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step = make_step(torch.rand(8, 1, 16, 16), torch.arange(8), model, inner=KL)
    found = step.adversarial
    assert not torch.equal(found.x_adv, step.x)
    assert not found.x_adv.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == [True, False, True, True]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_attack_modes_touch_statistics_as_documented() -> None:
    x, y = torch.rand(8, 1, 16, 16), torch.arange(8)
    tracked, points = {}, {}
    for mode in ("eval", "train", "train_nostat"):
        model = NormNet(0).train()
        points[mode] = make_step(x, y, model, inner=replace(CE, mode=mode)).adversarial.x_adv
        tracked[mode] = int(model.norm.num_batches_tracked)
    assert tracked == {"eval": 0, "train": 3, "train_nostat": 0}
    assert torch.equal(points["train"], points["train_nostat"])
    assert not torch.equal(points["train"], points["eval"])


def test_in_training_the_guide_sees_every_batch_once(little: Splits, tmp_path: Path) -> None:
    model, guide = NormNet(0), NormNet(1)
    count = Counter(guide)
    method = Method(labels=GuideLabels(), inner=KL, loss=DynatLoss())
    run(make_job(little, method, model, guide=guide), tmp_path)
    tried_forwards, tried_backwards = 3, 2  # the trial of every network before the first step
    batches = 2 * 5  # 150 images in batches of 32, two epochs
    assert count.forwards == batches + tried_forwards
    assert count.backwards == batches + tried_backwards
    assert int(guide.norm.num_batches_tracked) == 10
    assert int(model.norm.num_batches_tracked) == 10


# instance weights


class OnlyConsistency(Part):
    """Weights on one term; a method must neither see nor change the others."""

    def __init__(self, weight: Tensor) -> None:
        self.weight, self.term = weight, "consistency"

    def __call__(self, step: object) -> Tensor | None:
        return self.weight


def test_instance_weights_multiply_their_term_alone_and_carry_no_gradient() -> None:
    x, y = torch.rand(8, 1, 16, 16), torch.arange(8)
    model = NormNet(0).eval()
    step = make_step(x, y, model, inner=KL)
    terms = TradesLoss(6.0)(step)
    weight = torch.arange(8.0).requires_grad_()
    weights = OnlyConsistency(weight)
    value, means = outer_loss(Method(inner=KL, loss=TradesLoss(6.0), weights=weights), step)
    assert float(means["clean"]) == pytest.approx(float(terms["clean"].mean().detach()))
    expected = (weight * terms["consistency"]).mean().detach()
    assert float(means["consistency"]) == pytest.approx(float(expected))
    value.backward()
    assert weight.grad is None


# identities, step for step: the weights after two epochs are bitwise the same


def trained(splits: Splits, method: Method, folder: Path, **changes: object) -> list[Tensor]:
    job = make_job(splits, method, **changes)
    run(job, folder)
    return [value.clone() for value in job.model.state_dict().values()]


class Oracle(nn.Module):
    """A guide that always predicts the labels of its images."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        super().__init__()
        self.register_buffer("images", images.flatten(1))
        self.register_buffer("labels", labels)
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(x.flatten(1), self.images).argmin(1)
        return self.scale * nn.functional.one_hot(self.labels[nearest], 10).float()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Method(inner=KL, loss=TradesLoss(0.0)), Method()),
        (Method(inner=PGDInner(steps=0, start="none"), loss=AdversarialLoss()), Method()),
        (Method(inner=CE, loss=MixtureLoss(0.0)), Method()),
        (Method(inner=CE, loss=MixtureLoss(1.0)), Method(inner=CE, loss=AdversarialLoss())),
        (Method(inner=CE, loss=DynatLoss()), Method(inner=CE, loss=AdversarialLoss())),
        (Method(inner=KL, loss=DynatLoss(2.0, 1.0)), Method(inner=KL, loss=TradesLoss(0.5))),
    ],
    ids=["trades-0", "pgd-0", "mixture-0", "mixture-1", "dynat-without-guide", "control"],
)
@pytest.mark.slow
def test_degenerate_methods_are_simpler_ones(one: Method, other: Method, little: Splits, tmp_path: Path) -> None:
    mine, theirs = trained(little, one, tmp_path / "one"), trained(little, other, tmp_path / "other")
    start = list(make_job(little, one).model.state_dict().values())
    alike = [torch.equal(a, b) for a, b in zip(mine, theirs, strict=True)]
    if isinstance(other.loss, TradesLoss):  # a control: other coefficients give another network
        assert not all(alike)
    else:
        assert all(alike)
    assert not any(torch.equal(a, b) for a, b in zip(mine, start, strict=True))


@pytest.mark.slow
def test_dynat_with_an_oracle_is_adversarial_training(little: Splits, tmp_path: Path) -> None:
    inner = PGDInner(start="gaussian", steps=3)
    oracle = Oracle(little.train.floats(), little.train.labels)
    dynat = Method(labels=GuideLabels(), inner=inner, loss=DynatLoss(1.0))
    mine = trained(little, dynat, tmp_path / "dynat", guide=oracle)
    theirs = trained(little, Method(inner=inner, loss=AdversarialLoss()), tmp_path / "pgd")
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_one_optimiser_moves_both_networks_as_two_would(little: Splits, tmp_path: Path) -> None:
    guide = NormNet(1)
    dynat = Method(labels=GuideLabels(), inner=CE, loss=DynatLoss(1.0))
    run(make_job(little, dynat, guide=guide), tmp_path / "both")
    alone = NormNet(1)
    run(make_job(little, Method(), model=alone, training={"select_by": "clean"}), tmp_path / "alone")
    for one, other in zip(guide.state_dict().values(), alone.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_dropout_is_drawn_anew_at_every_step_and_the_same_in_every_run(little: Splits, tmp_path: Path) -> None:
    from training_tools import small_net

    runs = []
    for turn in range(2):
        torch.manual_seed(turn)  # whatever the surroundings did to the global generator
        torch.rand(turn + 1)
        job = make_job(little, Method(), small_net(dropout=0.5), optimizer=OptimizerConfig(learning_rate=0.02))
        before = torch.get_rng_state()
        run(job, tmp_path / str(turn))
        assert torch.equal(before, torch.get_rng_state())
        runs.append([value.clone() for value in job.model.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
