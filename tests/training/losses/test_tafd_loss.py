"""The outer loss of TaFD: its terms, the domains in its memory, runs, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from training_tools import Stop, final, last, make_job, run, same, small_digits

from robustly.cli.recipes import read_recipe
from robustly.data import Batch, Splits
from robustly.experiments.configuration import build_config
from robustly.models import ModelConfig, TafdNetwork, build_model
from robustly.randomness import KeyedGenerator
from robustly.threats import ThreatModel, parse_threats
from robustly.training import (
    AvgInner,
    Job,
    Method,
    MethodError,
    Moment,
    Networks,
    PGDInner,
    Step,
    TafdLoss,
    WeightPerturbation,
)
from robustly.training.cost import step_cost
from robustly.training.method import outer_loss
from robustly.training.step import Memory
from robustly.training.threat_domains import clustered, dealt, spectral_descriptor

THREATS = parse_threats(("linf:0.2", "rotation:40", "l2:1"))
INNER = AvgInner(steps=2, relative_step_size=0.5)


def network(dropout: float = 0.0) -> TafdNetwork:
    net = build_model(ModelConfig("tafd_small_cnn", width=0.1, dropout=dropout, image_size=(16, 16)), 0)
    assert isinstance(net, TafdNetwork)
    with torch.no_grad():  # the last layer is 0 at first
        last_layer = net.body.get_submodule("classifier.fc3")
        last_layer.weight.normal_(generator=torch.Generator().manual_seed(0))  # type: ignore[operator, union-attr]
    return net


def without_dropout(net: TafdNetwork) -> TafdNetwork:
    for part in net.modules():
        if isinstance(part, torch.nn.Dropout | torch.nn.Dropout2d):
            part.p = 0.0
    return net


def taken(net: TafdNetwork, loss: TafdLoss, count: int = 0, memory: Memory | None = None, **parts: Any) -> Step:
    """A step after its outer loss, whose terms are kept as `terms`, and after `after_backward`."""
    ids = torch.arange(6)
    x = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    method = Method(inner=INNER, loss=loss, **parts)
    step = method.step(
        Batch(x, ids % 4, ids, KeyedGenerator(5, ids)),
        Networks(net.train()),
        threats=THREATS,
        moment=Moment(count // 10, count % 10, 10, 10),
        memory={} if memory is None else memory,
    )
    value, step.terms = outer_loss(method, step)  # type: ignore[attr-defined]
    value.backward()  # type: ignore[no-untyped-call]
    method.after_backward(step)
    method.after_step(step)
    return step


def attacked(step: Step) -> Tensor:
    return torch.cat([step.adversarial.x_adv, *(found.x_adv for found in step.further_attacks)])


def test_the_terms_are_those_of_the_formula() -> None:
    net = without_dropout(network())
    step = taken(net, TafdLoss(ratio=0.75, router=2.0))
    images = attacked(step)
    assert images.shape == (18, 1, 16, 16)
    descriptors = spectral_descriptor(images).view(3, 6, 15).mean(1)
    domains = clustered(descriptors, 2)
    assert len(set(domains.tolist())) == 2
    of_each = domains.repeat_interleave(6)
    with torch.no_grad():
        adversarial = F.cross_entropy(net.dispatched(images, of_each), step.y.repeat(3))
        clean = F.cross_entropy(net.dispatched(step.x, net.domain_logits(step.x).argmax(1)), step.y)
        router = F.cross_entropy(net.domain_logits(images), of_each)
    terms = step.terms  # type: ignore[attr-defined]
    assert float(terms["adversarial"]) == pytest.approx(0.75 * float(adversarial), rel=1e-5)
    assert float(terms["clean"]) == pytest.approx(0.25 * float(clean), rel=1e-5)
    assert float(terms["router"]) == pytest.approx(2 * float(router), rel=1e-5)
    assert {name: float(value[0]) for name, value in step.columns.items() if name.startswith("domain_")} == {
        "domain_linf": float(domains[0]),
        "domain_rotation": float(domains[1]),
        "domain_l2": float(domains[2]),
    }


def test_the_router_is_trained_by_its_own_term_alone() -> None:
    net, twin = without_dropout(network()), without_dropout(network()).train()
    step = taken(net, TafdLoss(router=2.0))
    domains = torch.tensor([step.columns[f"domain_{name}"][0] for name in ("linf", "rotation", "l2")])
    term = 2 * F.cross_entropy(twin.domain_logits(attacked(step)), domains.repeat_interleave(6))
    expected = torch.autograd.grad(term, list(twin.router.parameters()))
    for parameter, gradient in zip(net.router.parameters(), expected, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, gradient, atol=1e-6)


def test_every_expert_learns_from_its_threats_alone() -> None:
    net = without_dropout(network())
    memory = {"loss": {"domains": torch.zeros(3, dtype=torch.int64)}}
    taken(net, TafdLoss(ratio=1.0, diagnosis=0.0), memory=memory)
    gradient = net.body.get_parameter("feature_extractor.conv3.weight").grad
    assert gradient is not None
    shared, first, second = gradient.chunk(3, dim=1)
    assert min(float(shared.abs().max()), float(first.abs().max())) > 0
    assert float(second.abs().max()) == 0


def test_prototypes_move_when_they_are_due_and_stop_after_the_diagnosis() -> None:
    net = network()
    memory: Memory = {}
    loss = TafdLoss(diagnosis=0.2, every=5, momentum=0.5)  # two of ten epochs of ten steps

    def prototypes(count: int) -> Tensor:
        with torch.no_grad():  # other examples of the same threats
            net.body.get_submodule("classifier.fc1").weight.add_(0.3)  # type: ignore[operator]
        taken(net, loss, count, memory)
        return memory["loss"]["prototypes"].clone()

    first = prototypes(0)
    assert torch.equal(prototypes(3), first)
    due = prototypes(15)
    assert not torch.equal(due, first)
    assert torch.equal(prototypes(20), due), "the diagnosis is over"
    assert torch.equal(memory["loss"]["domains"], clustered(due, 2, memory["loss"]["domains"]))


def test_weight_perturbation_and_instance_weights_compose() -> None:
    plain = taken(without_dropout(network()), TafdLoss())
    climbed = taken(without_dropout(network()), TafdLoss(), parameters=(WeightPerturbation(gamma=0.05),))
    total = [float(sum(step.terms.values())) for step in (plain, climbed)]  # type: ignore[attr-defined]
    assert total[1] > total[0]


def test_passes_are_counted() -> None:
    method = Method(inner=INNER, loss=TafdLoss())
    found = step_cost(method, 3, threats=3)
    assert found.forwards == {"model": 3 * 2 + 3 + 1}
    assert found.backwards == {"model": 3 * 2 + 3 + 1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": 0.0}, r"ratio must lie in \(0, 1\]"),
        ({"router": 0.0}, "router must be positive"),
        ({"diagnosis": 1.5}, r"diagnosis must lie in \[0, 1\]"),
        ({"every": 0}, "every must be at least 1 step"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\)"),
        ({"ratio": float("nan")}, "ratio must lie"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TafdLoss(**settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def digits() -> Splits:
    return small_digits(96)


def job_of(splits: Splits, loss: TafdLoss | None = None, **changes: Any) -> Job:
    plain = make_job(splits, Method(), network(0.3), training={"epochs": 3})
    method = Method(inner=INNER, loss=loss or TafdLoss(diagnosis=0.6, every=2, momentum=0.5))
    return replace(plain, method=method, threats=THREATS, **changes)


def test_a_job_refuses_other_networks_attacks_and_fewer_threats(digits: Splits) -> None:
    with pytest.raises(
        MethodError, match=r"loss: the loss uses the attacks under all threats: set method\.inner to"
    ):
        Method(inner=PGDInner(), loss=TafdLoss())
    other = build_model(ModelConfig(width=0.1, image_size=(16, 16)), 0)
    with pytest.raises(MethodError, match=r"set model\.name to tafd_resnet18 or tafd_small_cnn, or method\.loss"):
        job_of(digits, model=other)
    job = job_of(digits)
    with pytest.raises(MethodError, match="has 2 domains: set threats to at least as many, not 1"):
        replace(job, threats=(ThreatModel("linf", 0.1),))


def test_the_epsilon_ramp_of_a_recipe_ends_before_its_diagnosis() -> None:
    """Otherwise the domains would be those of weaker threats."""
    for data in ("mnist5k", "cifar10"):
        config = build_config(read_recipe(f"{data}/tafd"))
        loss = config.method.loss
        assert isinstance(loss, TafdLoss)
        assert config.training.epsilon_ramp < loss.diagnosis * config.training.epochs
        assert loss.ratio == len(config.threats) / (len(config.threats) + 1)


@pytest.mark.slow
def test_a_killed_run_ends_as_an_unbroken_one(digits: Splits, tmp_path: Path) -> None:
    run(job_of(digits), tmp_path / "whole")
    for steps in (2, 4):
        with pytest.raises(KeyboardInterrupt):
            run(job_of(digits), tmp_path / "cut", Stop(steps))
    run(job_of(digits), tmp_path / "cut")
    assert same(final(tmp_path / "whole"), final(tmp_path / "cut"))
    one, other = (last(tmp_path / name)["memory"]["loss"] for name in ("whole", "cut"))
    assert same(one, other)
    assert one.keys() == {"prototypes", "domains"}
    header = (tmp_path / "whole/metrics.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    for name in ("linf", "rotation", "l2"):
        for column in ("train_robust_accuracy", "router_accuracy", "domain"):
            assert f"{column}_{name}" in header
    assert {"loss_clean", "loss_adversarial", "loss_router", "train_clean_accuracy"} <= set(header)


def test_random_domains_are_those_of_the_fixed_router_and_have_no_term() -> None:
    net = build_model(
        ModelConfig("tafd_small_cnn", width=0.1, dropout=0.0, image_size=(16, 16), ablation="random_domains"), 0
    )
    assert isinstance(net, TafdNetwork)
    with torch.no_grad():
        net.body.get_submodule("classifier.fc3").weight.normal_()  # type: ignore[operator, union-attr]
    step = taken(net, TafdLoss(ratio=0.75, router=2.0))
    assert set(step.terms) == {"adversarial", "clean"}  # type: ignore[attr-defined]
    images = attacked(step)
    with torch.no_grad():
        expected = F.cross_entropy(net.dispatched(images, net.domain_logits(images).argmax(1)), step.y.repeat(3))
    assert float(step.terms["adversarial"]) == pytest.approx(0.75 * float(expected), rel=1e-5)  # type: ignore[attr-defined]
    assert step_cost(Method(inner=INNER, loss=TafdLoss()), 3, threats=3).total > 0


def test_a_random_assignment_is_drawn_once_and_taught_to_the_router() -> None:
    net = without_dropout(network())
    memory: Memory = {}
    loss = TafdLoss(ratio=1.0, router=2.0, diagnosis=1.0, every=1, assignment="random")
    step = taken(net, loss, memory=memory)
    domains = dealt(3, 2, 0)  # the seed of the step is 0
    assert memory["loss"].keys() == {"domains"}
    assert torch.equal(memory["loss"]["domains"], domains)
    images, of_each = attacked(step), domains.repeat_interleave(6)
    with torch.no_grad():
        adversarial = F.cross_entropy(net.dispatched(images, of_each), step.y.repeat(3))
        router = F.cross_entropy(net.domain_logits(images), of_each)
    terms = step.terms  # type: ignore[attr-defined]
    assert float(terms["adversarial"]) == pytest.approx(float(adversarial), rel=1e-5)
    assert float(terms["router"]) == pytest.approx(2 * float(router), rel=1e-5)
    taken(net, loss, 7, memory)
    assert torch.equal(memory["loss"]["domains"], domains), "no diagnosis moves them"


def test_a_random_assignment_needs_a_router_that_learns(digits: Splits) -> None:
    net = build_model(ModelConfig("tafd_small_cnn", width=0.1, image_size=(16, 16), ablation="random_domains"), 0)
    with pytest.raises(MethodError, match=r"leave out model\.ablation, or set method\.loss\.assignment to"):
        job_of(digits, loss=TafdLoss(assignment="random"), model=net)
    job_of(digits, loss=TafdLoss(assignment="random"))
