"""Contract check of certificates."""

import torch
from torch import Tensor, nn

from robustly.attacks import PGD
from robustly.certification import Certificate, CertificateResult, ChecksModel, ProvesAgain, Verdict
from robustly.evaluation.recording import STAGE
from robustly.randomness import KeyedGenerator
from robustly.testing.networks import eval_logits, require
from robustly.threats.lp import ThreatModel


def check_certificate(certificate: Certificate, net: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> None:
    """Check a certificate against its contract: per example, deterministic, consistent, and not refuted.

    With twice the work it must verify what it verified, if it can be repeated with more work.

    A proof about the model itself is also tested with random images and PGD inside its radius, and its
    counterexamples are classified again. A proof about another classifier (a smoothed one) cannot be refuted in
    this way.

    Args:
        certificate: the certificate.
        net: a network that it can certify.
        x: images `(N, ...)`, N at least 2, in the box.
        y: labels `(N,)`.
        threat: the threat model; its radii are in the norm of it.

    Raises:
        AssertionError: the first property that does not hold.
    """
    everything = torch.arange(len(x))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    result = certificate(net, x, y, threat=threat, generator=KeyedGenerator(1, everything))
    same = all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    require(same, "the certificate changes parameters or buffers of the model")
    require(modes == [module.training for module in net.modules()], "the certificate changes train or eval mode")
    again = certificate(net, x, y, threat=threat, generator=KeyedGenerator(1, everything))
    same = all(
        torch.equal(getattr(again, name), getattr(result, name)) for name in ("verdict", "radius", "prediction")
    )
    require(same, "the same seed gives another certificate")
    require(
        result.certifies == certificate.certifies, "the result speaks of another classifier than the certificate"
    )
    _check_form(result, x, y, threat)
    rows = everything.flip(0)[: max(1, len(x) // 2)]
    part = certificate(net, x[rows], y[rows], threat=threat.select(rows), generator=KeyedGenerator(1, rows))
    same = torch.allclose(part.radius, result.radius[rows], rtol=1e-4, atol=1e-6)
    require(same, "the certificate depends on the other examples of the batch or their order")
    _check_again(certificate, net, x, y, result, threat)
    if certificate.certifies == "model":
        _check_counterexamples(net, x, y, result, threat)
        _check_truth(net, x, result, threat)


def _check_form(result: CertificateResult, x: Tensor, y: Tensor, threat: ThreatModel) -> None:
    """Shapes, ranges, and verdicts that follow from the rest."""
    shape = (len(x),)
    shapes = {result.verdict.shape, result.radius.shape, result.prediction.shape}
    require(shapes == {shape}, "one verdict, radius and class per example")
    require(result.verdict.dtype == torch.int8, "verdicts are codes of Verdict in int8")
    codes = torch.tensor([int(one) for one in Verdict], dtype=torch.int8)
    require(torch.isin(result.verdict.cpu(), codes).all(), "a verdict is not one of Verdict")
    require((result.radius >= 0).all(), "a certified radius is negative or NaN")
    require(0 <= result.failure_probability < 1, "the failure probability is not in [0, 1)")
    if result.lower_bound is not None:
        require(result.lower_bound.shape == shape, "one lower bound per example")
    if result.work is not None:
        require(result.work.shape == shape and (result.work >= 0).all(), "one non-negative work per example")
    odd = [name for name in result.stage or () if not STAGE.fullmatch(name)]
    require(not odd, f"the name of a stage is not up to 40 letters, digits, spaces and +-_.: {odd[:1]}")
    verified, falsified = result.verdict == Verdict.VERIFIED, result.verdict == Verdict.FALSIFIED
    epsilon = threat.epsilon
    reached = result.radius >= (epsilon.to(result.radius) if isinstance(epsilon, Tensor) else float(epsilon))
    require((result.prediction == y)[verified].all(), "a verified example has another class than its label")
    require(reached[verified].all(), "a verified example has a radius below epsilon")
    if falsified.any():
        require(result.certifies == "model", "only a certificate of the model itself can falsify")
        shown = result.counterexample is not None and result.counterexample.shape == x.shape
        require(shown, "a falsified example has no counterexample")


def _check_again(
    certificate: Certificate, net: nn.Module, x: Tensor, y: Tensor, result: CertificateResult, threat: ThreatModel
) -> None:
    """The model passes the certificate's own check, and more work proves at least as much."""
    if isinstance(certificate, ChecksModel):
        certificate.check(net, x, threat=threat)
    if not isinstance(certificate, ProvesAgain):
        return
    harder = certificate.again(2)
    again = harder(net, x, y, threat=threat, generator=KeyedGenerator(1, torch.arange(len(x))))
    require(again.certifies == result.certifies, "with more work it speaks of another classifier")
    verified, kept = result.verdict == Verdict.VERIFIED, again.verdict == Verdict.VERIFIED
    require(kept[verified].all(), "with more work it does not verify an example that it verified")
    shorter = again.radius < result.radius * (1 - 1e-6)
    require(not shorter.any(), "with more work a certified radius is shorter")


def _check_counterexamples(
    net: nn.Module, x: Tensor, y: Tensor, result: CertificateResult, threat: ThreatModel
) -> None:
    """Counterexamples lie in the threat set and are misclassified."""
    rows = (result.verdict == Verdict.FALSIFIED).nonzero()[:, 0]
    if result.counterexample is None or len(rows) == 0:
        return
    found = result.counterexample[rows]
    low, high = threat.box
    inside = threat.select(rows).contains(found, x[rows]).all() & (found >= low).all() & (found <= high).all()
    require(inside, "a counterexample lies outside the threat set")
    require((eval_logits(net, found).argmax(1) != y[rows]).all(), "a counterexample is classified correctly")


def _check_truth(net: nn.Module, x: Tensor, result: CertificateResult, threat: ThreatModel) -> None:
    """Random points and PGD just inside the radius do not change the prediction."""
    proved = result.radius > 0
    stated = result.prediction
    predicted = eval_logits(net, x).argmax(1)
    require((predicted == stated)[proved].all(), "a certificate names another class than the model predicts")
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
        same = eval_logits(net, point).argmax(1) == stated[rows]
        require(same.all(), "a random image within the certified radius has another prediction")
    found = PGD(40, restarts=2)(net, x[rows], stated[rows], threat=inside, generator=KeyedGenerator(0, rows))
    require(not found.broken.any(), "PGD finds an adversarial example within the certified radius")
