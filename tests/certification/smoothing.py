"""A certificate that came later: randomised smoothing (Cohen, Rosenfeld and Kolter, ICML 2019)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustly.attacks.core.contract import frozen
from robustly.certification import CertificateResult, verdicts_of_radii
from robustly.randomness import KeyedGenerator
from robustly.threats.lp import ThreatModel

ABSTAIN = -1


def lower_confidence_bound(hits: Tensor, count: int, failure_probability: float) -> Tensor:
    """One-sided Clopper-Pearson bound: the p at which P(Binomial(count, p) >= hits) is the failure probability."""
    k = torch.arange(count + 1, dtype=torch.float64)
    ways = torch.lgamma(k[-1] + 1) - torch.lgamma(k + 1) - torch.lgamma(k[-1] - k + 1)
    low, high = torch.zeros(len(hits), dtype=torch.float64), torch.ones(len(hits), dtype=torch.float64)
    for _ in range(60):
        p = ((low + high) / 2)[:, None]
        logs = ways + k * p.log() + (count - k) * (-p).log1p()
        tail = logs.masked_fill(k < hits[:, None], -torch.inf).logsumexp(1).exp()
        low, high = (
            torch.where(tail < failure_probability, p[:, 0], low),
            torch.where(tail < failure_probability, high, p[:, 0]),
        )
    return torch.where(hits == 0, 0.0, low)


@dataclass(frozen=True)
class Smoothing:
    """CERTIFY of the paper: with probability 1 - failure_probability the smoothed prediction holds in the radius.

    Args:
        sigma: standard deviation of the noise.
        selection: noisy copies that choose the class.
        samples: noisy copies that bound its probability.
        failure_probability: per example.
        certifies: "model" only for a model that is its own smoothing, such as a half-space.
    """

    sigma: float = 0.25
    selection: int = 20
    samples: int = 200
    failure_probability: float = 0.001
    certifies: str = "the model smoothed with Gaussian noise"

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, threat: ThreatModel, generator: KeyedGenerator
    ) -> CertificateResult:
        if threat.norm not in ("l2", "linf"):
            raise ValueError(f"smoothing with Gaussian noise certifies l2 and linf, the threat is {threat}")
        with frozen(model), torch.no_grad():
            chosen = self._counts(model, x, generator.fold("selection"), self.selection).argmax(1)
            counts = self._counts(model, x, generator.fold("estimation"), self.samples)
        hits = counts.gather(1, chosen[:, None])[:, 0].cpu()
        share = lower_confidence_bound(hits, self.samples, self.failure_probability).to(x.device)
        radius = self.sigma * torch.special.ndtri(share.clamp_min(0.5)).float()
        radius = radius / x[0].numel() ** 0.5 if threat.norm == "linf" else radius
        prediction = torch.where(share > 0.5, chosen, ABSTAIN)
        return CertificateResult(
            verdict=verdicts_of_radii(radius, prediction, y, threat),
            radius=radius,
            prediction=prediction,
            certifies=self.certifies,
            lower_bound=share.float(),
            failure_probability=self.failure_probability,
        )

    def _counts(self, model: nn.Module, x: Tensor, generator: KeyedGenerator, samples: int) -> Tensor:
        votes = 0
        for sample in range(samples):
            noise = generator.fold(sample).normal(*x.shape[1:]).to(x)
            logits = model(x + self.sigma * noise)
            votes = votes + nn.functional.one_hot(logits.argmax(1), logits.shape[1])
        return torch.as_tensor(votes)
