"""Gradient ascent against networks that choose a route for each image: it also moves the route (TaFD)."""

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustly.attacks.core.ascent import Ascent
from robustly.attacks.core.contract import ANY_THREAT, AttackError, AttackResult, Images, Needs
from robustly.attacks.core.run_search import run_search
from robustly.attacks.core.search import Precision, Search
from robustly.attacks.pgd import PGD
from robustly.models.tafd import TafdNetwork, routed_network
from robustly.objectives import ClassificationGoal, Goal, cross_entropy
from robustly.randomness import KeyedGenerator
from robustly.threats.contract import Threat

LEAST_FACTOR, LARGEST_FACTOR = 0.1, 10.0


def route_margin(domain_logits: Float[Tensor, "n d"], clean: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Largest domain logit of another domain than that of the clean image, less the logit of that domain.

    It is positive where the route has left the domain of the clean image, and zero for a single domain.

    Args:
        domain_logits: of a router at some images.
        clean: of the same router at the clean images.
    """
    own = clean.argmax(1, keepdim=True)
    if domain_logits.shape[1] < 2:
        return domain_logits.sum(1) * 0
    others = domain_logits.scatter(1, own, -torch.inf).amax(1)
    return others - domain_logits.gather(1, own)[:, 0]


def with_route(loss: Float[Tensor, " n"], margin: Float[Tensor, " n"], scale: float) -> Float[Tensor, " n"]:
    """loss + scale * w * margin with w = |loss| / |margin| in [0.1, 10], without gradient to w.

    The factor w makes both parts of one size, so that one scale suits all images (the TaFD code's adaptive attack).
    """
    factor = loss.detach().abs() / margin.detach().abs().clamp_min(torch.finfo(margin.dtype).tiny)
    return loss + scale * factor.clamp(LEAST_FACTOR, LARGEST_FACTOR) * margin


@dataclass(frozen=True)
class RoutePGD:
    """Projected gradient ascent on the cross-entropy and the margin of the router, with several weights of it.

    The adaptive attack on TaFD networks (Xie, He and Fang, arXiv 2606.17540, released code): an image may be moved
    to a domain whose expert errs on it. The objective is `with_route` of the cross-entropy and `route_margin`. Each
    scale is a random start of its own, and attacks the images that those before it left unbroken. The gradient of
    the cross-entropy is that of the network's soft route. A network without a router has no such margin: on it the
    attack is `PGD` with as many restarts as scales.

    A robust example costs 1 + scales * (steps + 1) forward and scales * steps backward passes; those of the router
    alone, once more in each step, are not counted.

    Args:
        steps: gradient steps for each scale, at least 1.
        scales: weights of the router's margin, at least one, each at least 0; 0 is `PGD`.
        relative_step_size: length of a step as a share of the threat's size; None for the threat's own default.
        precision: "full", "ambient" or "bfloat16"; see `PGD`.

    Raises:
        AttackError: a setting that is out of range; at a call, a goal that is not one of classification.
    """

    needs: ClassVar[Needs] = ANY_THREAT
    minimum_norm: ClassVar[bool] = False

    steps: int = 20
    scales: tuple[float, ...] = (0.0, 0.1, 1.0, 10.0)
    relative_step_size: float | None = None
    precision: Precision = "full"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise AttackError(f"steps must be at least 1, got {self.steps}")
        if not self.scales or not all(0 <= scale < float("inf") for scale in self.scales):
            raise AttackError(f"scales must be numbers of at least 0, at least one of them, got {self.scales}")
        PGD(self.steps, relative_step_size=self.relative_step_size)  # refuses what is not a length

    def __call__(
        self,
        model: nn.Module,
        x: Images,
        y: Int64[Tensor, " n"] | Goal,
        *,
        threat: Threat,
        generator: KeyedGenerator,
    ) -> AttackResult:
        """Attack a batch; see `Attack`."""
        return run_search(
            partial(self._run, routed_network(model)),
            model,
            x,
            y,
            threat=threat,
            generator=generator,
            needs=self.needs,
            precision=self.precision,
            by_margin=True,
        )

    def _run(self, network: TafdNetwork | None, search: Search, generator: KeyedGenerator) -> None:
        goal = search.goal
        if not isinstance(goal, ClassificationGoal):
            raise AttackError(f"the attack is for goals of classification, not {type(goal).__name__}")
        if network is not None:
            with torch.no_grad():
                goal = replace(goal, reference=_domains(network, search.x))
        settings = PGD(self.steps, relative_step_size=self.relative_step_size)
        for number, scale in enumerate(self.scales):
            rows = search.unbroken
            if len(rows) == 0:
                return

            def value_at(images: Images, output: Tensor, goal: Goal, scale: float = scale) -> Float[Tensor, " m"]:
                assert isinstance(goal, ClassificationGoal)
                loss = cross_entropy(output, goal)
                if network is None or scale == 0:
                    return loss
                assert goal.reference is not None
                return with_route(loss, route_margin(_domains(network, images), goal.reference), scale)

            draws = generator.select(rows).fold("restart", number)
            start = settings.started(search.threat_set.select(rows), draws)
            ascent = Ascent(
                self.steps,
                cross_entropy,
                lambda step, threat_set: settings.step_sizes(threat_set),
                value_at=value_at,
            )
            ascent.run(search, rows, start, goal.select(rows), draws)


def _domains(network: TafdNetwork, images: Images) -> Float[Tensor, "n d"]:
    """Domain logits of a network, in the type of its weights."""
    weight = next(network.body.parameters(), images)
    found = network.domain_logits(images.to(weight.dtype))
    return found.float() if found.dtype in (torch.float16, torch.bfloat16) else found
