"""Contract of certificates: arguments and result."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustly.randomness import KeyedGenerator
from robustly.threats.lp import ThreatModel


@dataclass(frozen=True)
class CertificateResult:
    """Result of a certificate for each of N examples.

    Args:
        prediction: the certified class `(N,)`.
        radius: largest distance, in the threat's norm, up to which no perturbation changes the prediction `(N,)`;
            0 where nothing is proved.
    """

    prediction: Int64[Tensor, " n"]
    radius: Float[Tensor, " n"]


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
