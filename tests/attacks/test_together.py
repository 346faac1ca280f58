"""Targets and restarts that run at once give the verdicts of runs one after the other."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from robustly.attacks import APGD, FAB, NES, TargetedAPGD
from robustly.attacks.core import together as module
from robustly.attacks.core.together import in_turn
from robustly.objectives import margin
from robustly.randomness import KeyedGenerator, interleaved
from robustly.threats import ThreatModel

ATTACKS = {
    "apgd": APGD(8, restarts=4),
    "apgd_odi": APGD(6, restarts=3, start="odi", objective=margin),
    "apgd_t": TargetedAPGD(8, targets=4),
    "apgd_t_restarts": TargetedAPGD(6, targets=2, restarts=2),
    "fab_t": FAB(steps=8, targets=4, stop_inside=True),
    "fab_t_minimum": FAB(steps=8, targets=4),
}
THREATS = [ThreatModel("linf", 0.05), ThreatModel("l2", 0.4), ThreatModel("l1", 3.0)]


@pytest.fixture(scope="module")
def victim() -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 6)).eval()
    x = torch.rand(24, 1, 8, 8, generator=generator)
    with torch.no_grad():
        return net, x, net(x).argmax(1)


def run(attack, victim, threat: ThreatModel):
    net, x, y = victim
    return attack(net, x, y, threat=threat, generator=KeyedGenerator(5, torch.arange(len(x))))


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("name", list(ATTACKS))
def test_verdicts_are_those_of_runs_one_after_the_other(
    name: str, threat: ThreatModel, victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = run(ATTACKS[name], victim, threat)
    alone = lambda runs, estimator=None: [range(one, one + 1) for one in range(runs)]  # noqa: E731
    for user in ("robustly.attacks.apgd", "robustly.attacks.fab"):
        monkeypatch.setattr(f"{user}.in_turn", alone)
    in_turn_ = run(ATTACKS[name], victim, threat)
    assert torch.equal(at_once.broken, in_turn_.broken)
    assert 0 < int(at_once.broken.sum()) < len(at_once.broken), "the test decides something"
    robust = ~at_once.broken
    assert torch.equal(at_once.forwards[robust], in_turn_.forwards[robust]), "unbroken examples cost the same"
    assert torch.equal(at_once.backwards[robust], in_turn_.backwards[robust])
    if ATTACKS[name].minimum_norm:
        torch.testing.assert_close(at_once.distance, in_turn_.distance)
    assert at_once.margin is not None
    assert in_turn_.margin is not None
    torch.testing.assert_close(at_once.margin[robust], in_turn_.margin[robust], atol=1e-4, rtol=1e-3)


def test_groups_of_examples_change_nothing(victim, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(ATTACKS["apgd_t"], victim, THREATS[0])
    net, x, y = victim
    monkeypatch.setattr(module, "VALUES", 1)
    parts = [
        ATTACKS["apgd_t"](net, x[r], y[r], threat=THREATS[0], generator=KeyedGenerator(5, r))
        for r in torch.arange(len(x)).split(5)
    ]
    assert torch.equal(torch.cat([part.broken for part in parts]), whole.broken)
    assert torch.equal(torch.cat([part.forwards for part in parts]), whole.forwards)


def test_interleaved_generators_draw_the_numbers_of_their_parts() -> None:
    one, other = (KeyedGenerator(3, torch.tensor([4, 9, 2])).fold("restart", turn) for turn in range(2))
    both = interleaved([one, other])
    parts = torch.stack([one.fold("start").normal(5), other.fold("start").normal(5)], dim=1)
    assert torch.equal(both.fold("start").normal(5), parts.flatten(0, 1))
    mask = torch.tensor([True, False, False, True, True, False])
    assert torch.equal(both.select(mask).uniform(2, 3), both.uniform(2, 3)[mask])
    assert interleaved([one]) is one


def test_estimators_run_alone() -> None:
    assert in_turn(3) == [range(1), range(1, 3)]
    assert in_turn(1) == [range(1)]
    assert in_turn(0) == []
    assert in_turn(3, NES()) == [range(1), range(1, 2), range(2, 3)]
    assert replace(ATTACKS["apgd"], estimator=NES(1)).estimator is not None


def test_the_margin_of_a_targeted_search_is_that_of_the_goal(victim) -> None:
    """FAB maximises the margin of one target; the recorded margin is over all classes."""
    net, x, y = victim
    found = run(FAB(steps=1, targets=1), victim, THREATS[0])
    with torch.no_grad():
        clean = net(x)
    others = clean.scatter(1, y[:, None], -torch.inf).amax(1)
    assert found.margin is not None
    assert bool((found.margin >= others - clean.gather(1, y[:, None])[:, 0] - 1e-6).all())
