"""Contract check of certificates."""

import torch
from torch import Tensor, nn

from robustly.attacks import PGD
from robustly.certification import Certificate, CertificateResult
from robustly.randomness import KeyedGenerator
from robustly.testing.networks import eval_logits, say
from robustly.threats.lp import ThreatModel


def check_certificate(certificate: Certificate, net: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> None:
    """Check the contract of a certificate: per example, deterministic, and true for random attempts.

    A proof about the model itself is also tested with random images and PGD inside its radius. One about another
    classifier (a smoothed one) cannot be refuted this way.

    Args:
        certificate: the certificate.
        net: a network that it can certify.
        x: images `(N, ...)`, N at least 2, in the box.
        y: labels `(N,)`.
        threat: the threat model with the norm of its radius.

    Raises:
        AssertionError: the first property that does not hold.
    """
    everything = torch.arange(len(x))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    result = certificate(net, x, y, threat=threat, generator=KeyedGenerator(1, everything))
    same = all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    say(same, "the certificate changes parameters or buffers of the model")
    say(modes == [module.training for module in net.modules()], "the certificate changes train or eval mode")
    again = certificate(net, x, y, threat=threat, generator=KeyedGenerator(1, everything))
    same = torch.equal(again.radius, result.radius) and torch.equal(again.prediction, result.prediction)
    say(same, "the same seed gives another certificate")
    say(
        result.radius.shape == (len(x),) and result.prediction.shape == (len(x),),
        "one radius and class per example",
    )
    say((result.radius >= 0).all(), "a certified radius is negative")
    rows = everything.flip(0)[: max(1, len(x) // 2)]
    part = certificate(net, x[rows], y[rows], threat=threat.select(rows), generator=KeyedGenerator(1, rows))
    same = torch.allclose(part.radius, result.radius[rows], rtol=1e-4, atol=1e-6)
    say(same, "the certificate depends on the other examples of the batch or their order")
    if certificate.certifies == "model":
        _check_truth(net, x, result, threat)


def _check_truth(net: nn.Module, x: Tensor, result: CertificateResult, threat: ThreatModel) -> None:
    """Check that no random point and no result of PGD just inside the radius changes the prediction."""
    proved = result.radius > 0
    certified = result.prediction
    predicted = eval_logits(net, x).argmax(1)
    say((predicted == certified)[proved].all(), "a certificate names another class than the model predicts")
    low, high = threat.box
    radius = (result.radius.to(x.dtype) * (1 - 1e-4)).clamp(max=(high - low) * x[0].numel())
    radius = radius.clamp(max=high - low) if threat.norm == "linf" else radius
    radius = result.radius.floor() if threat.norm == "l0" else radius
    rows = proved.nonzero()[:, 0]
    if len(rows) == 0:
        return
    inside = threat.with_epsilon(radius[rows])
    for seed in range(10):
        point = inside.around(x[rows]).random_start(KeyedGenerator(seed, rows))
        same = eval_logits(net, point).argmax(1) == certified[rows]
        say(same.all(), "a random image within the certified radius has another prediction")
    found = PGD(40, restarts=2)(net, x[rows], certified[rows], threat=inside, generator=KeyedGenerator(0, rows))
    say(not found.broken.any(), "PGD finds an adversarial example within the certified radius")
