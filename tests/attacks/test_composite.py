"""The composite attack: its schedule, its relation to PGD, orders, cost, what it refuses."""

from itertools import permutations

import pytest
import torch
from torch import Tensor, nn

from robustly.attacks import PGD, AttackError
from robustly.attacks.composite import Composite, best_order, sinkhorn
from robustly.evaluation.suites.cost import attack_cost
from robustly.randomness import KeyedGenerator
from robustly.testing.attacks import check_attack
from robustly.testing.networks import small_network
from robustly.threats import parse_threat

FREE = parse_threat("rotation:25&shift:1&linf:0.05")
ORDERS = ("scheduled", "random", "fixed")


def batch(count: int = 24) -> tuple[nn.Module, Tensor, Tensor]:
    net = small_network((1, 6, 6), 4, 0).eval()
    x = KeyedGenerator(0, torch.arange(count)).uniform(1, 6, 6)
    return net, x, net(x).argmax(1)


def draws(count: int = 24) -> KeyedGenerator:
    return KeyedGenerator(3, torch.arange(count))


def test_sinkhorn_is_doubly_stochastic() -> None:
    assert torch.allclose(sinkhorn(torch.zeros(2, 4, 4)), torch.full((2, 4, 4), 0.25))
    found = sinkhorn(torch.randn(5, 6, 6, generator=torch.Generator().manual_seed(0)))
    for axis in (1, 2):
        assert torch.allclose(found.sum(axis), torch.ones(5, 6), atol=1e-3)


def test_the_best_order_of_a_permutation_is_itself() -> None:
    orders = torch.tensor(list(permutations(range(4))))
    assert torch.equal(best_order(nn.functional.one_hot(orders, 4).float()), orders)
    # the largest entry of a row is not always in the best order
    assert best_order(torch.tensor([[[0.9, 0.8], [0.85, 0.1]]])).tolist() == [[1, 0]]


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_it_is_an_attack(order: str) -> None:
    check_attack(Composite(steps=2, order=order, rounds=2, schedule_steps=1), (FREE,))  # type: ignore[arg-type]


def test_with_all_other_parts_off_it_is_pgd() -> None:
    net, x, y = batch(64)
    alone = parse_threat("rotation:0&shift:0&linf:0.15")
    ours = Composite(steps=5, order="fixed")(net, x, y, threat=alone, generator=draws(64))
    theirs = PGD(steps=5)(net, x, y, threat=alone, generator=draws(64))
    assert 0 < int(ours.broken.sum()) < 64
    assert torch.equal(ours.broken, theirs.broken)
    assert torch.equal(ours.x_adv[ours.broken], theirs.x_adv[ours.broken])


@pytest.mark.parametrize("order", ORDERS)
def test_its_announced_cost_is_what_it_spends(order: str) -> None:
    net, x, y = batch()
    attack = Composite(steps=2, order=order, rounds=2, schedule_steps=1, restarts=2)  # type: ignore[arg-type]
    weak = parse_threat("rotation:0.01&shift:0.001&linf:0.0001")
    found = attack(net, x, y, threat=weak, generator=draws())
    robust = ~found.broken
    assert robust.any()
    forwards, backwards = attack_cost(attack, weak, 4, 36)
    assert set(found.forwards[robust].tolist()) == {forwards}
    assert set(found.backwards[robust].tolist()) == {backwards}


@pytest.mark.slow
def test_orders_find_what_one_order_does_not() -> None:
    """Robust accuracy falls from the fixed order of one round to several random and to scheduled orders."""
    net, x, y = batch(64)
    threat = parse_threat("rotation:40&shift:1&linf:0.1")

    def robust(order: str) -> int:
        attack = Composite(steps=5, order=order, rounds=4, schedule_steps=1)  # type: ignore[arg-type]
        return int((~attack(net, x, y, threat=threat, generator=draws(64)).broken).sum())

    fixed, random, scheduled = map(robust, ("fixed", "random", "scheduled"))
    restarted = PGD(steps=5, restarts=4)(net, x, y, threat=threat, generator=draws(64))
    assert max(random, scheduled) < min(fixed, int((~restarted.broken).sum()))


def test_bad_input_is_refused() -> None:
    net, x, y = batch(2)
    for settings, why in (({"steps": 0}, "steps"), ({"rounds": 0}, "rounds"), ({"schedule_steps": -1}, "schedule")):
        with pytest.raises(AttackError, match=f"{why}.* must be at least"):
            Composite(**settings)  # type: ignore[arg-type]
    with pytest.raises(AttackError, match="defined for chains in any order"):
        Composite()(net, x, y, threat=parse_threat("linf:0.1"), generator=draws(2))
    many = parse_threat("rotation:1&shift:1&scale:0.1&shear:1&linf:0.1&l2:1&l1:1&l0:1")
    with pytest.raises(AttackError, match="at most 7 parts"):
        Composite()(net, x, y, threat=many, generator=draws(2))
    assert PGD().needs.accept(FREE), "every search of gradients searches chains in any order, too"
