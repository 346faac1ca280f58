"""Other libraries' calls give what their callers expect."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustly.attacks import PGD, AttackError
from robustly.compat import autoattack, foolbox, torchattacks
from robustly.compat.autoattack_state import EvaluationState
from robustly.compat.robustbench import benchmark
from robustly.models.layers import Normalize
from robustly.randomness import KeyedGenerator, derive_seed
from robustly.testing import small_network
from robustly.threats.lp import ThreatModel

SHAPE, COUNT, EPSILON = (3, 6, 6), 24, 0.04


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return small_network(SHAPE, classes=5, seed=1).eval()


@pytest.fixture(scope="module")
def batch(net: nn.Module) -> tuple[Tensor, Tensor]:
    x = KeyedGenerator(2, torch.arange(COUNT)).uniform(*SHAPE) * 0.8 + 0.1
    y = net(x).argmax(1)
    y[0] = (y[0] + 1) % 5
    return x, y


Make = Callable[[nn.Module], torchattacks.PortedAttack]
WITHIN: dict[str, tuple[Make, str, float]] = {
    "FGSM": (lambda net: torchattacks.FGSM(net, eps=EPSILON), "linf", EPSILON),
    "FFGSM": (lambda net: torchattacks.FFGSM(net, eps=EPSILON, alpha=0.05), "linf", EPSILON),
    "BIM": (lambda net: torchattacks.BIM(net, eps=EPSILON, alpha=0.01, steps=4), "linf", EPSILON),
    "PGD": (lambda net: torchattacks.PGD(net, eps=EPSILON, alpha=0.01, steps=4), "linf", EPSILON),
    "PGDL2": (lambda net: torchattacks.PGDL2(net, eps=0.3, alpha=0.1, steps=4), "l2", 0.3),
    "MIFGSM": (lambda net: torchattacks.MIFGSM(net, eps=EPSILON, alpha=0.01, steps=4), "linf", EPSILON),
    "DIFGSM": (lambda net: torchattacks.DIFGSM(net, eps=EPSILON, alpha=0.01, steps=4), "linf", EPSILON),
    "APGD": (lambda net: torchattacks.APGD(net, eps=EPSILON, steps=5), "linf", EPSILON),
    "APGD-DLR": (lambda net: torchattacks.APGD(net, norm="L2", eps=0.3, steps=5, loss="dlr"), "l2", 0.3),
    "APGDT": (lambda net: torchattacks.APGDT(net, eps=EPSILON, steps=5, n_classes=5), "linf", EPSILON),
    "FAB": (lambda net: torchattacks.FAB(net, eps=EPSILON, steps=5, n_classes=5), "linf", EPSILON),
    "FAB-T": (lambda net: torchattacks.FAB(net, norm="L2", eps=0.3, multi_targeted=True), "l2", 0.3),
    "Square": (lambda net: torchattacks.Square(net, eps=EPSILON, n_queries=30), "linf", EPSILON),
}


@pytest.mark.parametrize("name", WITHIN)
def test_torchattacks_calls_stay_in_the_ball_and_break_something(
    name: str, net: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    make, norm, epsilon = WITHIN[name]
    x, y = batch
    net.train()
    adv = make(net)(x, y)
    assert net.training
    net.eval()
    assert ThreatModel(norm, epsilon).contains(adv, x).all()
    assert int((net(adv).argmax(1) != y).sum()) > 1
    assert not adv.requires_grad


def test_pgd_by_its_torchattacks_name_is_the_last_iterate_of_ours(
    net: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    adv = torchattacks.PGD(net, eps=EPSILON, alpha=0.01, steps=3, random_start=False)(x, y)
    keyed = KeyedGenerator(0, torch.arange(COUNT))
    ours = PGD(3, step_size=0.01, start="none", keep="last")(
        net, x, y, threat=ThreatModel("linf", EPSILON), generator=keyed
    )
    assert torch.equal(adv, ours.x_adv)


def test_calls_differ_and_repeat_with_the_object(net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    first, again = (torchattacks.PGD(net, eps=EPSILON, steps=1) for _ in range(2))
    state = torch.get_rng_state()
    one, two = first(*batch), first(*batch)
    assert not torch.equal(one, two)
    assert torch.equal(again(*batch), one)
    assert torch.equal(again(*batch), two)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "make",
    [
        torchattacks.DeepFool,
        lambda net: torchattacks.CW(net, c=10, steps=50),
        lambda net: torchattacks.EADL1(net, max_iterations=30),
        lambda net: torchattacks.JSMA(net, gamma=0.5),
    ],
    ids=["DeepFool", "CW", "EADL1", "JSMA"],
)
def test_minimum_norm_attacks_go_as_far_as_they_need(
    make: Make, net: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    adv = make(net)(x, y)
    wrong = net(adv).argmax(1) != y
    assert wrong.double().mean() > 0.9
    assert torch.equal(adv[0], x[0])  # wrong from the outset
    assert (adv >= 0).all()
    assert (adv <= 1).all()


def test_targets_by_label_need_no_true_labels(net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, _ = batch
    target = (net(x).argmax(1) + 1) % 5
    target[3] = net(x[3:4]).argmax(1)[0]  # there already
    atk = torchattacks.PGD(net, eps=0.5, alpha=0.05, steps=20)
    atk.set_mode_targeted_by_label(quiet=True)
    reached = net(atk(x, target)).argmax(1) == target
    assert reached.double().mean() > 0.8
    atk.set_mode_default()
    assert (net(atk(x, net(x).argmax(1))).argmax(1) != net(x).argmax(1)).double().mean() > 0.8


def test_other_ways_to_name_targets(net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch[0][1:], batch[1][1:]
    atk = torchattacks.PGD(net, eps=0.5, alpha=0.05, steps=20)
    atk.set_mode_targeted_by_function(lambda images, labels: (labels + 2) % 5, quiet=True)
    assert (net(atk(x, y)).argmax(1) == (y + 2) % 5).double().mean() > 0.6
    atk.set_mode_targeted_least_likely(quiet=True)
    goal = atk._goal(net, x, y)
    assert goal.target is not None
    assert torch.equal(goal.target, net(x).argmin(1))  # the label has the largest logit
    atk.set_mode_targeted_random(quiet=True)
    drawn = atk._goal(net, x, y).target
    assert drawn is not None
    assert (drawn != y).all()
    assert len(set(((drawn - y) % 5).tolist())) > 2
    with pytest.raises(ValueError, match="not supported"):
        torchattacks.DeepFool(net).set_mode_targeted_by_label()


def test_normalised_images_come_back_normalised(net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    mean, std = [0.2, 0.4, 0.5], [0.5, 0.25, 0.3]
    normalize = Normalize(mean, std)
    plain = torchattacks.PGD(nn.Sequential(normalize, net), eps=EPSILON, steps=4)
    other = torchattacks.PGD(net, eps=EPSILON, steps=4)
    other.set_normalization_used(mean, std)
    assert torch.allclose(other(normalize(x), y), normalize(plain(x, y)), atol=1e-4)


def test_foolbox_lists_follow_the_epsilons(net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    fmodel = foolbox.PyTorchModel(net, bounds=(0, 1))
    epsilons = [0.0, 0.02, 0.04, 0.3]
    raw, clipped, is_adv = foolbox.attacks.LinfPGD(steps=5)(fmodel, x, y, epsilons=epsilons)
    assert len(raw) == len(clipped) == 4
    assert is_adv.shape == (4, COUNT)
    for epsilon, images, fooled in zip(epsilons, clipped, is_adv, strict=True):
        assert ThreatModel("linf", epsilon).contains(images, x).all()
        assert torch.equal(net(images).argmax(1) != y, fooled)
    rates = is_adv.double().mean(1).tolist()
    assert rates[0] == pytest.approx(1 / COUNT)
    assert rates[0] < rates[2] < rates[3]
    one, same, fooled = foolbox.attacks.LinfPGD(steps=5)(net, x, foolbox.Misclassification(y), epsilons=0.04)
    assert torch.equal(one, raw[2])
    assert torch.equal(same, clipped[2])
    assert torch.equal(fooled, is_adv[2])


@pytest.mark.parametrize(
    ("attack", "norm"),
    [
        (foolbox.attacks.L2DeepFoolAttack(), "l2"),
        (foolbox.attacks.LinfDeepFoolAttack(), "linf"),
        (foolbox.attacks.DDNAttack(steps=30), "l2"),
        (foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=5, steps=30), "l2"),
        (foolbox.attacks.EADAttack(steps=30), "l1"),
        (foolbox.attacks.L1FMNAttack(steps=30), "l1"),
        (foolbox.attacks.L0FMNAttack(steps=30), "l0"),
        (foolbox.attacks.HopSkipJumpAttack(steps=2, max_gradient_eval_steps=50), "l2"),
        (foolbox.attacks.BoundaryAttack(steps=50), "l2"),
    ],
    ids=lambda value: type(value.attack).__name__ if hasattr(value, "attack") else value,
)
def test_foolbox_minimisation_is_clipped_to_each_epsilon(
    attack: foolbox.attacks.PortedAttack, norm: str, net: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    radius = 2.0 if norm in ("l0", "l1") else 0.2
    raw, clipped, is_adv = attack(foolbox.PyTorchModel(net, (0, 1)), x, y, epsilons=[None, radius])
    assert torch.equal(raw[0], raw[1])
    assert torch.equal(raw[0], clipped[0])
    assert is_adv[0].double().mean() > 0.9
    threat = ThreatModel(norm, radius)
    assert threat.contains(clipped[1], x).all()
    near = threat.distance(raw[1], x) <= radius
    assert is_adv[1][near & is_adv[0]].all()
    assert torch.equal(net(clipped[1]).argmax(1) != y, is_adv[1])


def test_foolbox_bounds_and_preprocessing(net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    grey = {"mean": [-255.0] * 3, "std": [510.0] * 3, "axis": -3}

    class Doubled(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = net(images * 2 - 1)
            return logits

    fmodel = foolbox.PyTorchModel(Doubled(), bounds=(0, 255), preprocessing=grey)
    assert foolbox.accuracy(fmodel, x * 255, y) == pytest.approx(1 - 1 / COUNT)
    start = {"random_start": False, "steps": 5}
    _, wide, fooled = foolbox.attacks.LinfPGD(**start)(fmodel, x * 255, y, epsilons=0.04 * 255)
    _, unit, expected = foolbox.attacks.LinfPGD(**start)(net, x, y, epsilons=0.04)
    assert torch.allclose(wide / 255, unit, atol=1e-4)
    assert torch.equal(fooled, expected)


def test_foolbox_targets_and_repeats(net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    target = (net(x).argmax(1) + 1) % 5
    criterion = foolbox.TargetedMisclassification(target)
    _, clipped, is_adv = foolbox.attacks.LinfPGD(steps=20)(net, x, criterion, epsilons=0.5)
    assert torch.equal(net(clipped).argmax(1) == target, is_adv)  # type: ignore[arg-type]
    assert is_adv.double().mean() > 0.6
    once = foolbox.attacks.LinfPGD(steps=1)
    _, _, single = once(net, x, y, epsilons=0.03)
    _, _, several = once.repeat(2).repeat(3)(net, x, y, epsilons=0.03)
    assert (several | ~single).all()
    assert int(several.sum()) >= int(single.sum())


def test_foolbox_refuses_what_it_cannot_do(net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    with pytest.raises(AttackError, match="must not be None"):
        foolbox.attacks.LinfPGD()(net, x, y, epsilons=[0.1, None])
    with pytest.raises(AttackError, match="Foolbox model"):
        foolbox.attacks.LinfPGD()(lambda images: images, x, y, epsilons=0.1)
    with pytest.raises(AttackError, match="criterion"):
        foolbox.attacks.LinfPGD()(net, x, "labels", epsilons=0.1)


def quick(net: nn.Module, **given: Any) -> autoattack.AutoAttack:
    """Few steps: the order and the book-keeping are what is tested."""
    adversary = autoattack.AutoAttack(
        net, "Linf", 0.02, verbose=False, version="custom", attacks_to_run=["apgd-ce", "square"], **given
    )
    adversary.attacks["apgd-ce"] = PGD(2)
    adversary.attacks["square"] = PGD(3, start="none")
    return adversary


def test_autoattack_returns_what_it_broke(net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    adv, labels = quick(net).run_standard_evaluation(x, y, return_labels=True)
    wrong = net(adv).argmax(1) != y
    assert torch.equal(labels, net(adv).argmax(1))
    assert torch.equal(adv[~wrong], x[~wrong])
    assert torch.equal(adv[0], x[0])
    assert 2 < int(wrong.sum()) < COUNT
    assert ThreatModel("linf", 0.02).contains(adv, x).all()
    small = quick(net).run_standard_evaluation(x, y, bs=5)
    assert torch.equal(net(small).argmax(1) != y, wrong)


def test_autoattack_runs_attacks_alone(net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    adversary = quick(net)
    found = adversary.run_standard_evaluation_individual(x, y)
    assert list(found) == ["apgd-ce", "square"]
    together = net(adversary.run_standard_evaluation(x, y)).argmax(1) != y
    apart = torch.stack([net(images).argmax(1) != y for images in found.values()])
    assert torch.equal(apart.any(0), together)
    assert adversary.attacks_to_run == ["apgd-ce", "square"]
    assert adversary.clean_accuracy(x, y) == pytest.approx(1 - 1 / COUNT)


def test_the_state_has_the_layout_of_the_package(
    net: nn.Module, batch: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    x, y = batch
    path = tmp_path / "state.json"
    adv = quick(net).run_standard_evaluation(x, y, state_path=path)
    content = json.loads(path.read_text())
    assert set(content) == {
        "_attacks_to_run", "path", "_run_attacks", "_robust_flags", "_last_saved", "_SAVE_TIMEOUT",
        "_clean_accuracy",
    }  # fmt: skip
    assert content["_run_attacks"] == ["apgd-ce", "square"]
    assert content["_robust_flags"] == (net(adv).argmax(1) == y).tolist()
    assert content["_clean_accuracy"] == pytest.approx(1 - 1 / COUNT)
    content["_attacks_to_run"] = "{'square', 'apgd-ce'}"  # as the package writes it
    path.write_text(json.dumps(content))
    state = EvaluationState.from_disk(path)
    assert state.attacks_to_run == {"apgd-ce", "square"}
    assert state.robust_accuracy == pytest.approx(float((net(adv).argmax(1) == y).double().mean()))


def test_an_evaluation_goes_on_from_its_state(net: nn.Module, batch: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    x, y = batch
    path, whole = tmp_path / "state.json", quick(net).evaluated(x, y)[0]

    def stop(*arguments: object, **settings: object) -> None:
        raise KeyboardInterrupt

    first = quick(net)
    first.attacks["square"] = stop  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        first.run_standard_evaluation(x, y, state_path=path)
    assert EvaluationState.from_disk(path).run_attacks == {"apgd-ce"}
    second = quick(net)
    second.attacks["apgd-ce"] = stop  # type: ignore[assignment]
    state, _ = second.evaluated(x, y, state_path=path)
    assert torch.equal(state.robust_flags, whole.robust_flags)  # type: ignore[arg-type]
    other = quick(net)
    other.attacks_to_run = ["apgd-ce"]
    with pytest.raises(ValueError, match="other attacks"):
        other.run_standard_evaluation(x, y, state_path=path)
    with pytest.raises(ValueError, match="24 examples"):
        quick(net).run_standard_evaluation(x[:3], y[:3], state_path=path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="not a state"):
        quick(net).run_standard_evaluation(x, y, state_path=path)


def test_versions_have_the_package_s_attacks(net: nn.Module) -> None:
    def names(version: Any, norm: str = "Linf") -> list[str]:
        return autoattack.AutoAttack(net, norm, 0.02, version=version).attacks_to_run

    assert names("standard") == names("standard", "L1") == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert names("plus") == ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
    assert names("rand") == ["apgd-ce", "apgd-dlr"]
    custom = autoattack.AutoAttack(net, "L2", 0.5, version="custom", attacks_to_run=["fab"])
    assert set(custom.attacks) == set(names("plus"))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"norm": "l2"}, "Linf, L2, L1"),
        ({"version": "fast"}, "versions"),
        ({"attacks_to_run": ["fab"]}, "custom"),
        ({"eps": 8}, "8/255"),
    ],
)
def test_autoattack_refuses_what_makes_no_sense(net: nn.Module, given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        autoattack.AutoAttack(net, **given)


def test_unknown_attacks_are_named(net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match="got pgd"):
        autoattack.AutoAttack(net, version="custom", attacks_to_run=["pgd"]).run_standard_evaluation(*batch)


def test_what_is_said_goes_to_the_log(
    net: nn.Module, batch: tuple[Tensor, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adversary = quick(nn.Sequential(net, nn.Softmax(1)), log_path=tmp_path / "log.txt")
    adversary.verbose = True
    adversary.run_standard_evaluation(*batch)
    said = capsys.readouterr().out
    assert said == (tmp_path / "log.txt").read_text()
    for part in ("initial accuracy: 95.83%", "robust accuracy after APGD-CE", "return probabilities"):
        assert part in said


def test_the_whole_suite_runs_on_a_small_batch(net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch[0][:6], batch[1][:6]
    clean, robust = benchmark(net, 4, x=x, y=y, eps=0.5)
    assert clean == 0.75
    assert robust == 0.0
    adv = torchattacks.AutoAttack(net, eps=0.5)(x, y)
    assert (net(adv).argmax(1) != y).all()


def test_verdicts_are_those_of_an_evaluation(net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """The same random numbers for the same attack, example and seed."""
    x, y = batch
    adversary = quick(net, seed=3)
    found = adversary.attacks["apgd-ce"](
        net,
        x,
        y,
        threat=ThreatModel("linf", 0.02),
        generator=KeyedGenerator(derive_seed(3, "evaluation", "apgd_ce"), torch.arange(COUNT)),
    )
    adversary.attacks_to_run = ["apgd-ce"]
    adv = adversary.run_standard_evaluation(x, y, bs=7)
    assert torch.equal(net(adv).argmax(1) != y, found.broken)
