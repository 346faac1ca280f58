"""Contract of certificates: arguments and result."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int8, Int64
from torch import Tensor, nn

from robustly.evidence import Verdict
from robustly.randomness import KeyedGenerator
from robustly.threats.lp import ThreatModel


@dataclass(frozen=True)
class CertificateResult:
    """The result of a certificate for N examples.

    Args:
        verdict: codes of `Verdict` for the statement "the label is predicted everywhere in the threat set", `(N,)`.
            `VERIFIED` needs the label as prediction and a radius of at least epsilon. `FALSIFIED` needs a
            counterexample, and is possible only for certificates of the model itself.
        radius: size up to which no allowed change alters the prediction, in the threat's norm, `(N,)`; 0 where
            nothing is proved.
        prediction: the class of which the radius speaks; -1 where the classifier abstains, `(N,)`.
        certifies: of which classifier the proof speaks; see `Certificate.certifies`.
        lower_bound: proved lower bound over the threat set, `(N,)`: of the margin z_y - max_{j != y} z_j, or for a
            smoothed classifier of the probability of the class; NaN where there is none. None if the method
            computes none.
        failure_probability: probability, per example, that the proof is wrong; 0 for a deterministic one.
        counterexample: images in the threat set that the model misclassifies, `(N, ...)`, in the rows with the
            verdict `FALSIFIED`; other rows are ignored. None if there are no such rows.
    """

    verdict: Int8[Tensor, " n"]
    radius: Float[Tensor, " n"]
    prediction: Int64[Tensor, " n"]
    certifies: str
    lower_bound: Float[Tensor, " n"] | None = None
    failure_probability: float = 0.0
    counterexample: Float[Tensor, "n ..."] | None = None


@runtime_checkable
class Certificate(Protocol):
    """A proof procedure. Its result for an example does not depend on the other examples of the batch."""

    @property
    def certifies(self) -> str:
        """Classifier that the proof is about: "model" for the attacked model itself, else a description.

        A bound on another classifier (the smoothed one) is reported, but never joined to an interval with attacks.
        """
        ...

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "n ..."],
        y: Int64[Tensor, " n"],
        *,
        threat: ThreatModel,
        generator: KeyedGenerator,
    ) -> CertificateResult:
        """Certify a batch; arguments as for an attack."""
        ...


def verdicts_of_radii(
    radius: Float[Tensor, " n"], prediction: Int64[Tensor, " n"], y: Int64[Tensor, " n"], threat: ThreatModel
) -> Int8[Tensor, " n"]:
    """The verdicts of a method that proves radii and finds no counterexamples: `VERIFIED` or `UNKNOWN`, `(N,)`."""
    epsilon = threat.epsilon
    reached = radius >= (epsilon.to(radius) if isinstance(epsilon, Tensor) else float(epsilon))
    verified = reached & (prediction == y)
    return torch.where(verified, int(Verdict.VERIFIED), int(Verdict.UNKNOWN)).to(torch.int8)
