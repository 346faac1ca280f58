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
        stage: name of the method that decided each example, or of the last one tried, such as "attack", "crown" or
            "branch"; N names, None if the certificate has one method only.
        reason: for each open example, the cause in words; N texts, empty where the example is decided. Few distinct
            ones, without numbers of the example, because reports count them. None if there are none.
        work: work spent on each example, in bounded domains or samples, `(N,)`; None if it is not counted.
        seconds: time spent on each example, `(N,)`; None if it is not measured. Reported, never audited.

    Raises:
        ValueError: stages or reasons are not one for each example.
    """

    verdict: Int8[Tensor, " n"]
    radius: Float[Tensor, " n"]
    prediction: Int64[Tensor, " n"]
    certifies: str
    lower_bound: Float[Tensor, " n"] | None = None
    failure_probability: float = 0.0
    counterexample: Float[Tensor, "n ..."] | None = None
    stage: tuple[str, ...] | None = None
    reason: tuple[str, ...] | None = None
    work: Int64[Tensor, " n"] | None = None
    seconds: Float[Tensor, " n"] | None = None

    def __post_init__(self) -> None:
        for name in ("stage", "reason"):
            words = getattr(self, name)
            if words is not None and len(words) != len(self.verdict):
                raise ValueError(f"{name} has {len(words)} texts for {len(self.verdict)} examples")


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


@runtime_checkable
class ChecksModel(Protocol):
    """A certificate with a check of the model before any work."""

    def check(self, model: nn.Module, x: Float[Tensor, "n ..."], *, threat: ThreatModel) -> None:
        """Refuse what the certificate does not support.

        Args:
            model: the model.
            x: a few images `(N, ...)`, for their shape.
            threat: the threat model.

        Raises:
            ValueError: an operation of the model or the threat is not supported; the message is one sentence.
        """
        ...


@runtime_checkable
class ProvesAgain(Protocol):
    """A certificate that audits can repeat with more work."""

    def again(self, work_factor: int) -> Certificate:
        """The same certificate with `work_factor` times its budget of work, computing in float64.

        What this certificate verifies, the returned one must verify too.
        """
        ...


def verdicts_of_radii(
    radius: Float[Tensor, " n"], prediction: Int64[Tensor, " n"], y: Int64[Tensor, " n"], threat: ThreatModel
) -> Int8[Tensor, " n"]:
    """The verdicts of a method that proves radii and finds no counterexamples: `VERIFIED` or `UNKNOWN`, `(N,)`."""
    epsilon = threat.epsilon
    reached = radius >= (epsilon.to(radius) if isinstance(epsilon, Tensor) else float(epsilon))
    verified = reached & (prediction == y)
    return torch.where(verified, int(Verdict.VERIFIED), int(Verdict.UNKNOWN)).to(torch.int8)
