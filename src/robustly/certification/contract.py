"""Contract of certificates: arguments and result."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int8, Int64
from torch import Tensor, nn

from robustly.certification.deadline import Deadline
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
            "branch"; N names of up to 40 letters, digits, spaces and +-_. None if the certificate has one method.
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

    def select(self, rows: Int64[Tensor, " m"]) -> "CertificateResult":
        """The results of some examples."""
        values: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                value = value[rows]
            elif isinstance(value, tuple):
                value = tuple(value[row] for row in rows.tolist())
            values[item.name] = value
        return CertificateResult(**values)


def joined_results(parts: Sequence[CertificateResult]) -> CertificateResult:
    """The results of several calls of one certificate as one; a field must be given in all parts or in none.

    Counterexamples may be missing in parts without falsified examples.
    """
    shown = [part.counterexample for part in parts if part.counterexample is not None]
    values: dict[str, Any] = {}
    for item in fields(CertificateResult):
        given = [getattr(part, item.name) for part in parts]
        if item.name == "counterexample" and shown:
            empty = [shown[0].new_zeros(len(part.verdict), *shown[0].shape[1:]) for part in parts]
            given = [blank if one is None else one for one, blank in zip(given, empty, strict=True)]
        first = given[0]
        if isinstance(first, Tensor):
            values[item.name] = torch.cat(given)
        elif isinstance(first, tuple):
            values[item.name] = tuple(word for part in given for word in part)
        else:
            values[item.name] = first
    return CertificateResult(**values)


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
class Prepares(Protocol):
    """A certificate that reads the model once, before the first batch."""

    def prepared(self, model: nn.Module, x: Float[Tensor, "n ..."], *, threat: ThreatModel) -> Certificate:
        """The certificate for this model only; arguments as for `ChecksModel.check`."""
        ...


@runtime_checkable
class InStages(Protocol):
    """A certificate with cheap stages for batches, and work on single examples that these leave open.

    The verdicts of `finish` are valid alone. The order of the examples and the time for each are decided elsewhere.
    """

    @property
    def seconds(self) -> float | None:
        """Time for all calls of `finish` together; None for no limit, 0 if they do nothing."""
        ...

    @property
    def batch(self) -> int:
        """Most examples of a call of `screen`, after which results are stored and progress is shown."""
        ...

    def expected_seconds(self, x: Float[Tensor, "1 ..."], *, threat: ThreatModel) -> float:
        """Estimate the time that `screen` takes for one example, by a trial that takes a fraction of it.

        Args:
            x: an image, `(1, ...)`.
            threat: the threat model.
        """
        ...

    def screen(
        self,
        model: nn.Module,
        x: Float[Tensor, "n ..."],
        y: Int64[Tensor, " n"],
        *,
        threat: ThreatModel,
        generator: KeyedGenerator,
    ) -> CertificateResult:
        """Run the cheap stages; arguments as for an attack."""
        ...

    def finish(
        self,
        model: nn.Module,
        x: Float[Tensor, "1 ..."],
        y: Int64[Tensor, " 1"],
        before: CertificateResult,
        *,
        threat: ThreatModel,
        deadline: Deadline,
    ) -> CertificateResult:
        """Go on with one example that `screen` left open.

        Args:
            model: the model.
            x: the image, `(1, ...)`.
            y: its label, `(1,)`.
            before: its result so far.
            threat: the threat model.
            deadline: moment at which the verdict is timeout.
        """
        ...


@runtime_checkable
class ProvesAgain(Protocol):
    """A certificate that audits can repeat with more work."""

    def again(self, work_factor: int) -> Certificate:
        """The same certificate with `work_factor` times its budget of work, computing in float64.

        What this certificate verifies, the returned one must verify too, and at every radius that this one states:
        it is called with a radius of the threat for each example.
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
