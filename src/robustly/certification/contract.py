"""What every certificate takes and gives back."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustly.randomness import KeyedGenerator
from robustly.threats.lp import ThreatModel


@dataclass(frozen=True)
class CertificateResult:
    """What was proved about each of N examples.

    Args:
        prediction: the class that holds `(N,)`.
        radius: up to which distance, in the threat's norm, no allowed change alters the prediction `(N,)`; 0 where
            nothing is proved.
    """

    prediction: Int64[Tensor, " n"]
    radius: Float[Tensor, " n"]


@runtime_checkable
class Certificate(Protocol):
    """A proof procedure; what it says of an example depends on no other example of the batch."""

    @property
    def certifies(self) -> str:
        """Which classifier the proof speaks of: "model" for the very model that is attacked, else its description.

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
