"""TaFD networks: one classifier with a hard route, forced routes, and networks with as many parameters."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustly.attacks import PGD
from robustly.cli.recipes import read_recipe
from robustly.experiments.configuration import build_config
from robustly.models import (
    ModelConfig,
    TafdNetwork,
    as_classifier,
    build_model,
    forced,
    matched_width,
    parameter_count,
    tafd_resnet18,
)
from robustly.randomness import KeyedGenerator
from robustly.threats import ThreatModel


def network(name: str = "tafd_small_cnn", seed: int = 0, **changes: object) -> TafdNetwork:
    """A narrow network in evaluation mode, whose masks, zero layers and routes are of some size."""
    config = replace(ModelConfig(name, width=0.1, channels=1, image_size=(16, 20)), **changes)  # type: ignore[arg-type]
    made = build_model(config, seed)
    assert isinstance(made, TafdNetwork)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        for layer in [part for part in made.modules() if hasattr(part, "embedding")]:
            nn.init.normal_(layer.embedding)
        for part in made.modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=0.5)
        bias = made.router.get_submodule("fc2").bias
        bias -= made.eval().domain_logits(images(64)).median(0).values
    return made


def images(count: int = 8, channels: int = 1) -> Tensor:
    return torch.rand(count, channels, 16, 20, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", ["tafd_small_cnn", "tafd_resnet18"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_route_is_hard_and_forced_routes_agree_with_it(name: str, channels: int) -> None:
    net = build_model(ModelConfig(name, width=0.1, channels=channels, image_size=(16, 20)), 1).eval()
    if (name, channels) == ("tafd_small_cnn", 1):
        net = network()
    assert isinstance(net, TafdNetwork)
    x = images(24, channels)
    with torch.no_grad():
        logits, domains = net(x), net.domain_logits(x).argmax(1)
        branches = torch.stack([forced(net, d)(x) for d in range(2)])
    assert torch.equal(logits, branches[domains, torch.arange(24)])
    assert torch.equal(net(x), logits), "gradients change no value"
    if (name, channels) == ("tafd_small_cnn", 1):
        assert len(set(domains.tolist())) == 2
        assert float((branches[0] - branches[1]).abs().max()) > 1e-3


def test_an_image_has_one_route_in_every_batch() -> None:
    net, x = network(), images(20)
    with torch.no_grad():
        together, alone = net(x), torch.cat([net(one[None]) for one in x])
        shuffled = net(x.flip(0)).flip(0)
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(together, shuffled, atol=1e-5)
    assert network()(images(0)).shape == (0, 10)


def test_gradients_reach_the_router_through_the_route_only_where_it_decides() -> None:
    net, x, y = network(), images(), torch.arange(8)
    router = list(net.router.parameters())

    def gradients(loss: Tensor) -> list[Tensor | None]:
        return list(torch.autograd.grad(loss, router, allow_unused=True))

    def has_some(found: list[Tensor | None]) -> bool:
        return any(one is not None and bool((one != 0).any()) for one in found)

    assert has_some(gradients(F.cross_entropy(net(x), y)))
    assert not has_some(gradients(F.cross_entropy(net.dispatched(x, y % 2), y)))
    assert has_some(gradients(F.cross_entropy(net.domain_logits(x), y % 2)))


def test_the_image_gradient_sees_the_route() -> None:
    """The gradient of a sure router is that of its branch; an unsure one adds the slope of the route."""
    net, x = network().double(), images(4).double().requires_grad_()
    sharp = copy.deepcopy(net)
    last = sharp.router.get_submodule("fc2")
    assert isinstance(last, nn.Linear)
    with torch.no_grad():  # a sure router: soft and hard routes agree, and it has no slope
        last.weight.mul_(1e9)
        assert last.bias is not None
        last.bias.mul_(1e9)
        domains = sharp.domain_logits(x).argmax(1)
    (exact,) = torch.autograd.grad(sharp.dispatched(x, domains).logsumexp(1).sum(), x)
    (sure,) = torch.autograd.grad(sharp(x).logsumexp(1).sum(), x)
    (unsure,) = torch.autograd.grad(net(x).logsumexp(1).sum(), x)
    assert torch.allclose(sure, exact, atol=1e-12)
    assert float((unsure - exact).abs().max()) > 1e-4


def test_attacks_take_it_as_one_classifier_and_leave_it_as_it_was() -> None:
    net, x, y = network(), images(), torch.arange(8)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert as_classifier(net, x) is net
    found = PGD(3)(net, x, y, threat=ThreatModel("linf", 0.1), generator=KeyedGenerator(0, torch.arange(8)))
    with torch.no_grad():
        assert torch.equal(net(found.x_adv).argmax(1) != y, found.broken)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_forced_routes_share_the_weights_and_refuse_others() -> None:
    net = network()
    one = forced(net, 1)
    assert {id(p) for p in one.parameters()} == {id(p) for p in net.parameters()}
    with pytest.raises(ValueError, match="domain is 2: the network has the domains 0 to 1"):
        forced(net, 2)
    with pytest.raises(ValueError, match="need a network with threat domains, such as tafd_resnet18, not Linear"):
        forced(nn.Linear(2, 2), 0)


def test_small_images_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 8x8 pixels, not 8x7"):
        tafd_resnet18(image_size=(8, 7))
    assert tafd_resnet18(image_size=(8, 8), width=0.05, domains=3).eval()(torch.rand(2, 3, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("data", ["mnist5k", "cifar10"])
def test_the_matched_recipes_have_as_many_parameters(data: str) -> None:
    images_of = {"mnist5k": (10, 1, (28, 28)), "cifar10": (10, 3, (32, 32))}[data]
    ours, matched = (build_config(read_recipe(f"{data}/{name}")) for name in ("tafd", "tafd_matched"))
    with_experts, without = (config.model.for_images(*images_of) for config in (ours, matched))
    count = parameter_count(with_experts)
    assert matched_width(without, count) == without.width
    assert abs(parameter_count(without) / count - 1) < 0.02
    assert (ours.threats, ours.optimizer, ours.training) == (matched.threats, matched.optimizer, matched.training)
    assert ours.method.inner == matched.method.inner


def test_a_width_reaches_a_count() -> None:
    plain = ModelConfig("resnet18", width=0.25)
    assert parameter_count(plain) == sum(p.numel() for p in build_model(plain, 0).parameters())
    assert abs(matched_width(replace(plain, width=1.0), parameter_count(plain)) - 0.25) < 0.004
    with pytest.raises(ValueError, match="fewer than 1000000000000 parameters"):
        matched_width(plain, 10**12)


@pytest.mark.parametrize("name", ["tafd_small_cnn", "tafd_resnet18"])
def test_channels_last_and_double_precision_change_no_route(name: str) -> None:
    net = network() if name == "tafd_small_cnn" else build_model(ModelConfig(name, width=0.1, channels=1), 0).eval()
    x = images()
    with torch.no_grad():
        plain = net(x)
        last = copy.deepcopy(net).to(memory_format=torch.channels_last)
        assert torch.allclose(last(x.contiguous(memory_format=torch.channels_last)), plain, atol=1e-5)
        assert torch.allclose(copy.deepcopy(net).double()(x.double()).float(), plain, atol=1e-4)


@pytest.mark.parametrize("name", ["tafd_small_cnn", "tafd_resnet18"])
@pytest.mark.parametrize("ablation", ["random_domains", "no_masks"])
def test_ablations_are_networks_with_one_part_less(name: str, ablation: str) -> None:
    config = ModelConfig(name, width=0.1, channels=1, image_size=(16, 20), ablation=ablation)
    net, whole = build_model(config, 1).eval(), build_model(replace(config, ablation=None), 1)
    assert isinstance(net, TafdNetwork)
    missing = {key.partition(".")[0] for key in whole.state_dict().keys() - net.state_dict().keys()}
    assert missing == ({"router"} if ablation == "random_domains" else {"body"})
    assert net.has_random_domains == (ablation == "random_domains")
    x = images(24)
    with torch.no_grad():
        domains, branches = net.domain_logits(x).argmax(1), torch.stack([forced(net, d)(x) for d in range(2)])
        assert torch.equal(net(x), branches[domains, torch.arange(24)])
    assert torch.equal(net(x).detach(), branches[domains, torch.arange(24)])


def test_random_domains_are_fixed_and_about_even_and_do_not_depend_on_brightness() -> None:
    config = ModelConfig("tafd_small_cnn", width=0.1, image_size=(16, 20), ablation="random_domains")
    net, x = build_model(config, 1).eval(), images(400)
    assert isinstance(net, TafdNetwork)
    domains = net.domain_logits(x).argmax(1)
    assert 100 < int(domains.sum()) < 300
    assert torch.equal(domains, torch.cat([net.domain_logits(one[None]).argmax(1) for one in x]))
    assert torch.allclose(net.domain_logits(x * 0.5 + 0.2), net.domain_logits(x) * 0.5, atol=1e-5)
    again, other = build_model(config, 1), build_model(config, 2)
    assert torch.equal(again.router.directions, net.router.directions)  # type: ignore[union-attr]
    assert not torch.equal(other.router.directions, net.router.directions)  # type: ignore[union-attr]
    assert not list(net.router.parameters())
    assert "router.directions" in net.state_dict(), "weights keep the choice"


def test_ablations_of_other_networks_are_refused() -> None:
    for name, ablation in (("small_cnn", "no_masks"), ("tafd_small_cnn", "no_router")):
        with pytest.raises(ValueError, match=r"use random_domains or no_masks with tafd_resnet18"):
            ModelConfig(name, ablation=ablation)
    with pytest.raises(ValueError, match="unknown ablation"):
        tafd_resnet18(ablation="no_router")
