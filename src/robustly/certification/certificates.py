"""Certificates of Lp robustness by bounds and branch and bound, as parts of a suite."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustly.certification.computed import ROUNDING
from robustly.certification.contract import CertificateResult, joined_results
from robustly.certification.deadline import Deadline
from robustly.certification.network import Graph
from robustly.certification.operations import RULES
from robustly.certification.outcome import Outcome
from robustly.certification.problem import COMPLETE, METHODS, Budget, Method, Problem
from robustly.certification.readers.torch_reader import read_module
from robustly.certification.screening import largest_radii, screen
from robustly.certification.sets import InputSet
from robustly.certification.specification import robustness
from robustly.certification.verify import finish
from robustly.evidence import Verdict
from robustly.randomness import KeyedGenerator
from robustly.threats.lp import ThreatModel

TOO_LOOSE = "the bounds of this method are too loose"


@dataclass(frozen=True)
class BoundCertificate:
    """Proof by stages that the label is predicted everywhere in a threat set, or a counterexample.

    Args:
        method: "ibp", "crown", "alpha_crown", "auto" (all of these, then branch and bound) or "bab" (branch and
            bound at once). All begin with an attack.
        budget: work that one example may cost.
        halvings: steps of a bisection that finds a certified radius below epsilon for examples that are not
            verified; 0 for none. It uses the last method before branch and bound.
        seconds: time for the branch and bound of all examples together; None for no limit. Examples that it
            cuts off have the verdict timeout.
        double: search in float64. Proofs are in float64 always.

    Raises:
        ValueError: an unknown method or a negative number.
    """

    method: Method = "auto"
    budget: Budget = field(default_factory=Budget)
    halvings: int = 3
    seconds: float | None = None
    double: bool = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method is {self.method!r}: use {', '.join(METHODS)}")
        if self.halvings < 0:
            raise ValueError(f"halvings is {self.halvings}: use 0 or more steps")
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"the time for branch and bound is {self.seconds} seconds: use a positive number")

    @property
    def certifies(self) -> str:
        """The attacked model."""
        return "model"

    def prepared(self, model: nn.Module, x: Float[Tensor, "n ..."], *, threat: ThreatModel) -> "GraphCertificate":
        """The certificate with the graph of the model, read once.

        Args:
            model: the model, in evaluation mode.
            x: a few images `(N, ...)`, for their shape.
            threat: the threat model.

        Raises:
            UnsupportedOperationError: the model has an operation that cannot be bounded.
        """
        graph = read_module(model, tuple(x.shape[1:]), drop_softmax=True)
        return GraphCertificate(self, graph.to(torch.float64))

    def check(self, model: nn.Module, x: Float[Tensor, "n ..."], *, threat: ThreatModel) -> None:
        """Refuse a model with an operation that cannot be bounded; arguments as for `prepared`."""
        self.prepared(model, x, threat=threat)

    def again(self, work_factor: int) -> "BoundCertificate":
        """The certificate for an audit: more work, everything in float64, no time limit."""
        budget = replace(
            self.budget,
            alpha_iterations=self.budget.alpha_iterations * work_factor,
            domains=self.budget.domains * work_factor,
        )
        return replace(self, budget=budget, halvings=0, seconds=None, double=True)

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
        return self.prepared(model, x, threat=threat)(model, x, y, threat=threat, generator=generator)


@dataclass(frozen=True)
class GraphCertificate:
    """A certificate with the graph of the model.

    Args:
        settings: the certificate.
        graph: the graph of the model, in float64.
    """

    settings: BoundCertificate
    graph: Graph

    @property
    def certifies(self) -> str:
        """The attacked model."""
        return "model"

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "n ..."],
        y: Int64[Tensor, " n"],
        *,
        threat: ThreatModel,
        generator: KeyedGenerator,
    ) -> CertificateResult:
        """Certify a batch without a time limit; arguments as for an attack."""
        result = self.screen(model, x, y, threat=threat, generator=generator)
        parts = [result.select(torch.tensor([row], device=x.device)) for row in range(len(x))]
        for row, part in enumerate(parts):
            if int(part.verdict) == Verdict.UNKNOWN:
                image, label = x[row : row + 1], y[row : row + 1]
                own = threat.select(torch.tensor([row], device=x.device))
                parts[row] = self.finish(model, image, label, part, threat=own, deadline=Deadline())
        return joined_results(parts) if parts else result

    @property
    def seconds(self) -> float | None:
        """Time for branch and bound of all examples together; None for no limit, 0 for a method without it."""
        return self.settings.seconds if self.settings.method in COMPLETE else 0.0

    @property
    def batch(self) -> int:
        """Most examples of a call of `screen`: fewer for larger networks."""
        bent = {op for op, rule in RULES.items() if rule.relax is not None}
        neurons = sum(node.size for node in self.graph.nodes if node.op in bent)
        return max(4, min(64, 200_000 // max(1, neurons)))

    def expected_seconds(self, x: Float[Tensor, "1 ..."], *, threat: ThreatModel) -> float:
        """Estimate the time of `screen` for one image from that of one bound; arguments as for `InStages`.

        The factors are measured: a proof in float64 costs about four bounds in float32, optimised bounds about two.
        """
        method, halvings = self.settings.method, self.settings.halvings
        problem = self._problem(nn.Identity(), x, torch.zeros(1, dtype=torch.int64, device=x.device), threat, None)
        bound: Method = "ibp" if method == "ibp" else "crown"
        zero, seconds, proof = torch.zeros(1, dtype=torch.float64), 0.0, 4
        for turn in range(2):
            if turn == 0 or seconds < 5:  # the first call also loads code
                began = time.monotonic()
                largest_radii(
                    lambda rows, radii: problem, zero, zero, method=bound, budget=self.settings.budget, halvings=1
                )
                seconds = time.monotonic() - began
        stages = {"ibp": 1 + proof, "crown": 1 + proof, "bab": 0}.get(method, 3 + 2 * proof)
        search = 2 if method in ("alpha_crown", "auto") else 1
        return seconds * (stages + (halvings * search + proof if halvings else 0))

    def screen(
        self,
        model: nn.Module,
        x: Float[Tensor, "n ..."],
        y: Int64[Tensor, " n"],
        *,
        threat: ThreatModel,
        generator: KeyedGenerator,
    ) -> CertificateResult:
        """Run the cheap stages on a batch; arguments as for an attack."""
        began = time.monotonic()
        self._check(x, y, threat)
        right = _outputs(model, x).argmax(1) == y
        rows = right.nonzero()[:, 0]
        outcomes = [Outcome(Verdict.FALSIFIED, -torch.inf, x[row : row + 1], "clean", 0) for row in range(len(x))]
        problem = self._problem(model, x[rows], y[rows], threat.select(rows), generator.select(rows))
        found = screen(problem, method=self.settings.method, budget=self.settings.budget)
        for row, outcome in zip(rows.tolist(), found, strict=True):
            is_left = outcome.verdict == Verdict.UNKNOWN and not outcome.reason
            is_left = is_left and self.settings.method not in COMPLETE
            outcomes[row] = replace(outcome, reason=TOO_LOOSE) if is_left else outcome
        real = torch.tensor([one.reason != ROUNDING for one in outcomes], dtype=torch.bool, device=x.device)
        radius = self._radii(model, x, y, outcomes, rows[real[rows]], threat)
        seconds = torch.full((len(x),), (time.monotonic() - began) / max(1, len(x)), dtype=torch.float64)
        return _result(outcomes, radius, x, y, seconds)

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
        """Go on with one open example by branch and bound.

        Args:
            model: the model.
            x: the image, `(1, ...)`.
            y: its label, `(1,)`.
            before: what `screen` returned for it.
            threat: the threat model.
            deadline: moment at which the verdict is timeout.
        """
        if self.settings.method not in COMPLETE:
            return before
        began = time.monotonic()
        assert before.lower_bound is not None
        assert before.work is not None
        start = Outcome(Verdict.UNKNOWN, float(before.lower_bound), None, "", int(before.work))
        problem = self._problem(model, x, y, threat, None)
        outcome = finish(problem, start, budget=self.settings.budget, deadline=deadline)
        radius = before.radius
        if outcome.reason == ROUNDING:
            radius = torch.zeros_like(radius)
        if outcome.verdict == Verdict.VERIFIED:
            radius = radius.clamp_min(float(_epsilon(threat, x)))
        result = _result([outcome], radius, x, y, torch.zeros(1, dtype=torch.float64))
        assert before.seconds is not None
        return replace(result, seconds=before.seconds + (time.monotonic() - began))

    def _check(self, x: Tensor, y: Tensor, threat: ThreatModel) -> None:
        """Refuse images and labels of which nothing can be proved."""
        own, outputs = self.graph.input_shape, self.graph.outputs
        if tuple(x.shape[1:]) != own or not x.is_floating_point() or not bool(x.isfinite().all()):
            raise ValueError(f"images to certify must be finite numbers of shape {own}, got {list(x.shape[1:])}")
        if y.shape != x.shape[:1] or y.dtype != torch.int64 or not bool(((y >= 0) & (y < outputs)).all()):
            raise ValueError(f"labels to certify must be {len(x)} of type int64 from 0 to {outputs - 1}")
        if outputs < 2:
            raise ValueError(f"{self.graph.source} has {outputs} output: a certificate compares at least 2")
        threat.around(x)  # refuses masks and radii that do not fit

    def _problem(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, generator: KeyedGenerator | None
    ) -> Problem:
        spec = robustness(y, self.graph.outputs, torch.float64)
        spec = replace(spec, strict=torch.ones_like(spec.strict))  # equal outputs do not misclassify
        return Problem(
            self.graph,
            InputSet.of(threat, x, torch.float64),
            spec,
            lambda points: _outputs(model, points.to(x)),
            generator,
            torch.float64 if self.settings.double else torch.float32,
        )

    def _radii(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        outcomes: list[Outcome],
        rows: Tensor,
        threat: ThreatModel,
    ) -> Tensor:
        """Certified radius of each example, by bisection with the last method before branch and bound, `(N,)`.

        A proof at a radius holds below it, and a counterexample bounds the radius from above. Examples that are
        verified at epsilon are searched up to twice epsilon, within the box.
        """
        epsilon = _epsilon(threat, x)
        verified = torch.tensor(
            [one.verdict == Verdict.VERIFIED for one in outcomes], dtype=torch.bool, device=x.device
        )
        low = torch.where(verified, epsilon, 0.0)
        high = torch.where(verified, 2 * epsilon, epsilon)
        if threat.norm == "linf":
            high = high.clamp_max(threat.box[1] - threat.box[0])
        if not len(rows) or threat.norm == "l0":
            return low

        def at(some: Tensor, radii: Tensor) -> Problem:
            chosen = rows[some]
            return self._problem(model, x[chosen], y[chosen], threat.with_epsilon(radii), None)

        low[rows] = largest_radii(
            at,
            low[rows],
            high[rows],
            method=self.settings.method,
            budget=self.settings.budget,
            halvings=self.settings.halvings,
        )
        return low


def _epsilon(threat: ThreatModel, x: Tensor) -> Tensor:
    """Epsilon of each example in float64, `(N,)`."""
    epsilon = threat.epsilon
    value = epsilon.double() if isinstance(epsilon, Tensor) else torch.tensor(float(epsilon), dtype=torch.float64)
    return value.to(x.device).expand(len(x))


@torch.no_grad()
def _outputs(model: nn.Module, x: Tensor) -> Tensor:
    outputs: Tensor = model(x)
    return outputs


def _result(
    outcomes: Sequence[Outcome], radius: Tensor, x: Tensor, y: Tensor, seconds: Tensor
) -> CertificateResult:
    verdict = torch.tensor([int(one.verdict) for one in outcomes], dtype=torch.int8, device=x.device)
    counterexample = x.clone()
    for row, one in enumerate(outcomes):
        if one.counterexample is not None:
            counterexample[row] = one.counterexample[0].to(x)
    return CertificateResult(
        verdict=verdict,
        radius=radius,
        prediction=torch.where(radius > 0, y, -1),
        certifies="model",
        lower_bound=torch.tensor([one.lower_bound for one in outcomes], dtype=torch.float64, device=x.device),
        counterexample=counterexample if bool((verdict == Verdict.FALSIFIED).any()) else None,
        stage=tuple(one.stage for one in outcomes),
        reason=tuple(one.reason for one in outcomes),
        work=torch.tensor([one.work for one in outcomes], device=x.device),
        seconds=seconds,
    )
