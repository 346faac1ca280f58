"""ALP, MART and LBGAT: published values, gradients against straight-line versions, what is (not) detached."""

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from training_tools import Constant, Given, double, final, make_job, make_step, mlp, run, same

from robustly.cli.recipes import read_recipe
from robustly.data import Splits
from robustly.experiments.configuration import build_config
from robustly.training import (
    AlpLoss,
    GuideLabels,
    LbgatLoss,
    MartLoss,
    Method,
    MethodError,
    MixtureLoss,
    OuterLoss,
    Part,
    PGDInner,
    Step,
    TradesLoss,
)
from robustly.training.engine.job import check_networks
from robustly.training.engine.optimisation import rate_factor
from robustly.training.labels.data import SmoothedLabels
from robustly.training.losses.terms import log_rest
from robustly.training.method import outer_loss
from robustly.training.parts import Terms

Z, Z_ADV = (2.0, 0.0, 0.0), (0.0, 1.0, 0.0)
KL = PGDInner(objective="kl", start="gaussian", steps=3)


def fixture_step(z: Tensor, z_adv: Tensor, y: Tensor | None = None, **changes: object) -> Step:
    """A step whose images are its logits."""
    labels = torch.zeros(len(z), dtype=torch.int64) if y is None else y
    return make_step(z, labels, nn.Identity(), inner=Given(z_adv), **changes)


def values(terms: Terms) -> dict[str, float]:
    return {name: float(term.detach().mean()) for name, term in terms.items()}


# published values


@pytest.mark.parametrize(
    ("loss", "adversarial", "total"),
    [
        (MartLoss(5.0, published_constants=True), 2.40950636, 3.23958492),
        (MartLoss(0.0, published_constants=True), 2.40950636, 2.40950636),
        (MartLoss(5.0), 2.40974225, 2.40974225 + 5 * 0.77936505 * (1 - 0.78698604)),
        (MartLoss(0.0), 2.40974225, 2.40974225),
    ],
)
def test_mart_has_the_published_values(loss: MartLoss, adversarial: float, total: float) -> None:
    terms = values(loss(fixture_step(double(Z), double(Z_ADV))))
    assert terms["adversarial"] == pytest.approx(adversarial, abs=2e-8)
    assert math.fsum(terms.values()) == pytest.approx(total, abs=5e-8)
    assert list(terms) == (["adversarial", "consistency"] if loss.beta else ["adversarial"])


@pytest.mark.parametrize("pairing", [0.0, 0.5, 2.0])
def test_alp_is_half_and_half_and_the_squared_distance(pairing: float) -> None:
    terms = values(AlpLoss(pairing)(fixture_step(double(Z), double(Z_ADV))))
    assert terms.get("pairing", 0.0) == pytest.approx(pairing * 5.0, abs=1e-12)
    assert terms["clean"] + terms["adversarial"] == pytest.approx(0.89549474, abs=1e-8)


def test_lbgat_has_the_published_values() -> None:
    terms = values(LbgatLoss(6.0)(fixture_step(double(Z), double(Z_ADV), guide=Constant(1, 1, 0))))
    guide = math.log(2 * math.e + 1) - 1
    assert terms == pytest.approx({"guide": guide, "consistency": 6 * 0.77936505, "mse": 1 / 3}, abs=5e-8)
    terms = values(LbgatLoss()(fixture_step(double(Z), double(Z_ADV), guide=Constant(*Z_ADV))))
    assert terms == pytest.approx({"guide": 1.55144471, "mse": 0.0}, abs=1e-8)  # z' = g: only the guide learns


# loss and gradients against versions written down from the formulas, in double precision


def nll(z: Tensor, y: Tensor) -> Tensor:
    return -z.softmax(1).log()[range(len(y)), y]


def divergence(z: Tensor, z_adv: Tensor) -> Tensor:
    p, q = z.softmax(1), z_adv.softmax(1)
    return (p * (p / q).log()).sum(1)


def straight_alp(z: Tensor, z_adv: Tensor, g: Tensor, y: Tensor) -> Tensor:
    return (nll(z, y) / 2 + nll(z_adv, y) / 2 + 0.7 * (z - z_adv).norm(dim=1) ** 2).mean()


def straight_mart(z: Tensor, z_adv: Tensor, g: Tensor, y: Tensor) -> Tensor:
    p, q = z.softmax(1), z_adv.softmax(1)
    rival = torch.stack([max(row[k] for k in range(len(row)) if k != c) for row, c in zip(q, y, strict=True)])
    doubt = 1 - p[range(len(y)), y]
    return (nll(z_adv, y) - (1 - rival).log() + 5 * divergence(z, z_adv) * doubt).mean()


def straight_mart_as_released(z: Tensor, z_adv: Tensor, g: Tensor, y: Tensor) -> Tensor:
    q = z_adv.softmax(1)
    top = torch.argsort(q, dim=1)[:, -2:]
    rival = torch.where(top[:, -1] == y, top[:, -2], top[:, -1])
    missed = F.nll_loss(torch.log(1.0001 - q + 1e-12), rival)
    p = z.softmax(1)
    sums = F.kl_div(torch.log(q + 1e-12), p, reduction="none").sum(1)
    correct = p.gather(1, y[:, None])[:, 0]
    return F.cross_entropy(z_adv, y) + missed + 5 / len(y) * (sums * (1.0000001 - correct)).sum()


def straight_lbgat(z: Tensor, z_adv: Tensor, g: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(g, y) + nn.MSELoss()(z_adv, g) + 6 * divergence(z, z_adv).mean()


def straight_lbgat0(z: Tensor, z_adv: Tensor, g: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(g, y) + nn.MSELoss()(z_adv, g)


@pytest.mark.parametrize(
    ("loss", "straight"),
    [
        (AlpLoss(0.7), straight_alp),
        (MartLoss(5.0), straight_mart),
        (MartLoss(5.0, published_constants=True), straight_mart_as_released),
        (LbgatLoss(6.0), straight_lbgat),
        (LbgatLoss(), straight_lbgat0),
    ],
)
@pytest.mark.parametrize("inner", [KL, PGDInner(steps=3)])
def test_loss_and_gradients_are_those_of_the_formula(loss: OuterLoss, straight: object, inner: PGDInner) -> None:
    x = torch.rand(9, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.arange(9) % 4
    model, guide = mlp(0), mlp(1)
    guided = isinstance(loss, LbgatLoss)
    step = make_step(x, y, model, inner=inner, guide=guide if guided else None)
    value, terms = outer_loss(Method(inner=inner, loss=loss), step)
    value.backward()
    again, other = mlp(0), mlp(1)
    expected = straight(again(x), again(step.adversarial.x_adv), other(x), y)  # type: ignore[operator]
    expected.backward()
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    assert math.fsum(float(term) for term in terms.values()) == pytest.approx(float(value.detach()), rel=1e-12)
    mine = [parameter.grad for network in (model, guide) for parameter in network.parameters()]
    theirs = [parameter.grad for network in (again, other) for parameter in network.parameters()]
    for one, two in zip(mine, theirs, strict=True):
        assert (one is None) == (two is None)
        assert one is None or torch.allclose(one, two, rtol=1e-9, atol=1e-14)


# identities


def test_alp_without_pairing_is_the_mixture() -> None:
    step = fixture_step(double(Z), double(Z_ADV))
    assert values(AlpLoss(0.0)(step)) == values(MixtureLoss()(step))


@settings(deadline=None)
@given(st.floats(-5, 5))
@pytest.mark.slow
def test_a_constant_on_the_clean_logits_changes_only_the_pairing_of_alp(shift: float) -> None:
    before = values(AlpLoss(1.0)(fixture_step(double(Z), double(Z_ADV))))
    after = values(AlpLoss(1.0)(fixture_step(double(Z) + shift, double(Z_ADV))))
    assert (after["clean"], after["adversarial"]) == pytest.approx((before["clean"], before["adversarial"]))
    assert after["pairing"] == pytest.approx(5 + 2 * shift * 1.0 + 3 * shift**2, abs=1e-9)


def test_a_run_of_alp_without_pairing_is_one_of_the_mixture(little: Splits, tmp_path: Path) -> None:
    for name, loss in (("alp", AlpLoss(0.0)), ("mixture", MixtureLoss())):
        method = Method(inner=PGDInner(steps=1), loss=loss)
        run(make_job(little, method, training={"epochs": 1}), tmp_path / name)
    assert same(final(tmp_path / "alp"), final(tmp_path / "mixture"))


LOGITS = st.lists(st.floats(-8, 8), min_size=4, max_size=4)


@settings(deadline=None)
@given(LOGITS, LOGITS, st.integers(0, 3), st.floats(-20, 20))
def test_mart_is_its_formula_without_constants(z: list[float], z_adv: list[float], y: int, shift: float) -> None:
    one, other, label = double(tuple(z)), double(tuple(z_adv)), torch.tensor([y])
    total = sum(values(MartLoss(5.0)(fixture_step(one, other, label))).values())
    assert total == pytest.approx(float(straight_mart(one, other, other, label)), rel=1e-9, abs=1e-9)
    moved = sum(values(MartLoss(5.0)(fixture_step(one + shift, other - shift, label))).values())
    assert moved == pytest.approx(total, rel=1e-9, abs=1e-9)


def test_mart_is_finite_however_sure_the_model_is() -> None:
    z_adv = torch.tensor([[200.0, 0.0, 0.0], [200.0, 0.0, 0.0]], requires_grad=True)
    z = torch.tensor([[0.0, 90.0, 0.0], [300.0, 0.0, 0.0]], requires_grad=True)
    terms = MartLoss()(fixture_step(z, z_adv, torch.tensor([1, 0])))
    assert terms["adversarial"][0].item() == pytest.approx(200 + 200 - math.log(2), rel=1e-6)
    total = sum(value.sum() for value in terms.values())
    total.backward()  # type: ignore[union-attr]
    assert all(bool(term.isfinite().all()) for term in (*terms.values(), z.grad, z_adv.grad))


def test_the_rest_of_the_probability_does_not_round_away() -> None:
    logits = torch.tensor([[40.0, 0.0, 0.0]])
    assert log_rest(logits, torch.tensor([0])).item() == pytest.approx(math.log(2) - 40, rel=1e-6)
    assert (1 - logits.softmax(1)[0, 0]).item() == 0  # what the plain form leaves


# what is detached, and what is not


def test_the_doubt_of_mart_learns_too() -> None:
    z, z_adv = double(Z).requires_grad_(), double(Z_ADV)
    MartLoss(1.0)(fixture_step(z, z_adv))["consistency"].sum().backward()
    p = double(Z).softmax(1)
    of_doubt = -p[0, 0] * (torch.tensor([1.0, 0.0, 0.0]).double() - p) * 0.77936505  # gradient of 1 - p_y, times KL
    of_kl = double((0.41909753, -0.26280225, -0.15629528)) * (1 - p[0, 0])
    assert torch.allclose(z.grad, of_doubt + of_kl, atol=1e-8)


@pytest.mark.parametrize("detach", [False, True])
def test_the_guide_of_lbgat_is_pulled_unless_it_is_detached(detach: bool) -> None:
    guide, z_adv = Constant(1, 1, 0), double(Z_ADV, (1.0, 0.0, 3.0)).requires_grad_()
    LbgatLoss(0.0, detach)(fixture_step(double(Z, Z), z_adv, guide=guide))["mse"].mean().backward()
    g = double((1, 1, 0))
    pull = -2 * (z_adv.detach() - g).sum(0) / 6
    if detach:
        assert guide.logits.grad is None
    else:
        assert torch.allclose(guide.logits.grad, pull)
    assert torch.allclose(z_adv.grad, 2 * (z_adv.detach() - g) / 6)


def test_without_a_price_the_clean_forward_pass_of_lbgat_is_left_out() -> None:
    step = fixture_step(double(Z), double(Z_ADV), guide=Constant(1, 1, 0))
    LbgatLoss(0.0)(step)
    assert step.quantities.computed("clean") is None


def test_a_second_evaluation_does_not_run_the_guide_again() -> None:
    guide = mlp(1)
    calls: list[int] = []
    guide.register_forward_hook(lambda *_: calls.append(1))
    x, y = torch.rand(9, 6, dtype=torch.float64), torch.arange(9) % 4
    step = make_step(x, y, mlp(0), inner=KL, guide=guide)
    step.compute(["guide"])  # as a method does before a part perturbs the weights
    sum(term.mean() for term in LbgatLoss(6.0)(step.again()).values()).backward()  # type: ignore[union-attr]
    LbgatLoss(6.0)(step)
    assert calls == [1]
    assert all(parameter.grad is None for parameter in guide.parameters())


@dataclass(frozen=True)
class Halves(Part):
    """Weights of 1/2 on one term."""

    term: str

    def __call__(self, step: Step) -> Tensor:
        return torch.full_like(step.y, 1).double() / 2


@pytest.mark.parametrize(("loss", "term"), [(LbgatLoss(), "mse"), (MartLoss(), "adversarial")])
def test_weights_may_sit_on_one_term(loss: OuterLoss, term: str) -> None:
    guide = Constant(1, 1, 0) if isinstance(loss, LbgatLoss) else None
    inner = Given(double(Z_ADV))
    plain = Method(inner=inner, loss=loss)
    weighted = Method(inner=inner, loss=loss, weights=Halves(term))
    _, before = outer_loss(plain, fixture_step(double(Z), double(Z_ADV), guide=guide))
    _, after = outer_loss(weighted, fixture_step(double(Z), double(Z_ADV), guide=guide))
    assert values(before) == pytest.approx(values(after | {term: 2 * after[term]}))


# what is refused


@pytest.mark.parametrize("make", [lambda: AlpLoss(-0.1), lambda: MartLoss(-1.0), lambda: LbgatLoss(float("nan"))])
def test_coefficients_out_of_range_are_refused(make: object) -> None:
    with pytest.raises(ValueError, match="at least 0"):
        make()  # type: ignore[operator]


def test_parts_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(MethodError, match="smoothed"):
        Method(labels=SmoothedLabels(0.1), inner=KL, loss=MartLoss())
    Method(labels=SmoothedLabels(0.0), inner=KL, loss=MartLoss())
    with pytest.raises(MethodError, match="trains its guide itself"):
        Method(labels=GuideLabels(), inner=KL, loss=LbgatLoss())
    with pytest.raises(MethodError, match="no inner"):
        Method(loss=AlpLoss())


def test_lbgat_needs_a_guide_and_the_others_do_not() -> None:
    with pytest.raises(MethodError, match="network 'guide'"):
        check_networks(Method(inner=KL, loss=LbgatLoss()), {})
    with pytest.raises(MethodError, match="does not use"):
        check_networks(Method(inner=KL, loss=MartLoss()), {"guide": False})
    assert Method(inner=KL, loss=TradesLoss()).networks == ()


@pytest.mark.parametrize(
    ("recipe", "rates"),
    [
        ("cifar10/mart", {0: 0.01, 73.9: 0.01, 74: 1e-3, 89: 1e-4, 99: 1e-5, 119.9: 1e-5}),
        ("cifar10/mart_wrn", {0: 0.1, 73.9: 0.1, 74: 0.01, 89: 1e-3}),
        ("cifar10/gairat", {58.9: 0.1, 59: 0.01, 89: 1e-3, 109: 5e-4}),
        ("cifar10/gairat_resnet18", {28.9: 0.1, 29: 0.01, 59: 1e-3, 99.9: 1e-3}),
        ("cifar10/pgd_at_wrn", {99.9: 0.1, 100: 0.01, 150: 1e-3}),
        ("cifar10/lbgat0", {0: 0.02, 1: 0.1, 75: 0.01, 90: 1e-3}),
        ("cifar100/lbgat6", {0: 0.02, 1: 0.1, 75: 0.01, 90: 1e-3}),
    ],
)
def test_recipes_have_the_published_learning_rates(recipe: str, rates: dict[float, float]) -> None:
    config = build_config(read_recipe(recipe))
    for time, expected in rates.items():
        found = config.optimizer.learning_rate * rate_factor(config.schedule, time, config.training.epochs)
        assert found == pytest.approx(expected, abs=1e-12), time
