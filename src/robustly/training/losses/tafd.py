"""Outer loss of TaFD: experts by the domain of each threat, and a router that learns these domains."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustly.models import TafdNetwork
from robustly.threats import Threat, short_names
from robustly.training.losses.terms import check_positive, check_share, label_loss
from robustly.training.parts import Composition, Part, Terms
from robustly.training.step import Labels, Step
from robustly.training.threat_domains import FEATURES, clustered, dealt, spectral_descriptor

Assignment = Literal["spectra", "random"]


@dataclass(frozen=True)
class TafdLoss(Part):
    """(1 - ratio) CE(z, y) + ratio mean_i CE(z'_i, y) + router mean_i CE(r'_i, d_i) over the threats i: TaFD.

    z'_i are the logits of the images that were attacked under threat i, routed through its domain d_i, and r'_i
    their router logits; the router is trained by its own term alone. All threats are in one forward pass. z are the
    logits of the clean images, which have no domain, by the router's choice. Xie, He and Fang, "TaFD" (arXiv
    2606.17540), after the released code; its batches have no clean images (ratio 1).

    Diagnosis, the first stage: in the first `diagnosis` of the epochs, every `every` steps, a moving average of
    each threat's mean spectral descriptor is updated, and the domains are clusters of these prototypes (see
    `robustly.training.threat_domains`). Dispatch, the second stage: the domains are fixed. Experts and router learn
    in both. Prototypes and domains are kept in every checkpoint.

    A network with random domains (an ablation) has no router to train: attacked images go through the domains that
    its fixed router chooses, and there is no term of the router.

    With the assignment "random" (another ablation), the domain of each threat is drawn once from the run's seed,
    and there is no diagnosis: the router learns domains that have nothing to do with the spectra.

    Columns of `metrics.csv` for each threat: `train_robust_accuracy_NAME`, `router_accuracy_NAME` (share of the
    attacked images for which the router, in train mode, finds the domain) and `domain_NAME`.

    Args:
        ratio: share of the adversarial term, in (0, 1]; with m / (m + 1) clean images weigh as much as those of one
            of m threats.
        router: weight of the router's term, positive; 1 there.
        diagnosis: share of the epochs in which the domains may change, in [0, 1]; 10 of 76 epochs there.
        every: steps from one update of the prototypes to the next, at least 1; 50 there.
        momentum: of the moving averages, in [0, 1); 0.99 there.
        assignment: the domains of the threats: by their "spectra", or "random" and fixed.

    Raises:
        ValueError: a setting out of range.
    """

    needs_inner = True
    joins_attacks = True

    ratio: float = 0.75
    router: float = 1.0
    diagnosis: float = 0.15
    every: int = 50
    momentum: float = 0.99
    assignment: Assignment = "spectra"

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio must lie in (0, 1], got {self.ratio}")
        check_positive(router=self.router)
        check_share("diagnosis", self.diagnosis)
        if self.every < 1:
            raise ValueError(f"every must be at least 1 step, got {self.every}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum}")

    @property
    def reads(self) -> tuple[str, ...]:
        """Logits of the terms that have weight."""
        return (*(("undirected",) if self.ratio < 1 else ()), "dispatched", "domains")

    @property
    def own_quantities(self) -> Mapping[str, Callable[[Step], Tensor]]:
        """Logits of clean images by the router, of attacked images by their domains, and the router's of these."""
        own = {"undirected": _undirected, "dispatched": self._dispatched, "domains": _domain_logits}
        return {name: own[name] for name in self.reads}

    def check(self, method: Composition) -> str | None:
        """Refuse a training attack that has no result for each threat."""
        inner = method.inner
        if inner is not None and type(inner).further_attacks is not Part.further_attacks:
            return None
        return "the loss uses the attacks under all threats: set method.inner to avg"

    def check_model(self, model: nn.Module, threats: tuple[Threat, ...]) -> str | None:
        """Refuse a network without domains, and fewer threats than domains."""
        if not isinstance(model, TafdNetwork):
            return (
                "the loss trains a network with threat domains: set model.name to tafd_resnet18 or tafd_small_cnn, "
                "or method.loss to mixture"
            )
        if len(threats) < model.domains:
            return f"the network has {model.domains} domains: set threats to at least as many, not {len(threats)}"
        if model.has_random_domains and self.assignment == "random":
            return (
                "a network with random domains has no domains of threats: leave out model.ablation, or set "
                "method.loss.assignment to spectra"
            )
        return None

    def check_sharding(self) -> str | None:
        """Refuse weights in shards, which are collected at the network's ordinary forward pass."""
        return "calls router and experts of the network apart from its forward pass"

    def __call__(self, step: Step) -> Terms:
        """Return the terms "adversarial", "router" and, if it has weight, "clean"."""
        count = len(step.threats)
        labels = Labels(step.labels.hard.repeat(count), smoothing=step.labels.smoothing)
        adversarial = label_loss(step.quantity("dispatched"), labels)
        terms: Terms = {"adversarial": self.ratio * _mean(adversarial, count)}
        if self.ratio < 1:
            terms["clean"] = (1 - self.ratio) * label_loss(step.quantity("undirected"), step.labels)
        if isinstance(step.model, TafdNetwork) and step.model.has_random_domains:
            return terms
        own = F.cross_entropy(step.quantity("domains"), self._domain_of_each(step), reduction="none")
        return terms | {"router": self.router * _mean(own, count)}

    def after_backward(self, step: Step) -> None:
        """Note the columns, and update prototypes and domains where they are due."""
        clean = step.quantities.computed("undirected")
        if clean is not None:
            step.note("train_clean_accuracy", clean.argmax(1) == step.y)
        if isinstance(step.model, TafdNetwork):
            self._note_threats(step, self._domains(step))
            self._update(step, step.model.domains)

    def _note_threats(self, step: Step, domains: Int64[Tensor, " m"]) -> None:
        """Note for each threat the accuracy, that of the router, and the domain."""
        logits, routes = step.quantities.computed("dispatched"), step.quantities.computed("domains")
        assert logits is not None
        assert routes is not None
        shape = len(step.threats), len(step.y)
        correct = logits.argmax(1).view(shape) == step.y
        routed = routes.argmax(1).view(shape) == domains[:, None]
        step.note("train_robust_accuracy", correct.double().mean(0))
        for number, name in enumerate(short_names(step.threats)):
            step.note(f"train_robust_accuracy_{name}", correct[number])
            step.note(f"router_accuracy_{name}", routed[number])
            step.note(f"domain_{name}", domains[number].expand(len(step.y)))

    def _update(self, step: Step, count: int) -> None:
        """Move the prototypes and cluster them anew, if that is due."""
        memory, moment = step.remember(self), step.moment
        if self.assignment == "random":
            return
        if moment.time < self.diagnosis * moment.epochs and moment.count % self.every == 0:
            kept = self.momentum * memory["prototypes"]
            memory["prototypes"] = kept + (1 - self.momentum) * _descriptors(step)
            memory["domains"] = clustered(memory["prototypes"], count, memory["domains"])

    def _domains(self, step: Step) -> Int64[Tensor, " m"]:
        """Domain of each threat; at first, from the descriptors of this batch, or drawn."""
        memory = step.remember(self)
        if "domains" not in memory:
            assert isinstance(step.model, TafdNetwork)
            if self.assignment == "random":
                memory["domains"] = dealt(len(step.threats), step.model.domains, step.seed).to(step.y.device)
                return memory["domains"]
            memory["prototypes"] = _descriptors(step)
            memory["domains"] = clustered(memory["prototypes"], step.model.domains)
        return memory["domains"]

    def _domain_of_each(self, step: Step) -> Int64[Tensor, " mn"]:
        """Domains of the attacked images of all threats, in their order."""
        if not isinstance(step.model, TafdNetwork):
            return step.y.new_zeros(len(step.threats) * len(step.y))
        return self._domains(step).repeat_interleave(len(step.y))

    def _dispatched(self, step: Step) -> Tensor:
        """Logits `(mN, classes)` of the attacked images of all threats."""
        images = attacked_images(step)
        if not isinstance(step.model, TafdNetwork):  # a stand-in, on which passes are counted
            return step.logits_at("model", images)
        if step.model.has_random_domains:
            return step.model.dispatched(images, step.model.domain_logits(images).argmax(1))
        return step.model.dispatched(images, self._domain_of_each(step))


def attacked_images(step: Step) -> Float[Tensor, "mn ..."]:
    """Images of a step under the attack of each threat, one after the other."""
    return torch.cat([step.adversarial.x_adv, *(found.x_adv for found in step.further_attacks)])


def _undirected(step: Step) -> Tensor:
    """Logits of the clean images by the router's choice, without gradient to the router."""
    if not isinstance(step.model, TafdNetwork):
        return step.logits_at("model", step.x)
    with torch.no_grad():
        domains = step.model.domain_logits(step.x).argmax(1)
    return step.model.dispatched(step.x, domains)


def _domain_logits(step: Step) -> Tensor:
    images = attacked_images(step)
    if not isinstance(step.model, TafdNetwork):
        return images.flatten(1)[:, :1]
    return step.model.domain_logits(images)


def _descriptors(step: Step) -> Float[Tensor, "m f"]:
    """Mean descriptor of the attacked images of each threat, over all processes."""
    found = spectral_descriptor(attacked_images(step)).view(len(step.threats), len(step.y), FEATURES)
    return torch.stack([torch.stack([step.batch_mean(one) for one in rows.unbind(1)]) for rows in found])


def _mean(values: Float[Tensor, " mn"], count: int) -> Float[Tensor, " n"]:
    return values.view(count, -1).mean(0)
