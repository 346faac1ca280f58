"""The contract of training parts: all shipped ones keep it, and each way of breaking it is found."""

import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from robustly.attacks import AttackResult
from robustly.testing import check_part
from robustly.threats import parse_threat
from robustly.training import (
    INNER_MAXIMISERS,
    LABEL_SOURCES,
    LOSSES,
    PARAMETER_PARTS,
    WEIGHTS,
    AdversarialLoss,
    CompositeInner,
    GklInner,
    GklLoss,
    Labels,
    MailWeights,
    Method,
    MethodError,
    Moment,
    Part,
    PGDInner,
    Step,
    TafdLoss,
    Terms,
    WeightPerturbation,
)
from threads import one_thread  # noqa: F401 (used by every test here)

SETTINGS: dict[str, dict[str, Any]] = {
    **{name: {"steps": 2} for name in ("PGDInner", "AdaadInner", "CurriculumInner")},
    "FriendlyInner": {"steps": 3, "boundaries": (1.0, 2.0)},
    "FreeInner": {"replays": 2},
    **{name: {"begin": 1} for name in ("IadLoss", "Iad2Loss")},
    **{name: {"burn_in": 1} for name in ("GairatWeights", "MailWeights")},
    "WeightAverage": {"start": 1},
    "WeightPerturbation": {"proxy": "trades", "warm_up": 1.0},
}
TABLES = (LABEL_SOURCES, INNER_MAXIMISERS, LOSSES, WEIGHTS, PARAMETER_PARTS)
SHIPPED = [kind for table in TABLES for kind in table.values() if kind not in (GklInner, TafdLoss)]
"""Others need a loss of their own, or a network with domains (tests of TaFD)."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHIPPED)
def test_shipped_parts_keep_the_contract(kind: type[Part]) -> None:
    state = torch.get_rng_state()
    check_part(kind(**SETTINGS.get(kind.__name__, {})))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("kind", INNER_MAXIMISERS.values())
@pytest.mark.parametrize("threat", ["rotation:30", "rotation:30+linf:0.1"])
@pytest.mark.slow
def test_inner_maximisations_keep_the_contract_under_any_threat(kind: type[Part], threat: str) -> None:
    if kind is CompositeInner:  # it refuses a given order
        threat = threat.replace("+", "&")
    if kind is not GklInner:
        check_part(kind(**SETTINGS.get(kind.__name__, {})), threats=(parse_threat(threat),))


@pytest.mark.slow
def test_a_part_is_checked_in_the_method_that_it_needs() -> None:
    inner = GklInner(steps=2)
    with pytest.raises(MethodError, match="class prior of the gkl loss"):
        check_part(inner)
    check_part(inner, method=Method(inner=inner, loss=GklLoss()))
    with pytest.raises(AssertionError, match="does not contain the part GklInner"):
        check_part(inner, method=Method())
    with pytest.raises(MethodError, match=r"burn_in is 76\b.* run has 3\b"):
        check_part(MailWeights())


@pytest.mark.slow
@pytest.mark.usefixtures("forks")
@pytest.mark.parametrize(
    "method",
    [
        Method(inner=GklInner(steps=2, start="random"), loss=GklLoss(), parameters=(WeightPerturbation(),)),
        Method(inner=PGDInner(steps=2), loss=AdversarialLoss(), weights=MailWeights(burn_in=0, scale="mean_one")),
    ],
    ids=["gkl-awp", "mail"],
)
def test_shipped_parts_agree_over_two_processes(method: Method) -> None:
    check_part(method.weights or method.loss, method=method, processes=True)


# what is found


@dataclass(frozen=True)
class Loss(Part):
    """Squared clean logits, broken in one way."""

    fault: str
    hidden: list[int] = field(default_factory=list)

    @property
    def reads(self) -> tuple[str, ...]:
        return ("clean", "teacher@clean") if self.fault == "unread" else ("clean",)

    @property
    def networks(self) -> tuple[str, ...]:
        return ("teacher",) if self.fault in ("unread", "undeclared", "taught", "later") else ()

    def reads_at(self, moment: Moment) -> tuple[str, ...]:
        return (*self.reads, "teacher@clean") if self.fault == "later" else self.reads

    def __call__(self, step: Step) -> Terms:
        z = step.clean_logits
        term = z.square().sum(1)
        if self.fault == "scalar":
            return {"clean": term.mean()}
        if self.fault == "infinite":
            term = term + (0 * z[:, 0]).log()
        elif self.fault in ("undeclared", "later"):
            term = term + step.logits("teacher").sum(1)
        elif self.fault == "passes" and float(z.detach().abs().max()) < 1.5:  # the network of `step_cost` has more
            term = term + step.logits_at("model", step.x).sum(1)
        elif self.fault == "order":
            term = term * (1 + torch.arange(len(term)))
        elif self.fault == "hidden state":
            self.hidden.append(1)
            term = term * len(self.hidden)
        elif self.fault == "clock":
            step.remember(self)["time"] = torch.tensor(time.perf_counter())
        elif self.fault == "local mean":
            memory = step.remember(self)
            memory["mean"] = memory.get("mean", torch.zeros(())) + term.detach().mean()
        elif self.fault == "changed images":
            with torch.no_grad():
                step.x.add_(0.01)
        return {"clean": self._with_side_effects(term, step)}

    def _with_side_effects(self, term: Tensor, step: Step) -> Tensor:
        if self.fault == "written":
            term.sum().backward(retain_graph=True)
        elif self.fault == "images":
            step.x.requires_grad_()
            term = term + step.logits_at("model", step.x).sum(1) - step.logits_at("model", step.x).sum(1)
        elif self.fault == "taught":
            term = term + step.network("teacher").requires_grad_()(step.x).sum(1)
        elif self.fault == "modes":
            step.model.eval()
        elif self.fault == "requires_grad":
            next(step.model.parameters()).requires_grad_(False)
        elif self.fault == "statistics":
            step.model[2].track_running_stats = False  # type: ignore[index, union-attr]
        return term


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("scalar", r"the term 'clean' has the shape \(\), not \(8,\), by loss \(Loss\) in epoch 1"),
        ("infinite", "the term 'clean' is not finite"),
        ("undeclared", r"loss \(Loss\) reads the quantity 'teacher@clean' and declares clean"),
        ("unread", r"loss \(Loss\) declares teacher@clean and does not read it"),
        ("later", "has quantities in `reads_at` that are not in `reads`"),
        ("passes", "takes 2 forward passes of model, `step_cost` counts 1"),
        ("order", "the term 'clean' of an example depends on its place in the batch"),
        ("hidden state", "a resumed run ends with other weights than an uninterrupted one"),
        ("clock", "a resumed run ends with another memory than an uninterrupted one"),
        ("changed images", "changes images in place"),
        ("written", "writes .grad of model before the backward pass"),
        ("images", "leaves a gradient on the images"),
        ("taught", "a gradient reaches the frozen network teacher"),
        ("modes", "does not restore the modes of model"),
        ("requires_grad", "does not restore the requires_grad of model"),
        ("statistics", "does not restore the statistics of model"),
    ],
)
@pytest.mark.slow
def test_a_broken_loss_is_found(fault: str, sentence: str) -> None:
    check_part(Loss("none"))
    with pytest.raises(AssertionError, match=sentence):
        check_part(Loss(fault), order_free=fault != "hidden state")


def test_a_loss_that_depends_on_the_order_may_say_so() -> None:
    check_part(Loss("order"), order_free=False)


@pytest.mark.slow
def test_a_mean_over_one_process_is_found() -> None:
    with pytest.raises(AssertionError, match="two processes end with different memory"):
        check_part(Loss("local mean"), processes=True)


@dataclass(frozen=True)
class Source(Part):
    fault: str

    def __call__(self, step: Step) -> Labels:
        labels = Labels(step.y)
        hard = {"soft": step.y.double(), "few": step.y[:1]}.get(self.fault, step.y)
        object.__setattr__(labels, "hard", hard)  # past the checks of shapes that only tests have
        if self.fault == "terms":
            labels.terms["own"] = step.x.mean()
        return labels


@dataclass(frozen=True)
class Attack(Part):
    fault: str

    def __call__(self, step: Step) -> AttackResult:
        none = torch.zeros_like(step.y)
        x_adv = {
            "graph": step.x + 0.1 * step.logits_at("model", step.x).mean(),
            "shape": step.x[:, :, :2],
            "box": step.x + 0.1,
        }[self.fault]
        return AttackResult(x_adv, none.bool(), step.x.new_zeros(len(none)), *[none] * 3, none.bool())


@dataclass(frozen=True)
class Weights(Part):
    fault: str
    term: str = "adversarial"

    def __call__(self, step: Step) -> Tensor | None:
        return -torch.ones(len(step.y)) if self.fault == "negative" else torch.ones(())


@dataclass(frozen=True)
class Regulariser(Part):
    def extra_terms(self, step: Step) -> Terms:
        return {"decay": sum((p.square().sum() for p in step.model.parameters()), torch.zeros(()))}


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        (Source("soft"), "labels are torch.float64, not int64, by labels"),
        (Source("few"), r"labels have the shape \(1,\), not \(8,\)"),
        (Source("terms"), r"the term 'own' has the shape \(\)"),
        (Attack("graph"), r"adversarial images carry a graph by inner \(Attack\)"),
        (Attack("shape"), "adversarial images have another shape"),
        (Attack("box"), "adversarial images leave the box"),
        (Weights("negative"), r"weights are negative or not finite by weights \(Weights\)"),
        (Weights("shape"), r"weights have the shape \(\), not \(8,\)"),
        (Regulariser(), r"the term 'decay' has the shape \(\), not \(8,\), by parameters.Regulariser"),
    ],
)
def test_broken_parts_of_other_kinds_are_found(part: Part, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check_part(part)


def test_the_part_of_the_documentation_keeps_the_contract() -> None:
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "documentation"}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)  # noqa: S102
    assert names["method"].networks == ("guide",)
    check_part(names["ViewConsistency"]())
