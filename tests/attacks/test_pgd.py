"""PGD: its settings, its door, what it keeps, and what more steps, restarts and radius may never cost."""

import inspect
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from robustly.attacks import PGD, AttackError, AttackResult, dynat_pgd, fgsm, r_fgsm
from robustly.attacks.core.contract import prepare
from robustly.attacks.pgd import GAUSSIAN_START
from robustly.objectives import ClassificationGoal, cross_entropy, kl_divergence, margin
from robustly.randomness import KeyedGenerator
from robustly.threats.lp import NORMS, ThreatModel

LINF = ThreatModel("linf", 0.1)
COUNT = 24


def net(seed: int = 0, classes: int = 4) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 20, 16), nn.ReLU(),
            nn.Linear(16, classes),
        ).eval()  # fmt: skip


def batch(model: nn.Module, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images, most of which the model has right."""
    x = KeyedGenerator(seed, torch.arange(COUNT)).uniform(3, 4, 5)
    with torch.no_grad():
        y = model(x).argmax(1)
    y[::8] = (y[::8] + 1) % 4
    return x, y


def run(
    attack: PGD, model: nn.Module, threat: ThreatModel = LINF, seed: int = 0, y: ClassificationGoal | None = None
) -> AttackResult:
    x, labels = batch(model)
    return attack(model, x, y or labels, threat=threat, generator=KeyedGenerator(seed, torch.arange(COUNT)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": -1}, "at least 0"),
        ({"restarts": 0}, "at least 1"),
        ({"step_size": 0.0}, "step_size must be a positive number, got 0"),
        ({"step_size": -0.1}, "step_size must be a positive number"),
        ({"relative_step_size": float("nan")}, "relative_step_size must be a positive number, got nan"),
        ({"relative_step_size": float("inf")}, "relative_step_size must be a positive number, got inf"),
        ({"step_size": 0.1, "relative_step_size": 0.1}, "not both"),
    ],
)
def test_settings_out_of_range(settings: dict[str, float], message: str) -> None:
    with pytest.raises(AttackError, match=message):
        PGD(**settings)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, y: (2 * x, y), "robustly.wrap"),
        (lambda x, y: (x - 0.5, y), r"must lie in \[0, 1\]"),
        (lambda x, y: (x * torch.nan, y), r"must lie in \[0, 1\]"),
        (lambda x, y: (x, y + 4), "the model has classes 0..3"),
        (lambda x, y: (x, y - 5), "the model has classes 0..3"),
        (lambda x, y: (x, ClassificationGoal(y, target=y)), "targets must be other classes"),
        (
            lambda x, y: (x, ClassificationGoal(y, target=y + 4)),
            "target classes span .*, the model has classes 0..3",
        ),
    ],
)
def test_the_door(spoil, message: str) -> None:
    model = net()
    x, y = spoil(*batch(model))
    with pytest.raises(AttackError, match=message):
        PGD(2)(model, x, y, threat=LINF, generator=KeyedGenerator(0, torch.arange(COUNT)))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, y: ((255 * x).byte(), y, None), "divide uint8 by 255"),
        (lambda x, y: (x, y.int(), None), "int64 of shape .24,., got torch.int32"),
        (lambda x, y: (x, y[:-1], None), "int64 of shape .24,., got torch.int64 of .23,"),
        (lambda x, y: (x, y[:, None], None), "int64 of shape .24,., got torch.int64 of .24, 1"),
        (lambda x, y: (x, y, (y + 1)[:-1]), "target classes must be int64 of shape .24,., got torch.int64 of .23,"),
        (lambda x, y: (x, y, (y + 1).float()), "target classes must be int64 of shape .24,., got torch.float32"),
    ],
)
def test_the_door_for_wrong_types(spoil, message: str) -> None:
    """Past the shape checker of these tests, which would speak first."""
    x, y, target = spoil(*batch(net()))
    goal = object.__new__(ClassificationGoal)
    vars(goal).update(y=y, target=target, reference=None)
    with pytest.raises(AttackError, match=message):
        inspect.unwrap(prepare)(x, goal, LINF)


def test_every_image_needs_its_id() -> None:
    x, y = batch(net())
    with pytest.raises(AttackError, match="1 ids for 24 images"):
        PGD(2)(net(), x, y, threat=LINF, generator=KeyedGenerator(0, torch.arange(1)))


@pytest.mark.parametrize(
    "tail", [nn.Flatten(0), nn.Unflatten(1, (2, 2)), nn.Linear(4, 1)], ids=["flat", "3d", "one"]
)
def test_what_is_no_logits(tail: nn.Module) -> None:
    x, y = batch(net())
    with pytest.raises(AttackError, match="must return logits"):
        PGD(2)(nn.Sequential(net(), tail), x, y, threat=LINF, generator=KeyedGenerator(0, torch.arange(COUNT)))


def test_fgsm_is_one_step_of_pgd_written_out() -> None:
    model = net()
    x, y = batch(model)
    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(model(point), ClassificationGoal(y)).sum(), point)
    expected = (x + 0.1 * gradient.sign()).clamp(0, 1)
    single = run(PGD(1, step_size=0.1, start="none", keep="last"), model)
    assert torch.allclose(single.x_adv, expected)
    found = run(fgsm(), model)
    with torch.no_grad():
        correct = model(x).argmax(1) == y
        climbed = cross_entropy(model(expected), ClassificationGoal(y)) > cross_entropy(
            model(x), ClassificationGoal(y)
        )
    assert climbed[correct].any()
    assert torch.allclose(found.x_adv[correct & climbed], expected[correct & climbed])
    assert torch.equal(found.x_adv[~correct], x[~correct])


def test_r_fgsm_is_a_random_half_step_and_a_gradient_half_step() -> None:
    model = net()
    x, y = batch(model)
    halfway = run(PGD(0, start="halfway", keep="last"), model).x_adv
    assert ((halfway - x).abs() <= 0.05 + 1e-6).all()
    inner = (x > 0.05) & (x < 0.95)
    assert torch.allclose((halfway - x).abs()[inner], torch.tensor(0.05), atol=1e-6)
    point = halfway.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(model(point), ClassificationGoal(y)).sum(), point)
    end = run(replace(r_fgsm(), keep="last"), model).x_adv
    assert torch.allclose(end, (halfway + 0.05 * gradient.sign()).clamp(x - 0.1, x + 0.1).clamp(0, 1), atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_on_a_slope_without_end_pgd_ends_at_the_best_allowed_image(norm: str) -> None:
    """z = (-9, w x): the optimum is known in each norm; it breaks nothing, so that the search goes on."""
    weight = torch.tensor([3.0, -2.0, 1.0, 0.5])
    model = nn.Linear(4, 2)
    model.weight.data, model.bias.data = torch.stack([torch.zeros(4), weight]), torch.tensor([-9.0, 0.0])
    epsilon = 2.0 if norm == "l0" else 0.2
    x = torch.full((3, 4), 0.5)
    y = torch.tensor([0, 1, 1])  # already wrong, attacked, attacked
    # in l0 a random start may lie on the wrong pixels, which a search cannot leave in four dimensions
    found = PGD(120, margin, relative_step_size=0.05, start="none" if norm == "l0" else "random")(
        model, x, y, threat=ThreatModel(norm, epsilon), generator=KeyedGenerator(0, torch.arange(3))
    )
    best = {"linf": 0.2 * 6.5, "l2": 0.2 * float(weight.norm()), "l1": 0.2 * 3.0, "l0": 0.5 * 5.0}
    with torch.no_grad():
        reached = (model(x) - model(found.x_adv))[1:, 1]
    assert reached.tolist() == pytest.approx([best[norm]] * 2, rel=1e-3)


@pytest.mark.parametrize("norm", NORMS)
def test_more_steps_and_restarts_never_lose(norm: str) -> None:
    """With one seed and one step size, the longer search has seen every point of the shorter one."""
    model = net(3)
    y = batch(model)[1]
    threat = ThreatModel(norm, {"linf": 0.03, "l2": 0.15, "l1": 0.6, "l0": 1}[norm])
    step = {"linf": 0.01, "l2": 0.05, "l1": 0.2, "l0": 5.0}[norm]
    broken, value = torch.zeros(COUNT, dtype=torch.bool), torch.full((COUNT,), -torch.inf)
    shares = []
    for steps, restarts in ((0, 1), (1, 1), (3, 1), (10, 1), (10, 4)):
        found = run(PGD(steps, step_size=step, restarts=restarts), model, threat)
        with torch.no_grad():
            reached = cross_entropy(model(found.x_adv), ClassificationGoal(y))
        assert found.broken[broken].all()
        unbroken = ~found.broken
        assert (reached[unbroken] >= value[unbroken] - 1e-5).all()
        broken, value = found.broken, reached
        shares.append(float(broken.double().mean()))
    assert shares[0] < shares[-1]  # there was something to lose


def test_a_larger_radius_with_a_nested_start_never_loses() -> None:
    """While no iterate reaches the smaller ball's border, both searches see the same points."""
    model = net(3)
    attack = PGD(4, step_size=0.0199, start="none")
    small, large = (run(attack, model, ThreatModel("linf", epsilon)) for epsilon in (0.08, 0.2))
    assert torch.equal(small.x_adv, large.x_adv)
    assert small.broken.sum() > 3
    with torch.random.fork_rng():
        torch.manual_seed(0)
        linear = nn.Sequential(nn.Flatten(), nn.Linear(60, 2))
    x = KeyedGenerator(0, torch.arange(200)).uniform(3, 4, 5)
    with torch.no_grad():
        y = linear(x).argmax(1)
    before = torch.zeros(200, dtype=torch.bool)
    for epsilon in (0.0, 0.005, 0.01, 0.02, 0.04):
        found = dynat_pgd(10)(
            linear, x, y, threat=ThreatModel("linf", epsilon), generator=KeyedGenerator(0, torch.arange(200))
        )
        assert found.broken[before].all()
        before = found.broken
    assert before.any()


def test_the_active_set_changes_cost_and_no_verdict() -> None:
    model = net(3)
    threat = ThreatModel("linf", 0.05)
    settled, everything = (run(PGD(10, early_stop=stop), model, threat) for stop in (True, False))
    assert torch.equal(settled.broken, everything.broken)
    assert torch.allclose(settled.x_adv, everything.x_adv, atol=1e-6)
    assert settled.broken.any()
    assert not settled.broken.all()
    assert (settled.forwards <= everything.forwards).all()
    assert settled.forwards.sum() < everything.forwards.sum()
    robust = ~settled.broken
    assert torch.equal(settled.forwards[robust], everything.forwards[robust])


def test_what_a_search_for_training_returns() -> None:
    """The last iterate, unseen: no forward pass beside those of the gradients, and nothing claimed."""
    model = net(3)
    found = run(PGD(5, keep="last"), model)
    assert not found.broken.any()
    assert found.distance.isinf().all()
    assert (found.forwards == 5).all()
    assert (found.backwards == 5).all()
    assert LINF.contains(found.x_adv, batch(model)[0]).all()
    assert (found.correct_iterates <= 5).all()
    assert found.correct_iterates[::8].max() == 0  # wrong from the outset and ever after


def test_starts() -> None:
    model = net()
    x, y = batch(model)
    clean = ClassificationGoal(y, reference=model(x).detach())
    started = run(PGD(5, kl_divergence, start="gaussian", keep="last"), model, y=clean)
    assert (started.x_adv - x).abs().amax() > 0.05
    noise = run(PGD(0, start="gaussian"), model)
    moved = (noise.x_adv - x)[~noise.broken]
    assert 0.3 * GAUSSIAN_START < float(moved.std()) < 1.1 * GAUSSIAN_START  # clipped at the box
    assert LINF.contains(noise.x_adv, x).all()
    other = run(PGD(0, keep="last"), model, seed=1).x_adv
    assert not torch.equal(other, run(PGD(0, keep="last"), model, seed=2).x_adv)


def test_restarts_see_only_what_still_stands() -> None:
    model = net(3)
    threat = ThreatModel("linf", 0.05)
    once, thrice = run(PGD(5), model, threat), run(PGD(5, restarts=3), model, threat)
    assert torch.equal(thrice.x_adv[once.broken], once.x_adv[once.broken])
    assert torch.equal(thrice.forwards[once.broken], once.forwards[once.broken])
    assert (thrice.forwards[~thrice.broken] == 1 + 3 * 6).all()
    assert (~once.broken).any()


def test_a_flat_model_ends_the_search_at_its_start() -> None:
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0 * x.flatten(1)[:, :4] + torch.tensor([1.0, 0, 0, 0])

    x = batch(net())[0]
    y = torch.zeros(COUNT, dtype=torch.int64)
    for norm in NORMS:
        found = PGD(10, start="none", restarts=2)(
            Flat(), x, y, threat=ThreatModel(norm, 1), generator=KeyedGenerator(0, torch.arange(COUNT))
        )
        assert torch.equal(found.x_adv, x)
        assert not found.broken.any()


class Sick(nn.Module):
    """Answers `value` wherever the first pixel has been moved up."""

    def __init__(self, inner: nn.Module, x: Tensor, value: float) -> None:
        super().__init__()
        self.inner, self.x, self.value = inner, x, value

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x)
        here = (self.x.flatten(1)[None] - x.flatten(1)[:, None]).abs().sum(2).argmin(1)
        moved = x[:, 0, 0, 0] > self.x[here][:, 0, 0, 0] + 1e-4
        return torch.where(moved[:, None], torch.full_like(logits, self.value), logits)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_answer_in_the_midst_of_a_search_is_invalid_and_not_robust(value: float) -> None:
    model = net(3)
    x, y = batch(model)
    found = PGD(6)(
        Sick(model, x, value),
        x,
        y,
        threat=ThreatModel("linf", 0.02),
        generator=KeyedGenerator(0, torch.arange(COUNT)),
    )
    sane = run(PGD(6), model, ThreatModel("linf", 0.02))
    assert found.invalid.any()
    assert not found.invalid.all()
    assert found.broken[found.invalid].all()
    untouched = ~found.invalid
    assert torch.equal(found.broken[untouched], sane.broken[untouched])
    assert found.x_adv.isfinite().all()


@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize(
    ("norm", "start"), [*((norm, "random") for norm in NORMS), ("linf", "gaussian"), ("linf", "halfway")]
)
def test_images_keep_their_memory_format(norm: str, start: str, keep: str) -> None:
    model = net().to(memory_format=torch.channels_last)
    x, y = batch(model)
    threat = ThreatModel(norm, 1 if norm == "l0" else 0.1)
    generator = KeyedGenerator(0, torch.arange(COUNT))
    attack = PGD(3, start=start, keep=keep)
    plain = attack(model, x, y, threat=threat, generator=generator)
    last = attack(model, x.to(memory_format=torch.channels_last), y, threat=threat, generator=generator)
    assert plain.x_adv.is_contiguous()
    assert last.x_adv.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(plain.x_adv, last.x_adv, atol=1e-5)


def test_double_precision_stays_double() -> None:
    model = net().double()
    x, y = batch(net())
    found = PGD(4)(
        model, x.double(), y, threat=ThreatModel("l2", "1e-9"), generator=KeyedGenerator(0, torch.arange(COUNT))
    )
    assert found.x_adv.dtype == torch.float64
    assert found.distance.dtype == torch.float64
    moved = (found.x_adv - x.double()).flatten(1).norm(dim=1)[~found.broken]
    assert moved.max() <= 1e-9 * (1 + 1e-6)
    assert moved.min() > 0.9e-9


def test_autocast_reaches_the_search_only_where_asked() -> None:
    seen: list[torch.dtype] = []
    model = net()
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    x, y = batch(net())
    generator = KeyedGenerator(0, torch.arange(COUNT))
    with torch.autocast("cpu", torch.bfloat16):
        exact = PGD(2)(model, x, y, threat=LINF, generator=generator)
        assert set(seen) == {torch.float32}
        seen.clear()
        coarse = PGD(2, precision="ambient", keep="last")(model, x, y, threat=LINF, generator=generator)
        assert set(seen) == {torch.bfloat16}
    assert exact.x_adv.dtype == coarse.x_adv.dtype == torch.float32
    assert LINF.contains(coarse.x_adv, x).all()
    outside = PGD(2)(net(), x, y, threat=LINF, generator=generator)
    assert torch.equal(outside.x_adv, exact.x_adv)


def test_global_random_state_is_neither_read_nor_moved() -> None:
    model = net()
    before = torch.get_rng_state()
    first = run(PGD(3), model)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    assert torch.equal(run(PGD(3), model).x_adv, first.x_adv)
    torch.set_rng_state(before)
