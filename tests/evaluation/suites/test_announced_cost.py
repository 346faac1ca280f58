"""The cost of attacks and suites from their settings, against counted passes."""

from dataclasses import replace

import pytest

from robustly.attacks import (
    APGD,
    ATTACK_KINDS,
    ATTACKS,
    DDN,
    EAD,
    FAB,
    FMN,
    JSMA,
    MIM,
    NES,
    PGD,
    PMA,
    SPSA,
    VMI,
    Averaged,
    CarliniWagner,
    Composite,
    DeepFool,
    ExpectedPatch,
    GridSearch,
    HopSkipJump,
    InputDiversity,
    ParameterSearch,
    PatchSearch,
    RandomDraws,
    RoutePGD,
    SigmaZero,
    SmoothPGD,
    SparseRS,
    Square,
    TargetedAPGD,
    Transfer,
)  # fmt: skip
from robustly.attacks.boundary import Boundary
from robustly.evaluation.suites import suite_named
from robustly.evaluation.suites.cost import COSTS, announced_cost, attack_cost
from robustly.evaluation.suites.passes import _Unbreakable, autoattack_passes, passes_of
from robustly.threats import Flow, Patch, Threat, ThreatModel, parse_threat

SIZE = 3 * 8 * 8  # of the images on which passes are counted
THREATS: dict[str, Threat] = {
    "linf": ThreatModel("linf", 0.05),
    "l2": ThreatModel("l2", 1.0),
    "l0": ThreatModel("l0", 3),
    "flow": Flow(0.5),
    "patch": Patch(3),
    "affine": parse_threat("affine:rotation=30,shift=2"),
    "physical_patch": parse_threat("physical_patch:3"),
    "any_order": parse_threat("rotation:30&shift:2&linf:0.05"),
}
EXACT = {
    **{name: attack for name, attack in ATTACKS.items() if attack.steps <= 20 and attack.estimator is None},
    "nes": replace(ATTACKS["nes"], estimator=NES(2)),
    "spsa": replace(ATTACKS["spsa"], estimator=SPSA(2)),
    "vmi": VMI(4, samples=3),
    "pma": PMA(8),
    "deepfool": DeepFool(9),
    "ddn": DDN(9),
    "fmn": FMN(5, restarts=2, targets=2),
    "pgd_nes": PGD(3, restarts=2, estimator=NES(4)),
    "pgd_averaged": PGD(3, estimator=Averaged(4)),
    "mim_diverse": MIM(4, restarts=2, diversity=InputDiversity()),
    "apgd": APGD(6, restarts=3, start="odi"),
    "apgd_nes": APGD(4, restarts=2, estimator=NES(2)),
    "apgd_t": TargetedAPGD(5, targets=20, first=2, restarts=2),
    "apgd_malt": TargetedAPGD(5, targets=3, ranking="malt", start="odi"),
    "fab": FAB(steps=4, restarts=2),
    "fab_t": FAB(steps=4, targets=2),
    "square": Square(queries=9, restarts=2),
    "sparse_rs": SparseRS(queries=9, restarts=2),
    "sigma_zero": SigmaZero(steps=7),
    "random_draws": RandomDraws(5),
    "parameter_search": ParameterSearch(7, restarts=2),
    "composite": Composite(2, rounds=3, schedule_steps=1, restarts=2),
    "grid": GridSearch(queries=30),
    "counted_grid": GridSearch((3, 2, 4)),
    "stadv": SmoothPGD(4, restarts=3),
    "route_pgd": RoutePGD(4, (0.0, 1.0, 10.0)),
    "expected_patch": ExpectedPatch(3, samples=2, locations=4),
    "patch": PatchSearch(3, locations=2, moves=4, restarts=2),
}


def threat_of(attack) -> Threat:
    return next(threat for threat in THREATS.values() if attack.needs.accept(threat))


@pytest.mark.parametrize("classes", [3, 10])
@pytest.mark.parametrize("name", list(EXACT))
def test_the_announced_passes_are_those_that_are_counted(name: str, classes: int) -> None:
    attack = EXACT[name]
    threat = threat_of(attack)
    assert attack_cost(attack, threat, classes, SIZE) == passes_of(attack, threat, classes)


@pytest.mark.parametrize(
    "attack", [CarliniWagner(20, 3), EAD(20, 3), JSMA(targets=2)], ids=["cw_l2", "ead", "jsma"]
)
def test_attacks_that_stop_sooner_cost_at_most_the_announced_passes(attack) -> None:
    threat = ThreatModel("l1", 3.0) if isinstance(attack, EAD) else threat_of(attack)
    announced, counted = attack_cost(attack, threat, 10, SIZE), passes_of(attack, threat, 10)
    assert announced[0] >= counted[0] > 0
    assert announced[1] >= counted[1] > 0


def test_every_kind_of_attack_has_a_formula() -> None:
    assert {type(kind()) for kind in ATTACK_KINDS.values()} == set(COSTS)


def test_the_passes_of_hopskipjump_are_those_of_its_page() -> None:
    assert attack_cost(HopSkipJump(), ThreatModel("linf", "8/255")) == (35_853, 0)
    assert 25_000 < attack_cost(Boundary(), ThreatModel("l2", 0.5))[0] < 30_000


def test_a_transfer_costs_its_surrogates_twice_and_the_victim_three_times() -> None:
    threat, net = THREATS["linf"], _Unbreakable(10)
    attack = Transfer(PGD(5), (net, net))
    assert attack_cost(attack, threat, 10, SIZE) == (3 + 4 * 7, 4 * 5)
    assert attack_cost(attack, threat, 10, SIZE) >= passes_of(attack, threat, 10)


def test_an_attack_of_ones_own_is_counted_by_a_trial() -> None:
    class Own:
        needs, minimum_norm = PGD.needs, False

        def __call__(self, model, x, y, *, threat, generator):
            return PGD(3)(model, x, y, threat=threat, generator=generator)

    assert attack_cost(Own(), THREATS["linf"], 10, SIZE) == attack_cost(PGD(3), THREATS["linf"])


def test_a_suite_announces_the_passes_of_the_images_that_its_plans_select() -> None:
    cost = announced_cost(suite_named("standard", "linf"), THREATS["linf"], 1000, 10)
    assert cost.images["screen"] == 1000
    assert cost.images["far_targets"] == 500
    assert cost.images["long_runs"] == 100
    assert cost.images["sentinel"] == 200
    assert cost.images["fab_t"] == 0, "it runs on suspicion only"
    assert cost.total == 1000 + sum(cost.images[name] * sum(cost.stages[name]) for name in cost.stages)
    assert cost.per_image == cost.total / 1000
    assert cost.seconds(0.002) == pytest.approx(cost.total * 0.001)
    theirs = announced_cost(suite_named("aa_standard", "linf"), THREATS["linf"], 10, 10)
    assert theirs.total == pytest.approx(10 * autoattack_passes(10), rel=0.001)
    few = announced_cost(suite_named("standard", "linf"), THREATS["linf"], 3, 10)
    assert few.images["long_runs"] == 3
