"""Learning from frozen teachers: published values, gradients, identities; teachers stay as they are."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from training_tools import Constant, Given, double, final, make_job, make_step, mlp, run, same, small_net

from robustly.cli.recipes import read_recipe, recipe_names
from robustly.data import Splits
from robustly.experiments.configuration import build_config
from robustly.settings import SettingsError
from robustly.training import (
    AdaadInner,
    AdaadLoss,
    ArdLoss,
    CleanLoss,
    GuideLabels,
    Iad2Loss,
    IadLoss,
    KdLoss,
    Method,
    MethodError,
    Moment,
    OuterLoss,
    PGDInner,
    RsladLoss,
    Step,
)
from robustly.training.engine.job import check_networks
from robustly.training.labels.data import SmoothedLabels
from robustly.training.losses.introspective import teacher_confidence
from robustly.training.losses.terms import tempered_kl
from robustly.training.method import outer_loss
from robustly.training.parts import Terms

Z, Z_ADV = (2.0, 0.0, 0.0), (0.0, 1.0, 0.0)
CE = PGDInner(steps=3)
LATE = Moment(100, 0, 1, 200)
STRAIGHT = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def fixture_step(teacher: nn.Module, standard_teacher: nn.Module | None = None, **changes: object) -> Step:
    """One example whose images are its logits: z clean, z' adversarial, y = 0."""
    teachers = {"teacher": teacher} | ({} if standard_teacher is None else {"standard_teacher": standard_teacher})
    inner = changes.pop("inner", Given(double(Z_ADV)))
    x = changes.pop("x", double(Z))
    return make_step(x, torch.tensor([0]), nn.Identity(), inner=inner, teachers=teachers, **changes)  # type: ignore[arg-type]


def values(terms: Terms) -> dict[str, float]:
    return {name: float(term.detach().mean()) for name, term in terms.items()}


# published values


def test_rslad_has_the_published_value() -> None:
    step = fixture_step(Constant(1, 0, -1))
    assert math.fsum(values(RsladLoss()(step)).values()) == pytest.approx(0.40804510, abs=1e-8)
    mean = math.fsum(values(RsladLoss(element_mean=True, scale=10.0)(step)).values())
    assert mean == pytest.approx(0.40804510 * 10 / 3, abs=1e-7)


def test_a_tempered_divergence_has_the_published_value() -> None:
    assert float(tempered_kl(double(Z), double(Z_ADV), 2.0)) == pytest.approx(0.85231265, abs=1e-8)
    assert float(tempered_kl(double(Z), double(Z_ADV))) == pytest.approx(0.77936505, abs=1e-8)


def test_trust_has_the_published_value() -> None:
    teacher = Constant(math.log(0.3), math.log(0.7), -math.inf)
    assert teacher_confidence(fixture_step(teacher), 0.1).tolist() == pytest.approx([0.88656815], abs=1e-8)


# loss and gradients against versions written down from the formulas, in double precision


def nll(z: Tensor, y: Tensor) -> Tensor:
    return -z.softmax(1).log()[range(len(y)), y]


def soft(target: Tensor, z: Tensor, t: float = 1.0) -> Tensor:
    return -((target / t).softmax(1) * (z / t).softmax(1).log()).sum(1)


def gap(target: Tensor, z: Tensor, t: float = 1.0) -> Tensor:
    p, q = (target / t).softmax(1), (z / t).softmax(1)
    return t * t * (p * (p / q).log()).sum(1)


def correct(t_adv: Tensor, y: Tensor) -> Tensor:
    return t_adv.softmax(1)[range(len(y)), y] ** 0.1


def straight_ard(z: Tensor, z_adv: Tensor, t: Tensor, t_adv: Tensor, s_adv: Tensor, y: Tensor) -> Tensor:
    return (0.9 * gap(t, z_adv, 30.0) + 0.1 * nll(z, y)).mean()


def straight_ard_as_released(
    z: Tensor, z_adv: Tensor, t: Tensor, t_adv: Tensor, s_adv: Tensor, y: Tensor
) -> Tensor:
    mean = F.kl_div((z_adv / 5).log_softmax(1), (t / 5).softmax(1), reduction="none").mean()
    return 0.9 * 25 * mean + (1 - 0.9) * F.cross_entropy(z, y)


def straight_rslad(z: Tensor, z_adv: Tensor, t: Tensor, t_adv: Tensor, s_adv: Tensor, y: Tensor) -> Tensor:
    return (5 * gap(t, z_adv) + gap(t, z)).mean() / 6


def straight_iad(z: Tensor, z_adv: Tensor, t: Tensor, t_adv: Tensor, s_adv: Tensor, y: Tensor) -> Tensor:
    own = (1 - correct(t_adv, y)) * gap(z, z_adv)
    return (0.8 * gap(t, z_adv, 2.0) + 0.8 * own + 0.2 * nll(z, y)).mean()


def straight_iad_weighted(z: Tensor, z_adv: Tensor, t: Tensor, t_adv: Tensor, s_adv: Tensor, y: Tensor) -> Tensor:
    trust = correct(t_adv, y)
    return (trust * gap(t_adv, z_adv) + (1 - trust) * gap(z, z_adv)).mean()


def straight_iad2(z: Tensor, z_adv: Tensor, t: Tensor, t_adv: Tensor, s_adv: Tensor, y: Tensor) -> Tensor:
    trust = correct(t_adv, y)
    # the model's own term has no temperature of its own, only the factor T^2, as in the released code
    pair = trust * gap(t_adv, z_adv, 3.0) + (1 - trust) * 9 * gap(z, z_adv)
    return (0.25 * nll(z_adv, y) + 0.5 * pair + 0.25 * gap(s_adv, z_adv, 3.0)).mean()


def straight_iad2_early(z: Tensor, z_adv: Tensor, t: Tensor, t_adv: Tensor, s_adv: Tensor, y: Tensor) -> Tensor:
    return (0.25 * nll(z_adv, y) + 0.5 * gap(t_adv, z_adv) + 0.25 * gap(s_adv, z_adv)).mean()


def straight_adaad(z: Tensor, z_adv: Tensor, t: Tensor, t_adv: Tensor, s_adv: Tensor, y: Tensor) -> Tensor:
    return (0.7 * gap(t_adv, z_adv) + 0.3 * gap(t, z)).mean()


def straight_kd(z: Tensor, z_adv: Tensor, t: Tensor, t_adv: Tensor, s_adv: Tensor, y: Tensor) -> Tensor:
    return (0.3 * nll(z_adv, y) + 0.1 * 4 * soft(s_adv, z_adv, 2.0) + 0.6 * 4 * soft(t_adv, z_adv, 2.0)).mean()


@pytest.mark.parametrize(
    ("loss", "straight", "moment"),
    [
        (ArdLoss(0.9), straight_ard, LATE),
        (ArdLoss(0.9, 5.0, element_mean=True), straight_ard_as_released, LATE),
        (RsladLoss(), straight_rslad, LATE),
        (IadLoss(0.8, temperature=2.0), straight_iad, LATE),
        (IadLoss(0.9, temperature=30.0), straight_ard, Moment(59, 0, 1, 200)),
        (IadLoss(teacher_term_weighted=True, teacher_on="adversarial"), straight_iad_weighted, LATE),
        (Iad2Loss(temperature=3.0), straight_iad2, LATE),
        (Iad2Loss(), straight_iad2_early, Moment(39, 0, 1, 200)),
        (AdaadLoss(0.7), straight_adaad, LATE),
        (KdLoss(), straight_kd, LATE),
    ],
)
@pytest.mark.parametrize("inner", [CE, AdaadInner(steps=2), PGDInner(objective="kl", reference="teacher", steps=2)])
def test_loss_and_gradients_are_those_of_the_formula(
    loss: OuterLoss, straight: STRAIGHT, moment: Moment, inner: PGDInner
) -> None:
    x = torch.rand(9, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.arange(9) % 4
    model, teacher, standard_teacher = mlp(0), frozen(mlp(1)), frozen(mlp(2))
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    step = make_step(
        x, y, model, inner=inner, moment=moment, teachers={"teacher": teacher, "standard_teacher": standard_teacher}
    )
    value, terms = outer_loss(Method(inner=inner, loss=loss), step)
    value.backward()
    again, x_adv = mlp(0), step.adversarial.x_adv
    with torch.no_grad():
        t, t_adv, s_adv = frozen(mlp(1))(x), frozen(mlp(1))(x_adv), frozen(mlp(2))(x_adv)
    expected = straight(again(x), again(x_adv), t, t_adv, s_adv, y)
    expected.backward()
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-11)
    assert math.fsum(float(term) for term in terms.values()) == pytest.approx(float(value.detach()), rel=1e-11)
    for one, two in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.allclose(one.grad, two.grad, rtol=1e-9, atol=1e-13)
    for network in (teacher, standard_teacher):
        assert all(parameter.grad is None for parameter in network.parameters())
    assert same(teacher.state_dict(), before)  # batch statistics included
    assert not teacher.training


def frozen(network: nn.Module) -> nn.Module:
    return network.requires_grad_(False).eval()


# identities


@pytest.mark.parametrize(
    "loss", [RsladLoss(), AdaadLoss(0.5), ArdLoss(), IadLoss(begin=0), IadLoss(teacher_on="clean")]
)
def test_nothing_is_to_learn_from_oneself_at_the_clean_image(loss: OuterLoss) -> None:
    x = double((0.3, 0.5, 0.2)).requires_grad_()
    step = fixture_step(nn.Identity(), x=x, inner=Given(x))
    total = sum(term.sum() for term in loss(step).values())
    total.backward()  # type: ignore[union-attr]
    assert float(total.detach()) == pytest.approx(0, abs=1e-15)  # type: ignore[union-attr]
    assert torch.allclose(x.grad, torch.zeros_like(x), atol=1e-15)


def test_ard_without_a_share_is_standard_training() -> None:
    step = fixture_step(Constant(1, 0, -1))
    assert values(ArdLoss(0.0)(step)) == values(CleanLoss()(step))
    assert step.quantities.computed("adversarial") is None
    step = fixture_step(Constant(1, 0, -1))
    ArdLoss(1.0)(step)
    assert step.quantities.computed("clean") is None


@given(st.lists(st.floats(-3, 3), min_size=5, max_size=5), st.lists(st.floats(-3, 3), min_size=5, max_size=5))
@settings(deadline=None)
def test_at_high_temperature_ard_compares_centred_logits(z: list[float], other: list[float]) -> None:
    one, two = double(tuple(z)), double(tuple(other))
    d = one - two
    limit = ((d - d.mean()) ** 2).sum() / (2 * 5)
    assert float(tempered_kl(one, two, 1e4)) == pytest.approx(float(limit), rel=5e-3, abs=1e-4)


@given(st.floats(0.5, 20), st.floats(-10, 10))
@settings(deadline=None)
def test_a_constant_on_logits_changes_nothing(temperature: float, shift: float) -> None:
    before = tempered_kl(double(Z), double(Z_ADV), temperature)
    after = tempered_kl(double(Z) + shift, double(Z_ADV) - shift, temperature)
    assert torch.allclose(before, after, atol=1e-10)


def test_iad_begins_self_distillation_at_its_epoch() -> None:
    early = fixture_step(Constant(1, 0, -1), moment=Moment(59, 9, 10, 200))
    late = fixture_step(Constant(1, 0, -1), moment=Moment(60, 0, 10, 200))
    assert list(IadLoss()(early)) == ["adversarial"]
    assert list(IadLoss()(late)) == ["consistency", "adversarial"]
    assert values(IadLoss()(early)) == values(ArdLoss(temperature=1.0)(early))


@pytest.mark.parametrize("loss", [IadLoss(begin=12), Iad2Loss(begin=12)])
def test_self_distillation_that_would_begin_too_late_is_refused(loss: OuterLoss) -> None:
    method = Method(inner=CE, loss=loss)
    method.check_epochs(13)
    with pytest.raises(MethodError, match=r"begin is 12\b.* run has 12\b"):
        method.check_epochs(12)


def test_a_teacher_that_is_certain_of_the_label_leaves_no_self_distillation() -> None:
    certain = fixture_step(Constant(1000.0, 0.0, 0.0), Constant(0, 0, 0), moment=LATE)
    assert values(IadLoss()(certain))["consistency"] == 0
    assert values(Iad2Loss()(certain))["consistency"] == 0
    doubted = fixture_step(Constant(-2000.0, 0.0, 0.0), moment=LATE)
    assert values(IadLoss(power=10.0)(doubted))["consistency"] == pytest.approx(0.77936505, abs=1e-8)


def test_the_model_learns_to_reach_itself_on_both_sides() -> None:
    z, z_adv = double(Z).requires_grad_(), double(Z_ADV).requires_grad_()
    step = fixture_step(Constant(math.log(0.3), math.log(0.7), -50), x=z, inner=Given(z_adv), moment=LATE)
    IadLoss()(step)["consistency"].sum().backward()
    doubt = 1 - 0.3**0.1
    assert torch.allclose(z.grad, doubt * double((0.41909753, -0.26280225, -0.15629528)), atol=1e-7)
    assert torch.allclose(z_adv.grad, doubt * double((-0.57504448, 0.46960991, 0.10543458)), atol=1e-7)


# whole runs


@pytest.mark.parametrize(
    ("loss", "inner"),
    [(AdaadLoss(0.5), AdaadInner(steps=2)), (IadLoss(begin=1), CE), (Iad2Loss(begin=1), CE), (KdLoss(), CE)],
)
@pytest.mark.slow
def test_a_run_teaches_the_model_and_leaves_its_teachers_alone(
    loss: OuterLoss, inner: PGDInner, little: Splits, tmp_path: Path
) -> None:
    method = Method(inner=inner, loss=loss)
    teachers = {role: small_net(seed=seed) for seed, role in enumerate(method.networks, 1)}
    before = {role: {k: v.clone() for k, v in net.state_dict().items()} for role, net in teachers.items()}
    job = make_job(little, method, teachers=teachers)
    outcome = run(job, tmp_path / "run")
    assert outcome.epochs == 2
    for role, network in teachers.items():
        assert same(dict(network.state_dict()), before[role])
        assert all(parameter.grad is None for parameter in network.parameters())
    assert not same(final(tmp_path / "run"), dict(small_net().state_dict()))


def test_a_run_of_ard_without_a_share_is_standard_training(little: Splits, tmp_path: Path) -> None:
    one = {"training": {"epochs": 1}}
    run(make_job(little, Method(), **one), tmp_path / "standard")
    method = Method(inner=PGDInner(steps=1), loss=ArdLoss(0.0))
    run(make_job(little, method, teachers={"teacher": small_net(seed=1)}, **one), tmp_path / "ard")
    assert same(final(tmp_path / "standard"), final(tmp_path / "ard"))


# what is refused


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: ArdLoss(1.1), r"alpha must lie in \[0, 1\], got 1.1"),
        (lambda: ArdLoss(temperature=0.0), "temperature must be positive, got 0.0"),
        (lambda: RsladLoss(-0.1), r"ratio must lie in \[0, 1\], got -0.1"),
        (lambda: RsladLoss(scale=0.0), "scale must be positive"),
        (lambda: IadLoss(power=-1.0), "power must be at least 0"),
        (lambda: IadLoss(begin=-1), "begin must be at least 0"),
        (lambda: Iad2Loss(robust=0.8, clean=0.3), r"robust \+ clean must lie in \[0, 1\], got 1.1"),
        (lambda: AdaadLoss(2.0), r"alpha must lie in \[0, 1\], got 2.0"),
        (lambda: KdLoss(clean=-0.1), "clean must be at least 0, got -0.1"),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        make()


@pytest.mark.parametrize(
    ("loss", "inner", "roles"),
    [
        (ArdLoss(), CE, ("teacher",)),
        (RsladLoss(), CE, ("teacher",)),
        (IadLoss(), CE, ("teacher",)),
        (AdaadLoss(), CE, ("teacher",)),
        (CleanLoss(), None, ()),
        (Iad2Loss(), CE, ("teacher", "standard_teacher")),
        (KdLoss(), CE, ("teacher", "standard_teacher")),
        (IadLoss(), AdaadInner(), ("teacher",)),
    ],
)
def test_missing_teachers_are_named(loss: OuterLoss, inner: PGDInner | None, roles: tuple[str, ...]) -> None:
    method = Method(inner=inner, loss=loss)
    assert sorted(method.networks) == sorted(roles)
    check_networks(method, dict.fromkeys(roles, True))
    for role in roles:
        with pytest.raises(MethodError, match=f"the run has none: set the key '{role}'"):
            check_networks(method, {other: True for other in roles if other != role})


@pytest.mark.parametrize("loss", [RsladLoss(), AdaadLoss()])
@pytest.mark.parametrize("labels", [GuideLabels(), SmoothedLabels()])
def test_labels_that_nothing_would_use_are_refused(loss: OuterLoss, labels: GuideLabels) -> None:
    with pytest.raises(MethodError, match="does not use labels"):
        Method(labels=labels, inner=CE, loss=loss)


TAUGHT = [name for name in recipe_names() if "teacher" in read_recipe(name)]


@pytest.mark.parametrize("name", TAUGHT)
def test_recipes_with_a_teacher_need_its_weights(name: str) -> None:
    recipe = read_recipe(name)
    with pytest.raises(SettingsError, match=r"set teacher\.weights"):
        build_config(recipe)
    roles = [role for role in ("teacher", "standard_teacher") if role in recipe]
    ready = recipe | {role: recipe[role] | {"weights": "FILE"} for role in roles}  # type: ignore[operator]
    check_networks(build_config(ready).method, dict.fromkeys(roles, True))


def test_every_way_of_distillation_has_a_recipe() -> None:
    methods = {"ard", "rslad", "iad", "adaad", "kd_swa"}
    assert {f"{data}/{method}" for data in ("mnist5k", "cifar10") for method in methods} <= set(TAUGHT)
