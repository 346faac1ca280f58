"""The sentence on the cost of an evaluation before it starts."""

from torch import nn

from robustly.attacks.core.contract import frozen
from robustly.certification import Certificate, InStages, Prepares
from robustly.data import ImageData
from robustly.evaluation.batch_size import FEW, pass_seconds
from robustly.evaluation.suites.cost import announced_cost
from robustly.evaluation.suites.suite import Suite
from robustly.threats import Threat, ThreatModel, allows_nothing


def announcement(model: nn.Module, data: ImageData, threat: Threat, suite: Suite) -> str:
    """Passes and time that an evaluation takes at most, by a few timed passes and bounds.

    Args:
        model: the model.
        data: the images, on the model's device.
        threat: the threat.
        suite: the suite.
    """
    cost = announced_cost(suite, threat, len(data), data.num_classes, data.images[:1].numel())
    first = data.first(FEW)
    with frozen(model):
        seconds = pass_seconds(model, first) / max(len(first), 1)
    attacks = (
        f"suite {suite.name}: at most {cost.total:,} passes for {len(data):,} images, {cost.per_image:,.0f} for "
        f"each, if no attack breaks any; about {_duration(cost.seconds(seconds))} here, less with each success"
    )
    proofs = [_proofs(model, data, threat, name, one) for name, one in suite.certificates.items()]
    empty = f"! {threat} allows no change: its accuracy is that without an attack" if allows_nothing(threat) else ""
    return "\n".join(filter(None, [empty, attacks if suite.attacks else "", *proofs]))


def _proofs(model: nn.Module, data: ImageData, threat: Threat, name: str, certificate: Certificate) -> str:
    """A sentence on the time of a certificate; empty if it states none, or will be refused."""
    if not isinstance(certificate, Prepares) or not isinstance(threat, ThreatModel):
        return ""
    first = data.first(1)
    try:
        with frozen(model):
            ready = certificate.prepared(model, first, threat=threat)
            if not isinstance(ready, InStages):
                return ""
            seconds = len(data) * ready.expected_seconds(first, threat=threat)
    except ValueError:
        return ""
    words = f"certificate {name}: about {_duration(seconds)} at most here for the bounds of {len(data):,} images"
    if ready.seconds == 0:
        return words
    limit = "without a time limit" if ready.seconds is None else f"{_duration(ready.seconds)} at most"
    return f"{words}; then branch and bound of the open ones, {limit}"


def _duration(seconds: float) -> str:
    """A duration with one unit."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
