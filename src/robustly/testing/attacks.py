"""Contract check of attacks."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robustly.attacks import Attack, AttackResult
from robustly.objectives import ClassificationGoal
from robustly.randomness import KeyedGenerator
from robustly.testing.networks import SHAPES, eval_logits, require, small_network
from robustly.threats import Threat, ThreatError, ThreatModel


@dataclass(frozen=True)
class _Case:
    """A batch of correctly classified examples, and a few misclassified ones."""

    net: nn.Module
    x: Tensor
    y: Tensor
    threat: Threat

    @staticmethod
    def make(shape: tuple[int, ...], threat: Threat, count: int = 7, classes: int = 4, seed: int = 0) -> "_Case":
        net = small_network(shape, classes, seed)
        x = KeyedGenerator(seed, torch.arange(count)).uniform(*shape) * 0.8 + 0.1
        with torch.no_grad():
            y = net.eval()(x).argmax(1)
        net.train()
        if count > 2:
            y[-1] = (y[-1] + 1) % classes  # one that is misclassified without attack
        return _Case(net, x, y, threat)

    def run(
        self, attack: Attack, rows: Tensor | None = None, goal: ClassificationGoal | None = None
    ) -> AttackResult:
        """Attack some rows; None passes the tensors of the case themselves, so that a change in place is found."""
        if rows is None:
            labels, generator = self.y if goal is None else goal, KeyedGenerator(7, torch.arange(len(self.x)))
            return attack(self.net, self.x, labels, threat=self.threat, generator=generator)
        return attack(
            self.net,
            self.x[rows],
            self.y[rows] if goal is None else goal.select(rows),
            threat=self.threat.select(rows),
            generator=KeyedGenerator(7, rows),
        )


def check_attack(
    attack: Attack, threats: tuple[Threat, ...], *, targeted: bool = False, finds_invalid: bool = True
) -> None:
    """Check an attack against the contract of `robustly.attacks.Attack`.

    Args:
        attack: the attack.
        threats: threats that it supports, with an extent that breaks some of a random network's examples.
        targeted: True if it also supports a `Goal` with target classes.
        finds_invalid: True if it reports NaN logits as `invalid`.

    Raises:
        AssertionError: the first property that does not hold, with the threat and the input shape.
    """
    require(isinstance(attack, Attack), f"{type(attack).__name__} lacks `needs`, `minimum_norm` or `__call__`")
    for threat in threats:
        require(attack.needs.accept(threat), f"`needs` rejects {threat}")
        for shape in (shape for shape in SHAPES if _is_defined(threat, shape)):
            case = _Case.make(shape, threat)
            where = f"under {threat} on inputs of shape {shape}"
            x, y, state = case.x.clone(), case.y.clone(), torch.get_rng_state()
            result = case.run(attack)
            require(
                torch.equal(case.x, x) and torch.equal(case.y, y), f"the caller's images or labels change {where}"
            )
            require(torch.equal(torch.get_rng_state(), state), f"the global random state is changed {where}")
            _check_result(case, result, where)
            _check_independence(case, attack, result, where)
        case = _Case.make(SHAPES[2], threat)
        where = f"under {threat}"
        _check_formats(threat, attack, where)
        _check_leaves_model(case, attack, where)
        _check_surroundings(case, attack, where)
        _check_flat(case, attack, where)
        _check_sizes(attack, threat)
        _check_radii(case, attack, where)
        if targeted:
            _check_targets(case, attack, where)
        if finds_invalid:
            _check_nan(case, attack, where)


def _check_result(case: _Case, result: AttackResult, where: str) -> None:
    x, y, threat = case.x, case.y, case.threat
    require(result.x_adv.shape == x.shape, f"the attack changes the shape of images {where}")
    require(result.x_adv.dtype == x.dtype, f"the attack changes the dtype of images {where}")
    require(result.x_adv.device == x.device, f"the attack changes the device of images {where}")
    require(not result.x_adv.requires_grad, f"the returned images carry a gradient {where}")
    _check_inside(threat, x, result, where)
    wrong = eval_logits(case.net, x).argmax(1) != y
    require((result.x_adv[wrong] == x[wrong]).all(), f"images misclassified without attack are changed {where}")
    require(result.broken[wrong].all(), f"images misclassified without attack do not count as broken {where}")
    require(
        (result.distance[wrong] == 0).all(), f"images misclassified without attack are not at distance 0 {where}"
    )
    adversarial = eval_logits(case.net, result.x_adv).argmax(1) != y
    require(
        adversarial[result.broken].all(), f"an image is called broken that the model classifies correctly {where}"
    )
    measured = threat.around(x).size(result.x_adv if result.theta is None else result.theta)
    near = torch.isclose(result.distance[result.broken], measured[result.broken], rtol=1e-4, atol=1e-5)
    require(near.all(), f"a distance is not that of the returned image {where}")
    _check_beyond(case, result, where)
    require(not result.invalid.any(), f"finite outputs are called invalid {where}")
    require((result.forwards >= 1).all(), f"forward passes are not counted {where}")


def _is_defined(threat: Threat, shape: tuple[int, ...]) -> bool:
    try:
        threat.around(torch.zeros(0, *shape))
    except ThreatError:
        return False
    return True


def _check_inside(threat: Threat, x: Tensor, result: AttackResult, where: str) -> None:
    """Check that the images are in the box and the set, and that the parameters render them."""
    allowed, (low, high) = threat.around(x), threat.box
    theta = result.x_adv if result.theta is None else result.theta
    inside = allowed.contains(theta).all() and ((result.x_adv >= low) & (result.x_adv <= high)).all()
    require(inside, f"the attack leaves the ball or the box {where}")
    same = torch.allclose(allowed.apply(theta), result.x_adv, atol=1e-6)
    require(same, f"the returned parameters do not render the returned images {where}")


def _check_beyond(case: _Case, result: AttackResult, where: str) -> None:
    """Check the images outside the threat set: not broken, further away than epsilon, and in `beyond`."""
    found = ~result.broken & result.distance.isfinite()
    if not bool(found.any()):
        return
    require(result.beyond is not None, f"a distance is returned without an image in `beyond` {where}")
    assert result.beyond is not None  # for mypy
    low, high = case.threat.box
    epsilon = case.threat.around(case.x).radius
    require((result.distance > epsilon * (1 - 1e-6))[found].all(), f"an image within epsilon is not broken {where}")
    measured = case.threat.around(case.x).size(result.beyond)
    near = torch.isclose(result.distance[found], measured[found], rtol=1e-4, atol=1e-5)
    require(near.all(), f"a distance is not that of the image in `beyond` {where}")
    adversarial = eval_logits(case.net, result.beyond).argmax(1) != case.y
    require(adversarial[found].all(), f"an image in `beyond` is classified correctly by the model {where}")
    inside = ((result.beyond >= low) & (result.beyond <= high)).flatten(1).all(1)
    require(inside[found].all(), f"an image in `beyond` leaves the box {where}")


def _check_formats(threat: Threat, attack: Attack, where: str) -> None:
    case = _Case.make(SHAPES[3], threat)
    expected = case.run(attack)
    last = replace(case, x=case.x.to(memory_format=torch.channels_last)).run(attack)
    kept = last.x_adv.is_contiguous(memory_format=torch.channels_last) and expected.x_adv.is_contiguous()
    require(kept, f"the attack changes the memory format of images {where}")
    require(torch.equal(last.broken, expected.broken), f"channels-last images get other verdicts {where}")
    double = _Case(case.net.double(), case.x.double(), case.y, threat).run(attack)
    require(double.x_adv.dtype == torch.float64, f"the attack changes the dtype of images {where}")
    _check_inside(threat, case.x.double(), double, f"{where} in float64")


def _check_flat(case: _Case, attack: Attack, where: str) -> None:
    """Check a model whose gradient is zero everywhere: the attack returns, and breaks nothing."""

    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            zero = 0 * x.flatten(1).sum(1, keepdim=True)
            return torch.cat([zero, zero + 1, zero], dim=1)

    flat = _Case(Flat(), case.x, torch.ones_like(case.y), case.threat)
    result = flat.run(attack)
    require(not result.broken.any(), f"a constant model is called broken {where}")
    _check_inside(case.threat, case.x, result, f"{where} with a constant model")
    require(result.x_adv.isfinite().all(), f"a zero gradient gives images that are not finite {where}")


def _check_independence(case: _Case, attack: Attack, result: AttackResult, where: str) -> None:
    again = case.run(attack)
    require(torch.equal(again.x_adv, result.x_adv), f"the same seed gives other images {where}")
    count = len(case.x)
    for rows in (torch.arange(count).flip(0), torch.arange(0, count, 2), torch.tensor([2])):
        part = case.run(attack, rows)
        same = torch.equal(part.broken, result.broken[rows])
        require(same, f"verdicts depend on the other images of the batch or their order {where}")
        near = torch.allclose(part.x_adv, result.x_adv[rows], atol=1e-4)
        require(near, f"images depend on the other images of the batch or their order {where}")


def _check_leaves_model(case: _Case, attack: Attack, where: str) -> None:
    net = case.net
    net[1].requires_grad_(False)  # type: ignore[index]
    net[2].eval()  # type: ignore[index]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    flags = [parameter.requires_grad for parameter in net.parameters()]
    modes = [module.training for module in net.modules()]

    def untouched(when: str) -> None:
        same = all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        require(same, f"parameters or buffers of the model are changed {when} {where}")
        require(flags == [p.requires_grad for p in net.parameters()], f"requires_grad is changed {when} {where}")
        require(
            modes == [module.training for module in net.modules()], f"train or eval mode is changed {when} {where}"
        )
        require(all(p.grad is None for p in net.parameters()), f".grad of a parameter is written {when} {where}")

    case.run(attack)
    untouched("by the attack")
    calls = 0

    def fail(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise _PlannedError

    hook = net.register_forward_pre_hook(fail)
    try:
        case.run(attack)
    except _PlannedError:
        untouched("when the model raises")
    else:
        require(calls < 2, f"an error of the model is swallowed {where}")
    finally:
        hook.remove()


class _PlannedError(Exception):
    """Error that a model raises on purpose."""


def _check_surroundings(case: _Case, attack: Attack, where: str) -> None:
    expected = case.run(attack)
    surroundings: dict[str, Callable[[], AbstractContextManager[object]]] = {
        "no_grad": torch.no_grad,
        "inference_mode": torch.inference_mode,
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "nothing": nullcontext,
    }
    for name, enter in surroundings.items():
        with enter():
            inside = _Case(case.net, case.x.clone(), case.y.clone(), case.threat)
            result = inside.run(attack)
            require(
                torch.is_grad_enabled() == (name in ("autocast", "nothing")), f"grad mode is changed inside {name}"
            )
        require(torch.equal(result.broken, expected.broken), f"verdicts differ inside {name} {where}")


def _check_sizes(attack: Attack, threat: Threat) -> None:
    for count in (0, 1, 3):
        for classes in (2, 3):
            case = _Case.make(SHAPES[2], threat, count=count, classes=classes)
            seen = 0

            def count_images(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                nonlocal seen
                seen += len(inputs[0])  # noqa: B023, RUF100 (used within this turn of the loop)

            hook = case.net.register_forward_pre_hook(count_images)
            result = case.run(attack)
            hook.remove()
            what = f"{count} images of {classes} classes under {threat}"
            require(result.x_adv.shape == case.x.shape, f"{what} are returned in another shape")
            per_example = (
                result.broken, result.distance, result.forwards, result.backwards, result.correct_iterates,
                result.invalid, result.margin, result.zero_gradients,
            )  # fmt: skip
            shapes = [value.shape for value in per_example if value is not None]
            require(all(shape == (count,) for shape in shapes), f"{what} have results that are not (N,)")
            spent = int(result.forwards.sum())
            require(spent >= seen, f"{what} cost {seen} forward passes, the attack reports {spent}")


def _check_radii(case: _Case, attack: Attack, where: str) -> None:
    nothing = _Case(case.net, case.x, case.y, case.threat.scaled(0.0))
    result = nothing.run(attack)
    require(torch.equal(result.x_adv, case.x), f"epsilon 0 changes an image {where}")
    zero = torch.zeros(len(case.x))
    if isinstance(case.threat, ThreatModel) and not isinstance(case.threat.epsilon, Tensor):
        mixed = zero.clone()
        mixed[::2] = float(case.threat.epsilon)
        per_example = _Case(case.net, case.x, case.y, case.threat.with_epsilon(mixed))
        one = per_example.run(attack)
        require(torch.equal(one.x_adv[1::2], case.x[1::2]), f"per-example epsilon 0 changes an image {where}")
        same = torch.equal(one.broken[::2], case.run(attack).broken[::2])
        require(same, f"per-example epsilon gives another verdict than the same epsilon for all {where}")


def _check_targets(case: _Case, attack: Attack, where: str) -> None:
    goal = ClassificationGoal(case.y, target=(case.y + 1) % 4)
    result = case.run(attack, goal=goal)
    reached = eval_logits(case.net, result.x_adv).argmax(1).eq((case.y + 1) % 4)
    require(reached[result.broken].all(), f"a target is called reached that the model does not predict {where}")
    prediction = eval_logits(case.net, case.x).argmax(1)
    there = case.run(attack, goal=ClassificationGoal((prediction + 1) % 4, target=prediction))
    require(there.broken.all(), f"a target that is predicted without attack does not count as reached {where}")
    require(
        torch.equal(there.x_adv, case.x), f"images whose target is predicted without attack are changed {where}"
    )


def _check_nan(case: _Case, attack: Attack, where: str) -> None:
    class Sick(nn.Module):
        def __init__(self, net: nn.Module, clean: Tensor) -> None:
            super().__init__()
            self.net, self.clean = net, clean

        def forward(self, x: Tensor) -> Tensor:
            known = torch.eq(x.flatten(1)[:, None], self.clean.flatten(1)[None]).all(2).any(1)
            logits: Tensor = self.net(x)
            return logits.masked_fill(~known[:, None], float("nan"))

    case.net.eval()
    sick = _Case(Sick(case.net, case.x), case.x, case.y, case.threat)
    result = sick.run(attack)
    correct = eval_logits(case.net, case.x).argmax(1) == case.y
    require(result.invalid[correct].all(), f"NaN logits are not reported as invalid {where}")
    require(result.broken.all(), f"an example with NaN logits counts as robust {where}")
