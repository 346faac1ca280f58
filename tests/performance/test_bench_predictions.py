"""Attacks relative to their counted passes, and predicted times."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from robustly.attacks import (
    APGD,
    ATTACKS,
    DDN,
    FAB,
    PGD,
    Attack,
    AttackResult,
    CarliniWagner,
    DeepFool,
    SparseRS,
    Square,
    TargetedAPGD,
)
from robustly.data import Splits
from robustly.evaluation import Suite, as_suite, evaluate
from robustly.evaluation.suites.cost import announced_cost, attack_cost
from robustly.objectives import margin
from robustly.performance import (
    AttackTime,
    Floor,
    Meter,
    Survival,
    duration_words,
    measure_attacks,
    predict_suite,
    survival_of,
)
from robustly.performance.attack_times import _fixed, distinct, seconds_of_call
from robustly.performance.choices import Choices
from robustly.performance.shortened import lengthened, shortened
from robustly.performance.steady import Steady, steady
from robustly.performance.suite_times import Request, measure_suites
from robustly.performance.timing import BenchError, Spread
from robustly.randomness import KeyedGenerator
from robustly.statistics import Proportion
from robustly.threats.lp import ThreatModel

pytestmark = pytest.mark.slow

LINF = ThreatModel("linf", 0.1)


def exactly(value: float) -> Spread:
    return Spread(value, value, value, 3)


FLOOR = Floor(exactly(1.0), exactly(3.0))


def times(**ratios: float) -> Mapping[str, AttackTime]:
    return {name: AttackTime(exactly(one), exactly(one), "float32", 0.0, 0.0, 8) for name, one in ratios.items()}


@pytest.mark.parametrize("attack", [*ATTACKS.values(), APGD(), FAB(), Square(), DeepFool(), DDN(), CarliniWagner()])
def test_a_shortened_attack_is_of_the_same_kind_and_cheaper(attack: Attack) -> None:
    short = shortened(attack)
    assert type(short) is type(attack)
    most = 300 if getattr(attack, "estimator", None) is None else 2100  # an estimated gradient takes many passes
    assert sum(attack_cost(short, LINF)) <= min(sum(attack_cost(attack, LINF)), most)
    assert sum(attack_cost(shortened(attack, thrift=True), LINF)) <= sum(attack_cost(short, LINF))


def test_a_short_attack_stays_as_it_is() -> None:
    assert shortened(PGD(steps=3)) == PGD(steps=3)
    assert shortened(PGD(0, restarts=50)) == PGD(0, restarts=8)
    assert shortened(FAB(targets=0, steps=100)) == FAB(targets=0, steps=8)
    assert shortened(TargetedAPGD(targets=9, steps=100)) == TargetedAPGD(targets=9, steps=3)


def test_a_longer_attack_has_twice_the_steps_where_the_whole_one_has_as_many() -> None:
    assert lengthened(PGD(steps=8), PGD(steps=20)) == PGD(steps=16)
    assert lengthened(PGD(steps=8), PGD(steps=15)) is None
    assert lengthened(Square(queries=32), Square(queries=100)) == Square(queries=64)
    assert lengthened(FAB(steps=3, targets=2), FAB(steps=9, targets=2)) == FAB(steps=6, targets=2)
    assert lengthened(PGD(0, restarts=8), PGD(0, restarts=50)) is None


@pytest.mark.parametrize(
    ("passes", "seconds", "call"),
    [
        ((10, 20), (1.2, 2.2), 0.2),
        ((10, 20), (1.0, 2.0), 0.0),
        ((10, 20), (1.0, 2.5), 0.0),  # a call of less than nothing
        ((10, 20), (2.0, 1.0), 0.0),  # noise
        ((10, 10), (2.0, 3.0), 0.0),
    ],
)
def test_what_two_lengths_of_an_attack_share_is_the_time_of_a_call(
    passes: tuple[float, float], seconds: tuple[float, float], call: float
) -> None:
    assert seconds_of_call(passes, seconds) == pytest.approx(call)


class Counted(nn.Module):
    """A network that counts a unit of time for each image of a forward pass."""

    def __init__(self, clock: list[float]) -> None:
        super().__init__()
        self.net, self.clock = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), clock

    def forward(self, x: Tensor) -> Tensor:
        self.clock[0] += len(x)
        return self.net(x)

    def __deepcopy__(self, memo: dict[int, object]) -> "Counted":
        return self  # copies count on the same clock


@dataclass(frozen=True)
class CountedTime(Meter):
    """A meter that reads such a clock."""

    counts: list[float] = field(default_factory=list)

    def seconds(self, work: Callable[[], object]) -> float:
        before = self.counts[0]
        work()
        return self.counts[0] - before


@dataclass(frozen=True)
class SlowToBegin:
    """PGD that takes some units of time before its first pass."""

    steps: int
    wait: float
    clock: list[float] = field(compare=False)
    minimum_norm = False
    early_stop = False

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, threat: ThreatModel, generator: KeyedGenerator
    ) -> AttackResult:
        self.clock[0] += self.wait
        return PGD(self.steps)(model, x, y, threat=threat, generator=generator)


def test_the_time_of_a_call_is_no_part_of_the_time_of_a_pass(digits: Splits) -> None:
    x, clock = digits.test.floats()[:16], [0.0]
    attacks = {"plain": SlowToBegin(40, 0.0, clock), "slow": SlowToBegin(40, 50.0, clock)}
    meter = CountedTime(counts=clock)
    found = measure_attacks(Counted(clock), x, LINF, attacks, layout="contiguous", meter=meter, seconds=0.0).times
    assert found["plain"].call == pytest.approx(0)
    assert found["slow"].call == pytest.approx(50)
    assert found["slow"].ratio.median == pytest.approx(found["plain"].ratio.median)
    assert found["slow"].fixed == pytest.approx(found["plain"].fixed) == pytest.approx(0)


@pytest.mark.parametrize("attack", [PGD(steps=20), APGD(steps=30), Square(queries=100), FAB(targets=2, steps=9)])
def test_every_pass_of_a_measured_attack_is_made(digit_net: nn.Module, digits: Splits, attack: PGD) -> None:
    x = digits.test.floats()[:4]
    found = measure_attacks(
        digit_net, x, LINF, {"one": attack}, layout="contiguous", meter=Meter(), seconds=0.0
    ).times["one"]
    forwards, backwards = attack_cost(shortened(attack), LINF, 10, 784)
    assert (found.forwards, found.backwards) == (forwards, backwards)
    assert found.batch_size == 4
    assert 0.3 < found.ratio.median < 30


def test_nothing_breaks_the_steady_network(digits: Splits) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    nn.init.zeros_(net[1].weight)  # as in networks whose last layer begins at zero
    x = digits.test.floats()[:3]
    model = steady(net, x)
    assert isinstance(model, Steady)
    y = torch.zeros(3, dtype=torch.int64)
    found = FAB(steps=5)(model, x, y, threat=LINF, generator=KeyedGenerator(0, torch.arange(3)))
    assert not bool(found.broken.any())
    assert found.backwards.tolist() == [5 * 9] * 3


def test_attacks_that_differ_by_the_objective_only_are_timed_once(digit_net: nn.Module, digits: Splits) -> None:
    attacks = {"ce": PGD(steps=20), "margin": PGD(steps=50, objective=margin), "other": PGD(steps=20, mode="train")}
    found = measure_attacks(
        digit_net, digits.test.floats()[:2], LINF, attacks, layout="contiguous", meter=Meter(), seconds=0.0
    ).times
    assert found["ce"] is found["margin"]
    assert found["ce"] is not found["other"]


def test_an_attack_that_fails_is_named(digit_net: nn.Module, digits: Splits) -> None:
    found = measure_attacks(
        digit_net,
        digits.test.floats()[:2],
        LINF,
        {"sparse": SparseRS(), "pgd": PGD(steps=2)},
        layout="contiguous",
        meter=Meter(),
        seconds=0.0,
    )
    assert list(found.times) == ["pgd"]
    assert "defined for" in found.failures["sparse"]


def test_names_of_attacks_of_several_suites() -> None:
    one, two = PGD(steps=1), PGD(steps=2)
    assert distinct({"a": {"x": one}, "b": {"x": two, "y": one}, "c": {"x": one}}) == {
        "x": one,
        "b.x": two,
        "y": one,
    }


def test_time_of_small_batches() -> None:
    time = AttackTime(exactly(1.0), exactly(1.0), "float32", 0.0, 0.0, batch_size=100, fixed=25.0)
    assert time.relative(100, 1) == 1
    assert time.relative(1000, 10) == 1
    assert time.relative(25, 1) == 2 / 1.25  # a batch without images takes as long as 25 images
    assert time.relative(30, 0) == 1 / 1.25  # images in batches that are there anyway
    assert _fixed(3.0, 8, 12.0, 80) == pytest.approx(16)  # 2 s and 1/8 s for each image
    assert _fixed(1.0, 8, 10.0, 80) == 0
    assert _fixed(3.0, 8, 2.0, 80) == 0


def test_seconds_of_counted_passes() -> None:
    assert FLOOR.seconds(5, 3) == 3 * 3 + 2 * 1
    assert FLOOR.seconds(2, 3) == 2 * 3 + 1 * (3 - 1)  # a backward pass alone is the difference
    assert FLOOR.seconds(4, 0) == 4


def predicted(suite: Suite, survival: Survival | None, count: int = 100, mode: str = "every"):
    return predict_suite(
        suite,
        LINF,
        count=count,
        classes=10,
        size=784,
        floor=FLOOR,
        times=times(**dict.fromkeys(suite.attacks, 2.0)),
        survival=survival,
        mode=mode,  # type: ignore[arg-type]
    )


def test_prediction_of_one_attack_in_closed_form() -> None:
    suite = Suite("one", {"pgd": PGD(steps=4, precision="full")})
    found = predicted(suite, Survival(correct=0.8, robust=0.5, early=0.25, evaluation="", count=10**6))
    # an image costs 6 forward passes, 4 of them with a backward pass: 14 s, and twice that by the ratio
    assert found.upper.median == 100 * 1 + 100 * 2 * 14
    assert found.lower.median == 100 * 1 + 100 * 2 * 5
    # half of the images all passes, 0.3 of them a quarter
    assert found.expected is not None
    assert found.expected.median == pytest.approx(100 * 1 + 2 * 14 * (50 + 30 * 0.25))
    assert found.passes == (100 + 400, 100 + 50 * 10 + 75, 100 + 1000)
    assert found.ratio == pytest.approx((100 + 2800) / (100 + 1400))
    assert found.unknown == found.on_suspicion == ()


def test_each_batch_adds_the_time_of_a_call() -> None:
    one = Suite("one", {"pgd": PGD(steps=20)})
    given = {"count": 100, "classes": 10, "size": 784, "floor": FLOOR, "survival": None, "batch_size": 30}
    plain, slow = times(pgd=1.0), {"pgd": replace(times(pgd=1.0)["pgd"], call=7.0)}
    found, other = (predict_suite(one, LINF, times=each, **given) for each in (plain, slow))
    assert other.upper.median - found.upper.median == pytest.approx(4 * 7)


def test_the_search_for_8_bit_images_is_part_of_the_expected_time() -> None:
    suite = Suite("one", {"pgd": PGD(steps=4)})
    without, found = (predicted(suite, Survival(0.8, 0.5, 0.0, "", 50, passes)).expected for passes in (0.0, 10.0))
    assert without is not None
    assert found is not None
    assert found.median - without.median == pytest.approx(100 * 0.3 * 10 / 2 * 3)


def test_the_interval_of_the_robust_accuracy_is_part_of_the_range() -> None:
    suite = Suite("one", {"pgd": PGD(steps=4)})
    few = predicted(suite, Survival(1.0, 0.5, 0.0, "", 10)).expected
    assert few is not None
    low, high = Proportion(5, 10).interval
    assert (few.low, few.high) == (pytest.approx(100 + 2800 * low), pytest.approx(100 + 2800 * high))


def test_every_mode_attacks_broken_images_again() -> None:
    suite = Suite("two", {"one": PGD(steps=4), "two": PGD(steps=4)})
    half = Survival(1.0, 0.5, 1.0, "", 10)
    every, worst = (predicted(suite, half, mode=mode) for mode in ("every", "worst_case"))
    assert every.expected is not None
    assert worst.expected is not None
    assert every.expected.median == every.upper.median
    assert worst.expected.median == 100 + 2 * 14 * (100 + 50)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.sampled_from(["quick", "standard", "aa_standard"]))
@example(0.10603388262191007, 0.004966038565719534, 1.0, "quick")
def test_the_expected_time_is_between_the_limits(correct: float, share: float, early: float, name: str) -> None:
    suite = as_suite(name, LINF)
    found = predicted(suite, Survival(correct, correct * share, early, "", 50))
    whole = predicted(suite, Survival(1.0, 1.0, early, "", 50))
    assert found.expected is not None
    assert whole.expected is not None
    assert found.expected.median <= whole.expected.median * (1 + 1e-9)
    assert found.expected.low <= found.expected.median <= found.expected.high
    assert whole.expected.median == pytest.approx(found.upper.median)
    assert found.passes[2] == announced_cost(suite, LINF, 100, 10, 784).total


def test_stages_on_suspicion_and_unknown_attacks_are_named() -> None:
    suite = as_suite("standard", LINF)
    found = predict_suite(
        suite, LINF, count=10, classes=10, size=784, floor=FLOOR, times=times(screen=1.0), survival=None
    )
    assert "more_square" in found.on_suspicion
    assert "near_targets" in found.unknown
    assert found.expected is None
    assert found.passes[1] is None
    assert found.curve > 0


def test_shares_of_an_evaluation(digit_net: nn.Module, digits: Splits) -> None:
    data = digits.test.select(torch.arange(40))
    suite = Suite("one", {"pgd": PGD(steps=10)})
    found = evaluate(digit_net, data, LINF, suite, batch_size=40)
    share = survival_of(found, "evaluation")
    column = found.table.attacks["pgd"]
    assert share.correct == found.table.examples.correct.mean()
    assert share.robust == (~found.table.worst_case.broken).mean()
    assert 0 < share.early < 1
    # the counted passes of the same evaluation are predicted exactly, but for images that are wrong without attack
    guess = predicted(suite, share, 40).passes[1]
    assert guess == pytest.approx(40 + int(column.forwards.sum() + column.backwards.sum()), abs=2)


@pytest.mark.parametrize("shares", [(0.5, 0.6, 0.1), (1.1, 0.5, 0.1), (1.0, -0.1, 0.1), (1.0, 0.5, 2.0)])
def test_shares_out_of_range_are_refused(shares: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="should be between 0 and 1"):
        Survival(*shares, "", 10)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0123, "0.012 s"), (9.94, "9.9 s"), (52.4, "52 s"), (99.4, "99 s"), (200, "3 min 20 s"), (240, "4 min"),
        (1900, "32 min"), (11400, "3 h 10 min"), (7200, "2 h"), (180 * 3600, "7 days 12 h"), (48 * 3600, "2 days"),
    ],
)  # fmt: skip
def test_durations(seconds: float, words: str) -> None:
    assert duration_words(seconds) == words


def test_slow_networks_are_measured_with_fewer_images_or_not_at_all(digit_net: nn.Module, digits: Splits) -> None:
    def measured(per_image: float, seconds: float):
        return measure_suites(
            digit_net,
            lambda count: digits.test.floats()[:count],
            Request([as_suite("pgd_20", LINF)], LINF, 10, 1000),
            Choices(32, "contiguous", None, 1, None),
            Meter(),
            per_image=per_image,
            seconds=seconds,
        )

    # PGD-20 shortened to 8 steps takes 18 passes, to 3 steps 8
    whole, fewer, least = (measured(one, 0.2).times["pgd_20"] for one in (1e-6, 8e-4, 2e-2))
    assert (whole.batch_size, whole.forwards) == (32, 10)
    assert (fewer.batch_size, fewer.forwards) == (15, 5)
    assert (least.batch_size, least.forwards) == (2, 5)
    with pytest.raises(BenchError, match="they would take about 16 s: raise --seconds"):
        measured(1.0, 0.2)
