"""The contract of training parts."""

import copy
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import get_type_hints

import torch
from torch import Tensor, nn

from robustly.attacks import AttackResult
from robustly.data import Batch
from robustly.randomness import KeyedGenerator
from robustly.testing.networks import require
from robustly.testing.training_runs import check_processes, check_resume
from robustly.threats import Threat, ThreatModel
from robustly.training import AdversarialLoss, Method, Part, PGDInner, Step, TradesLoss
from robustly.training.cost import TEACHERS, step_cost
from robustly.training.method import outer_loss, part_name
from robustly.training.quantities import Networks, UndeclaredReadError
from robustly.training.step import Labels, Memory, Moment, unchanged

SHAPE, CLASSES = (1, 4, 4), 4
LINF = ThreatModel("linf", 0.1)


@dataclass(frozen=True)
class Setting:
    """A method, and the inputs of its runs."""

    method: Method
    epochs: int
    frozen: tuple[str, ...]
    threats: tuple[Threat, ...]

    def networks(self, norm: bool = True, dropout: bool = True) -> Networks:
        """Small networks for the method, the same ones at each call."""
        made = {name: _network(seed, norm, dropout) for seed, name in enumerate(("model", *self.method.networks))}
        return Networks(
            made["model"],
            trained={name: net for name, net in made.items() if name != "model" and name not in self.frozen},
            frozen={name: net.requires_grad_(False).eval() for name, net in made.items() if name in self.frozen},
        )

    def step(
        self, networks: Networks, batch: Batch, epoch: int, memory: Memory | None = None, replay: int = 0
    ) -> Step:
        """A step of the method, the only one of its epoch."""
        return self.method.step(
            batch,
            networks,
            threats=self.threats,
            moment=Moment(epoch, 0, 1, self.epochs),
            memory={} if memory is None else memory,
            replay=replay,
            global_mean=unchanged,
        )

    def batch(self, count: int = 8) -> Batch:
        """Random double-precision images and labels, the same at each call."""
        ids = torch.arange(count)
        draws = KeyedGenerator(3, ids)
        views = [draws.fold("view", view).uniform(*SHAPE).double() for view in range(self.method.views)]
        return Batch(views[0], draws.fold("label").integers(CLASSES, 1)[:, 0], ids, draws, tuple(views[1:]))


def check_part(
    part: Part,
    *,
    method: Method | None = None,
    epochs: int = 3,
    frozen: Collection[str] = TEACHERS,
    threats: tuple[Threat, ...] = (LINF,),
    order_free: bool = True,
    processes: bool = False,
) -> None:
    """Check a training part against the contract of its kind, in steps and runs of small networks.

    The checks cover shapes and values of terms; `reads` against what the part reads; gradients, modes and
    `requires_grad` after a step; passes against `step_cost`; independence of the order of examples; a run that is
    stopped and resumed.

    Args:
        part: a part whose warm-up, if it has one, ends within `epochs`.
        method: a method that contains the part; without it, adversarial training with the part in its place.
        epochs: epochs of the run.
        frozen: names of the networks that never learn.
        threats: threat models of the run.
        order_free: whether the loss of an example must not depend on its place in the batch.
        processes: whether to compare two processes (gloo, started by `spawn`) with one. The part must be importable
            by its class. Free-AT is left out, because it needs one process.

    Raises:
        AssertionError: the first property that does not hold.
        MethodError: the part does not go with the method, or needs more epochs.
    """
    whole = _method_around(part) if method is None else method
    slot = next((slot for slot, other in whole.slots() if other is part), None)
    require(slot is not None, f"the method does not contain the part {type(part).__name__}")
    whole.check_epochs(epochs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _check_steps(Setting(copy.deepcopy(whole), epochs, tuple(frozen), threats), str(slot), order_free)
    pristine = Setting(whole, epochs, tuple(frozen), threats)
    name = part_name(str(slot), part)
    check_resume(whole, partial(_as_floats, pristine), epochs, threats, name)
    if processes and not whole.shares_backward:
        networks = pristine.networks(norm=False, dropout=False)
        check_processes(whole, networks, pristine.batch(7), epochs, threats, name)


def _check_steps(setting: Setting, slot: str, order_free: bool) -> None:
    """Single steps in every epoch, their passes, and the order of examples."""
    name = part_name(slot, dict(setting.method.slots())[slot])
    for epoch in range(setting.epochs):
        where = f"by {name} in epoch {epoch + 1}"
        try:
            _check_values(setting, epoch, where)
            _check_step(setting, epoch, name, slot)
        except UndeclaredReadError as error:
            raise AssertionError(str(error)) from None
    _check_cost(setting, name)
    if order_free:
        _check_order(setting, name)


def _method_around(part: Part) -> Method:
    """Adversarial training with a part in its place."""
    inner = PGDInner(steps=2)
    if not callable(part):
        return Method(inner=inner, loss=TradesLoss(), parameters=(part,))
    kind = get_type_hints(type(part).__call__).get("return")
    if kind is Labels:
        return Method(labels=part, inner=inner, loss=AdversarialLoss())
    if kind is AttackResult:
        return Method(inner=part, loss=AdversarialLoss())
    if hasattr(part, "term"):
        loss = AdversarialLoss() if part.term == "adversarial" else TradesLoss()
        return Method(inner=inner, loss=loss, weights=part)
    return Method(inner=inner if part.needs_inner else None, loss=part)


def _check_values(setting: Setting, epoch: int, where: str) -> None:
    """Shapes and values of labels, adversarial examples, terms and weights."""
    method = setting.method
    step = setting.step(setting.networks(), setting.batch(), epoch)
    declared = {slot: part.reads_at(step.moment) for slot, part in method.slots()}
    count = len(step.y)
    step.compute([name for name in declared["labels"] if "adversarial" not in name])
    labels = step.labels
    require(
        labels.hard.shape == (count,), f"labels have the shape {tuple(labels.hard.shape)}, not ({count},), {where}"
    )
    require(labels.hard.dtype == torch.int64, f"labels are {labels.hard.dtype}, not int64, {where}")
    _check_terms(labels.terms, count, where)
    if method.inner is not None:
        found = step.adversarial
        require(found.x_adv.shape == step.x.shape, f"adversarial images have another shape than images {where}")
        require(found.x_adv.isfinite().all(), f"adversarial images are not finite {where}")
        # a part that shares the backward pass of the weights needs the graph from its parameters to the images
        leaf = found.theta if method.shares_backward and found.theta is not None else found.x_adv
        require(leaf.is_leaf, f"adversarial images carry a graph {where}")
        low, high = step.threat.box
        inside = bool(((found.x_adv >= low) & (found.x_adv <= high)).all())
        require(inside, f"adversarial images leave the box {where}")
    step.compute([name for reads in declared.values() for name in reads])
    terms = method.loss(step)
    require(len(terms) > 0, f"the loss has no terms {where}")
    _check_terms(terms, count, where)
    for _, part in method.slots():
        _check_terms(part.extra_terms(step), count, where)
    weights = None if method.weights is None or method.weights.term not in terms else method.weights(step)
    if weights is not None:
        require(
            weights.shape == (count,), f"weights have the shape {tuple(weights.shape)}, not ({count},), {where}"
        )
        require(weights.isfinite().all() and (weights >= 0).all(), f"weights are negative or not finite {where}")


def _check_terms(terms: Mapping[str, Tensor], count: int, where: str) -> None:
    for name, term in terms.items():
        shape = tuple(term.shape)
        require(shape == (count,), f"the term {name!r} has the shape {shape}, not ({count},), {where}")
        require(term.isfinite().all(), f"the term {name!r} is not finite {where}")


def _check_step(setting: Setting, epoch: int, name: str, slot: str) -> None:
    """Check one step: quantities read, gradients and modes afterwards."""
    networks, batch = setting.networks(), setting.batch()
    everything = {**networks.learning, **networks.frozen}
    before, images = _flags(everything), [view.clone() for view in (batch.x, *batch.other_views)]
    step = setting.step(networks, batch, epoch)
    loss, _ = outer_loss(setting.method, step)
    written = [key for key, net in everything.items() if any(p.grad is not None for p in net.parameters())]
    require(not written, f"{name} writes .grad of {', '.join(written)} before the backward pass")
    views = (batch.x, *batch.other_views)
    changed = not all(torch.equal(view, original) for view, original in zip(views, images, strict=True))
    require(not changed, f"{name} changes images in place")
    loss.backward()  # type: ignore[no-untyped-call]
    setting.method.after_backward(step)
    setting.method.after_step(step)
    part = dict(setting.method.slots())[slot]
    declared = set(part.reads_at(step.moment))
    require(declared <= set(part.reads), f"{name} has quantities in `reads_at` that are not in `reads`")
    unread = declared - step.quantities.read_by.get(name, set())
    require(not unread, f"{name} declares {', '.join(sorted(unread))} and does not read it in epoch {epoch + 1}")
    taught = [key for key, net in networks.frozen.items() if any(p.grad is not None for p in net.parameters())]
    require(not taught, f"a gradient reaches the frozen network {', '.join(taught)} with {name}")
    left = any(view.grad is not None or view.requires_grad for view in views)
    require(not left, f"{name} leaves a gradient on the images")
    after = _flags(everything)
    for key in everything:
        for what, old, new in zip(("modes", "requires_grad", "statistics"), before[key], after[key], strict=True):
            require(old == new, f"{name} does not restore the {what} of {key}")


def _flags(networks: Mapping[str, nn.Module]) -> dict[str, tuple[list[bool], list[bool], list[bool]]]:
    return {
        name: (
            [module.training for module in network.modules()],
            [parameter.requires_grad for parameter in network.parameters()],
            [module.track_running_stats for module in network.modules() if isinstance(module, nn.BatchNorm1d)],
        )
        for name, network in networks.items()
    }


def _check_cost(setting: Setting, name: str) -> None:
    """Passes of the last epoch's step on other networks than those of `step_cost`."""
    method, epochs = setting.method, setting.epochs
    declared = step_cost(method, epochs, setting.frozen, setting.threats)
    networks, batch, memory = setting.networks(), setting.batch(), Memory()
    early = False
    with _counted({**networks.learning, **networks.frozen}) as passes:
        for replay in range(method.replays):
            step = setting.step(networks, batch, epochs - 1, memory, replay)
            loss, _ = outer_loss(method, step)
            loss.backward()  # type: ignore[no-untyped-call]
            method.after_backward(step)
            method.after_step(step)
            early = early or (
                method.inner is not None and bool((step.adversarial.forwards < step.attack_steps).any())
            )
    for key in declared.forwards:
        for way, expected in (("forward", declared.forwards[key]), ("backward", declared.backwards[key])):
            spent = passes[key, way] / len(batch.y)
            require(
                spent <= expected if early else spent == expected,
                f"with {name} an example takes {spent:g} {way} passes of {key}, `step_cost` counts {expected}",
            )


@contextmanager
def _counted(networks: Mapping[str, nn.Module]) -> Iterator[Counter[tuple[str, str]]]:
    passes: Counter[tuple[str, str]] = Counter()

    def count(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        passes[name, "forward"] += len(output)
        if output.requires_grad:
            output.register_hook(lambda gradient: passes.update({(name, "backward"): len(gradient)}))  # type: ignore[no-untyped-call]

    hooks = [network.register_forward_hook(partial(count, name)) for name, network in networks.items()]
    try:
        yield passes
    finally:
        for hook in hooks:
            hook.remove()


def _check_order(setting: Setting, name: str) -> None:
    """The same examples in another order have the same terms."""
    batch = setting.batch()
    order = torch.tensor([3, 0, 6, 1, 7, 5, 2, 4])
    shuffled = Batch(
        batch.x[order],
        batch.y[order],
        batch.ids[order],
        batch.generator.select(order),
        tuple(view[order] for view in batch.other_views),
    )
    found = []
    for examples in (batch, shuffled):
        step = setting.step(setting.networks(norm=False, dropout=False), examples, setting.epochs - 1)
        terms = {**step.labels.terms, **setting.method.loss(step)}
        for _, part in setting.method.slots():
            terms |= part.extra_terms(step)
        if setting.method.weights is not None and (weights := setting.method.weights(step)) is not None:
            terms["the instance weights"] = weights
        found.append(terms)
    for term, values in found[0].items():
        same = torch.allclose(values[order], found[1][term], rtol=1e-6, atol=1e-9)
        require(same, f"with {name} the term {term!r} of an example depends on its place in the batch")


def _as_floats(setting: Setting) -> Networks:
    """Networks of a run, in single precision."""
    networks = setting.networks()
    for network in (*networks.learning.values(), *networks.frozen.values()):
        network.float()
    return networks


def _network(seed: int, norm: bool, dropout: bool) -> nn.Module:
    """A small double-precision network, in train mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        middle = ([nn.BatchNorm1d(12)] if norm else []) + [nn.Tanh()] + ([nn.Dropout(0.3)] if dropout else [])
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), *middle, nn.Linear(12, CLASSES)).double()
