"""Forced routes: attacks on each branch of a network with threat domains, and on its router.

An adversary may move the route of an image, and the gradient of a hard route is a stand-in. A branch has exact
gradients; all results are checked on the network itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool
from torch import Tensor

from robustly.attacks.core.contract import Images, frozen
from robustly.attacks.route_pgd import RoutePGD
from robustly.evaluation.diagnostics.probe import Budget, Probe
from robustly.evaluation.diagnostics.significance import TOLERATED, Excess, tolerated_among
from robustly.evaluation.target import EvaluationTarget
from robustly.evidence import Finding
from robustly.models import TafdNetwork, forced
from robustly.models.adapter import unwrapped

FORCED_ROUTES = "forced_routes"
"""Id of the finding."""


@dataclass(frozen=True)
class Branch:
    """A network with all images routed through one domain. All numbers are shares of the images.

    Args:
        clean: accuracy of the branch.
        robust: accuracy of the branch under an attack on it.
        fooling: images on which the network itself errs at a result of that attack, by its own route.
        routed: clean images that the network routes to the domain.
        attacked_routed: last points of the attack on the branch that the network routes to the domain.
    """

    clean: float
    robust: float
    fooling: float
    routed: float
    attacked_routed: float


@dataclass(frozen=True)
class Routes:
    """A network with threat domains beside its branches. All numbers are shares of the images.

    Args:
        count: number of images.
        clean: accuracy of the network.
        robust: accuracy of the network under the same attack on the network itself.
        adaptive: accuracy under an attack on the class and the route together, `RoutePGD`.
        worst: accuracy under all of these attacks and the results of the attacks on all branches.
        branches: the branches, by domain.
    """

    count: int
    clean: float
    robust: float
    adaptive: float
    worst: float
    branches: tuple[Branch, ...]


def forced_routes(target: EvaluationTarget, *, count: int = 200, budget: Budget | None = None) -> Routes:
    """Attack a network with threat domains, and each of its branches; all results are checked on the network.

    Both are attacked by PGD on the cross-entropy with one random start and `budget.steps` steps. Of a branch, the
    first point that breaks it and the last point of all steps are checked. The network is also attacked by
    `RoutePGD` with as many steps for each scale.

    Args:
        target: a `TafdNetwork`, images, and the threat.
        count: number of images, from the first; at least 1.
        budget: its number of steps.

    Raises:
        ValueError: a network of another kind, or fewer than one image.
    """
    if count < 1:
        raise ValueError(f"forced routes need at least 1 image, got {count}")
    return _attacked(Probe(target, count, budget or Budget()))[0]


def broken_by_routes(
    target: EvaluationTarget, *, count: int = 200, budget: Budget | None = None
) -> Bool[Tensor, " n"]:
    """Mask of the images that the attacks of `forced_routes` on the branches and on the route break.

    Arguments and errors as there. Images that the network misclassifies without an attack may or may not be among
    them.
    """
    if count < 1:
        raise ValueError(f"forced routes need at least 1 image, got {count}")
    return _attacked(Probe(target, count, budget or Budget()))[1]


def has_domains(model: object) -> bool:
    """True for a network with threat domains."""
    return isinstance(unwrapped(model), TafdNetwork)


def forced_routes_break_no_more(probe: Probe) -> Finding:
    """Attacks on branches must not break images that attacks on the network do not break."""
    routes, fooled = _attacked(probe)
    further = int(fooled[probe.unbroken].sum())
    found = Excess(further, len(probe.unbroken), tolerated_among(len(probe.unbroken), probe.total, TOLERATED))
    words = [
        f"Attacks on the branches and the route break {further} of {len(probe.unbroken)} images that resist "
        f"gradients through the route {found.words}.",
        f"PGD-{probe.budget.steps} leaves {routes.robust:.1%} of {routes.count} images, PGD on class and route "
        f"{routes.adaptive:.1%}, together with the results on the branches {routes.worst:.1%}.",
        *(
            f"Domain {number}: {one.routed:.1%} of the clean images; forced for all, {one.clean:.1%} clean and "
            f"{one.robust:.1%} attacked."
            for number, one in enumerate(routes.branches)
        ),
    ]
    if not found.passed:
        words.append(
            "The route masks gradients: evaluate with the attack route_pgd and the worst case over the branches."
        )
    share, threshold = further / max(1, probe.total), f"not significantly above {TOLERATED:.0%} of all images"
    return Finding(
        FORCED_ROUTES, "forced routes break no further images", found.passed, share, threshold, " ".join(words)
    )


def _attacked(probe: Probe) -> tuple[Routes, Tensor]:
    """The numbers, and the mask of the images that attacks on branches or the route break, `(N,)`."""
    target, rows, labels = probe.target, probe.rows, probe.target.data.labels[probe.rows]
    network = unwrapped(target.model)
    if not isinstance(network, TafdNetwork):
        raise ValueError(
            f"forced routes need a network with threat domains, such as tafd_resnet18, not {type(network).__name__}"
        )
    right = torch.isin(rows, probe.correct)
    robust = right.clone()
    robust[right] = ~probe.broken_by_pgd
    fooled, branches = torch.zeros_like(right), list[Branch]()
    routed = _domains(network, target, target.data.floats(rows))
    for domain in range(network.domains):
        branch = Probe(replace(target, model=forced(network, domain)), probe.count, probe.budget)
        held = torch.isin(rows, branch.correct)
        broken, images = branch.attack(branch.pgd(), f"forced {domain}", rows)
        # the first broken point need not lie on the route of the branch
        _, final = branch.attack(branch.pgd(keep="last"), f"forced {domain}", rows)
        wrong = ~_is_right(target, images, labels) | ~_is_right(target, final, labels)
        fooled |= wrong
        branches.append(
            Branch(
                *(_share(held), _share(held & ~broken), _share(wrong), _share(routed == domain)),
                attacked_routed=_share(_domains(network, target, final) == domain),
            )
        )
    _, moved = probe.attack(RoutePGD(probe.budget.steps), "route", rows)
    adaptive = right & _is_right(target, moved, labels)
    fooled |= right & ~adaptive
    worst = robust & ~fooled
    shares = _share(right), _share(robust), _share(adaptive), _share(worst)
    return Routes(len(rows), *shares, tuple(branches)), fooled


def _domains(network: TafdNetwork, target: EvaluationTarget, images: Images) -> Tensor:
    """Domains to which a network routes images."""
    with frozen(network), torch.no_grad():
        found = [network.domain_logits(part).argmax(1) for part in torch.split(images, target.batch_size)]
    return torch.cat(found)


def _is_right(target: EvaluationTarget, images: Images, labels: Tensor) -> Tensor:
    """Mask of images that the network classifies correctly."""
    parts: Sequence[tuple[Tensor, Tensor]] = list(
        zip(torch.split(images, target.batch_size), torch.split(labels, target.batch_size), strict=True)
    )
    logits = torch.cat([target.verdict(*part) for part in parts])
    return (logits.argmax(1) == labels) & logits.isfinite().all(1)


def _share(mask: Tensor) -> float:
    return float(mask.double().mean())
