"""Quantities of a step: one order of computing, declared reads, quantities of a method's own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn
from training_tools import NormNet, make_step, mlp, same

from robustly.objectives import kl
from robustly.training import (
    AdversarialLoss,
    CleanLoss,
    ExponentialAverage,
    GuideLabels,
    Method,
    MethodError,
    Part,
    PGDInner,
    Step,
    Terms,
    TradesLoss,
    UndeclaredReadError,
    WeightPerturbation,
)
from robustly.training.losses.terms import label_loss
from robustly.training.method import outer_loss
from robustly.training.step import class_name

INNER = PGDInner(steps=2)


@dataclass(frozen=True)
class Backwards(Part):
    """TRADES that reads its logits in the other order."""

    reads = ("adversarial", "clean")

    def __call__(self, step: Step) -> Terms:
        z_adv = step.adversarial_logits
        consistency = 6 * kl(step.clean_logits, z_adv)
        return {"clean": label_loss(step.clean_logits, step.labels), "consistency": consistency}


class Dropped(nn.Module):
    """Batch normalisation and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.net = NormNet(0)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.net(x))


def test_the_order_of_reading_changes_nothing() -> None:
    x, y = torch.rand(8, 1, 16, 16), torch.arange(8)
    found = []
    for loss in (TradesLoss(6.0), Backwards()):
        model = Dropped().train()
        torch.manual_seed(1)
        value, _ = outer_loss(Method(inner=INNER, loss=loss), make_step(x, y, model, inner=INNER))
        found.append((value.detach(), model.state_dict()))
    assert torch.equal(found[0][0], found[1][0])
    assert same(found[0][1], found[1][1])


def test_the_order_is_that_of_the_documentation() -> None:
    """Trained networks on clean images, the model, frozen networks, the model, trained networks, own quantities."""
    ran: list[str] = []

    class Noting(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: Tensor) -> Tensor:
            ran.append(f"{self.name} {'clean' if torch.equal(x, images) else 'adversarial'}")
            return x * 1.0

    images, y = torch.rand(4, 3), torch.arange(4) % 3
    step = make_step(
        images,
        y,
        Noting("model"),
        guide=Noting("guide"),
        trained={"second": Noting("second")},
        teachers={"teacher": Noting("teacher")},
        inner=PGDInner(steps=1, start="random"),
        own={"sum": lambda step: step.clean_logits + step.logits("teacher", "adversarial")},
    )
    of_images = (
        "second@adversarial",
        "adversarial",
        "teacher@adversarial",
        "clean",
        "teacher@clean",
        "second@clean",
    )
    step.compute(["sum", *of_images, "guide"])
    by_attack = ["model adversarial"]
    expected = ["guide clean", "second clean", "model clean", "teacher clean", *by_attack, "teacher adversarial"]
    assert ran == [*expected, "model adversarial", "second adversarial"]
    assert torch.equal(step.quantity("sum"), images + step.adversarial.x_adv)
    assert len(ran) == len(expected) + 2, "everything runs once"


@dataclass(frozen=True)
class Careless(Part):
    """Read a quantity without declaring it, in one of its methods."""

    where: str = "loss"
    reads = ("clean",)

    def __call__(self, step: Step) -> Terms:
        return self._read("loss", step)

    def extra_terms(self, step: Step) -> Terms:
        return {"more": self._read("extra_terms", step)["clean"]} if self.where == "extra_terms" else {}

    def after_backward(self, step: Step) -> None:
        self._read("after_backward", step)

    def after_step(self, step: Step) -> None:
        self._read("after_step", step)

    def _read(self, where: str, step: Step) -> Terms:
        return {"clean": (step.adversarial_logits if self.where == where else step.clean_logits).sum(1)}


@pytest.mark.parametrize("where", ["loss", "extra_terms", "after_backward", "after_step"])
def test_a_part_reads_only_what_it_declares(where: str) -> None:
    """Also if another part has computed it."""
    part = Careless(where)
    method = Method(inner=INNER, loss=TradesLoss(), parameters=(part,))
    if where == "loss":
        method = Method(inner=INNER, loss=AdversarialLoss())
        object.__setattr__(method, "loss", part)
    step = make_step(torch.rand(4, 6).double(), torch.arange(4), mlp(), inner=INNER)
    name = r"loss \(Careless\)" if where == "loss" else r"parameters.Careless \(Careless\)"

    def whole_step() -> None:
        outer_loss(method, step)
        method.after_backward(step)
        method.after_step(step)

    with pytest.raises(UndeclaredReadError, match=f"{name} reads the quantity 'adversarial' and declares clean"):
        whole_step()


@dataclass(frozen=True)
class Perturbing(Part):
    """Perturb the weights by another loss; may read more than it declares."""

    greedy: bool = False

    def before_outer(self, step: Step, loss: Callable[[Step], Tensor]) -> None:
        again = step.again("adversarial")
        value = (again.clean_logits if self.greedy else again.adversarial_logits).sum()
        torch.autograd.grad(value, list(step.model.parameters()))


def test_a_second_evaluation_reads_only_what_is_declared_for_it() -> None:
    x, y = torch.rand(4, 6).double(), torch.arange(4)
    outer_loss(
        Method(inner=INNER, loss=TradesLoss(), parameters=(Perturbing(),)), make_step(x, y, mlp(), inner=INNER)
    )
    method = Method(inner=INNER, loss=TradesLoss(), parameters=(Perturbing(greedy=True),))
    with pytest.raises(
        UndeclaredReadError, match=r"second evaluation of parameters.Perturbing .* reads .* 'clean'"
    ):
        outer_loss(method, make_step(x, y, mlp(), inner=INNER))


@dataclass(frozen=True)
class Declares(Part):
    names: tuple[str, ...]
    networks: tuple[str, ...] = ()

    @property
    def reads(self) -> tuple[str, ...]:
        return self.names

    def __call__(self, step: Step) -> Terms:
        return {"clean": step.x.flatten(1).sum(1)}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("clear",), "loss: unknown quantity 'clear': allowed are clean, adversarial, guide"),
        (("teacher@blurred",), "unknown quantity 'teacher@blurred'"),
        (("@clean",), "unknown quantity '@clean'"),
        (("clean", "model@clean"), "unknown quantity 'model@clean'"),
        (("teacher@clean",), "reads 'teacher@clean', no part names the network 'teacher'"),
        (("guide",), "reads 'guide', no part names the network 'guide'"),
        (("adversarial",), "needs adversarial examples, the method has no inner maximisation"),
    ],
)
def test_quantities_that_no_step_has_are_refused(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        Method(loss=Declares(names))
    with pytest.raises(MethodError, match=r"parameters\.Declares: reads 'adversarial', the method has no inner"):
        Method(parameters=(Declares(("adversarial",)),))


def test_networks_are_those_whose_logits_are_read() -> None:
    class Reads(Part):
        reads = ("clean", "helper@clean", "guide", "helper@adversarial")

    assert Reads().networks == ("helper", "guide")
    assert GuideLabels().networks == ("guide",)


def test_labels_and_attacks_do_not_read_what_comes_of_them() -> None:
    class Circular(PGDInner):
        def __call__(self, step: Step):  # type: ignore[no-untyped-def]
            return step.adversarial

    step = make_step(torch.rand(4, 6).double(), torch.arange(4), mlp(), inner=Circular())
    with pytest.raises(ValueError, match=r"adversarial examples .*while"):
        _ = step.adversarial
    step = make_step(torch.rand(4, 6).double(), torch.arange(4), mlp())
    with pytest.raises(ValueError, match="no inner maximisation"):
        _ = step.adversarial_logits


# quantities of a method's own


@dataclass(frozen=True)
class Distance(Part):
    """A loss with a quantity of its own: the distance between clean and adversarial logits."""

    name: str = "distance"
    reads = ("clean", "adversarial", "distance")

    @property
    def own_quantities(self) -> Mapping[str, Callable[[Step], Tensor]]:
        return {self.name: lambda step: (step.clean_logits - step.adversarial_logits).norm(dim=1)}

    def __call__(self, step: Step) -> Terms:
        return {"clean": label_loss(step.clean_logits, step.labels), "distance": step.quantity("distance")}


@dataclass(frozen=True)
class ByDistance(Part):
    """Weights that read the quantity of the loss."""

    term: str = "clean"
    reads = ("distance",)

    def __call__(self, step: Step) -> Tensor:
        return step.quantity("distance").detach()


def test_a_method_has_quantities_of_its_own() -> None:
    x, y = torch.rand(8, 6).double(), torch.arange(8) % 4
    method = Method(inner=INNER, loss=Distance(), weights=ByDistance())
    own, clean = method.own_quantities, []
    for parameters in ((), (WeightPerturbation(gamma=0.1),)):
        model = mlp(0)
        perturbed = replace(method, parameters=parameters)
        step = make_step(x, y, model, inner=INNER, own=own, slot_of=perturbed.slot_of)
        value, terms = outer_loss(perturbed, step)
        value.backward()
        z, z_adv = step.clean_logits, step.adversarial_logits
        distance = (z - z_adv).norm(dim=1)
        assert torch.equal(step.quantity("distance"), distance), "of the weights at which the loss is taken"
        weighted = distance.detach() * nn.functional.cross_entropy(z, y, reduction="none")
        assert float(terms["clean"]) == pytest.approx(float(weighted.mean().detach()))
        clean.append(float(terms["clean"]))
    assert clean[0] != clean[1]


def test_names_of_own_quantities_are_free() -> None:
    with pytest.raises(MethodError, match=r"reads 'distance'|unknown quantity 'distance'"):
        Method(inner=INNER, loss=TradesLoss(), weights=ByDistance())
    for name in ("clean", "teacher@clean"):
        with pytest.raises(MethodError, match=f"the quantity '{name}' exists already"):
            Method(inner=INNER, loss=Distance(name))
    with pytest.raises(MethodError, match="the quantity 'distance' exists already"):
        Method(inner=INNER, loss=Distance(), parameters=(Distance(),))


def test_parts_must_derive_from_the_base_class() -> None:
    class Stranger:
        def __call__(self, step: Step) -> Terms:
            return {}

    method = Method(loss=CleanLoss(), parameters=(ExponentialAverage(),))
    object.__setattr__(method, "loss", Stranger())  # past the type checks that only tests have
    with pytest.raises(MethodError, match=r"loss: Stranger .*robustly\.training\.Part"):
        method.__post_init__()
    assert class_name(Distance()) == "Distance"
