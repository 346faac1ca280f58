"""A certificate in stages that is exact on the half-space: its work grows as images come nearer to the boundary."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from half_space import across, distance
from robustly.certification import CertificateResult, Verdict
from robustly.certification.network import UnsupportedOperationError
from robustly.randomness import KeyedGenerator
from robustly.threats.lp import ThreatModel

SPENT = "the budget of work is spent"


@dataclass(frozen=True)
class StagedCertificate:
    """An attack, two bounds and a search; the search needs `10 / (1 - epsilon / distance)` units of work.

    Args:
        budget: largest work for an example; those that need more stay unknown.
        certifies: see `Certificate`.
        inflated: factor on the distances, for proofs that are wrong.
    """

    budget: int = 100
    certifies: str = "model"
    inflated: float = 1.0

    def check(self, model: nn.Module, x: Tensor, *, threat: ThreatModel) -> None:
        if not isinstance(model[-1], nn.Linear):  # type: ignore[index]
            raise UnsupportedOperationError("the operation 'spiral' of the model is not supported")

    def again(self, work_factor: int) -> "StagedCertificate":
        return StagedCertificate(self.budget * work_factor, self.certifies)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, threat: ThreatModel, generator: KeyedGenerator
    ) -> CertificateResult:
        epsilon = threat.epsilon.double() if isinstance(threat.epsilon, Tensor) else float(threat.epsilon)
        prediction, far = model(x).detach().argmax(1), distance(model, x)[0].double() * self.inflated
        correct, apart = prediction == y, 1 - epsilon / far
        stage = torch.where(apart > 0.5, 1, torch.where(apart > 0.25, 2, 3))
        work = torch.where(stage == 3, (10 / apart.clamp_min(1e-3)).ceil().long(), stage)
        found = ~correct | (far <= 0.95 * epsilon)
        verified = ~found & (apart > 1e-6) & (work <= self.budget)
        stage, work = torch.where(found, 0, stage), torch.where(found, 1, work.clamp_max(self.budget))
        verdict = torch.where(found, int(Verdict.FALSIFIED), int(Verdict.UNKNOWN))
        open_ = (~found & ~verified).tolist()
        outputs = model(x).detach().double()
        margin = (2 * outputs.gather(1, y.unsqueeze(1)) - outputs.sum(1, keepdim=True)).squeeze(1)  # of two classes
        bound = margin - margin.abs() * epsilon / far
        return CertificateResult(
            verdict=torch.where(verified, int(Verdict.VERIFIED), verdict).to(torch.int8),
            radius=torch.where(verified, epsilon, 0.0).double(),
            prediction=prediction,
            certifies=self.certifies,
            lower_bound=torch.where(found, -margin.abs(), bound),
            counterexample=across(model, x, y, epsilon),
            stage=tuple(("attack", "ibp", "crown", "branch")[i] for i in stage.tolist()),
            reason=tuple(SPENT if is_open else "" for is_open in open_),
            work=work,
            seconds=work.double() / 1000,
        )
