"""Run the certificates of a suite, and confirm their counterexamples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustly.certification import Certificate, CertificateResult, Verdict
from robustly.evaluation.recording import certificate_columns, stored_images
from robustly.evaluation.stages import EvaluationError
from robustly.evaluation.suites.suite import Suite
from robustly.evaluation.target import EvaluationTarget, Progress, attack_generator
from robustly.evidence import StoredImages
from robustly.evidence.metrics import MODEL
from robustly.evidence.schema import CertificateColumns
from robustly.evidence.summary import CertificateTerms
from robustly.threats import ThreatModel


@dataclass(frozen=True)
class Certified:
    """The results of all certificates, by name.

    Args:
        columns: columns of the evidence table.
        images: counterexamples, without certificates that found none.
        terms: certified classifier and failure probability.
        unconfirmed: number of counterexamples that a forward pass did not confirm.
    """

    columns: Mapping[str, CertificateColumns]
    images: Mapping[str, StoredImages]
    terms: Mapping[str, CertificateTerms]
    unconfirmed: Mapping[str, int]


def run_certificates(target: EvaluationTarget, suite: Suite, progress: Progress) -> Certified:
    """Run all certificates of a suite on all images.

    A counterexample is confirmed if the stored image lies in the threat set and a separate forward pass
    misclassifies it. Otherwise the verdict becomes unknown.

    Raises:
        EvaluationError: a falsified example has no counterexample, or its certificate is of another classifier.
    """
    columns, images, terms, unconfirmed = {}, {}, {}, {}
    for name, certificate in suite.certificates.items():
        found = run_certificate(target, certificate, name, progress)
        terms[name] = CertificateTerms(found.certifies, found.failure_probability)
        falsified = (found.verdict == Verdict.FALSIFIED).nonzero()[:, 0]
        unconfirmed[name] = 0
        if len(falsified):
            if found.counterexample is None or found.certifies != MODEL:
                raise EvaluationError(
                    f"the certificate {name!r} returns {len(falsified)} examples as falsified: that needs a "
                    "counterexample for each, and a certificate of the model itself"
                )
            holds = is_counterexample(target, _lp_threat(target, name), falsified, found.counterexample[falsified])
            verdict = found.verdict.clone()
            verdict[falsified[~holds]] = int(Verdict.UNKNOWN)
            unconfirmed[name] = int((~holds).sum())
            shown = falsified[holds]
            images[name] = stored_images(target.data.ids[shown], found.counterexample[shown])
            found = replace(found, verdict=verdict)
        columns[name] = certificate_columns(found)
    return Certified(columns, images, terms, unconfirmed)


def is_counterexample(target: EvaluationTarget, threat: ThreatModel, rows: Tensor, images: Tensor) -> Tensor:
    """Mask of images that lie in the threat set and are misclassified, `(M,)` bool."""
    data, (low, high) = target.data, threat.box
    verdicts = []
    for part in target.chunks(torch.arange(len(rows), device=rows.device)):
        shown, x, label = images[part], data.floats(rows[part]), data.labels[rows[part]]
        in_box = ((shown >= low) & (shown <= high)).flatten(1).all(1)
        fooled = target.verdict(shown, label).argmax(1) != label
        verdicts.append(threat.contains(shown, x) & in_box & fooled)
    return torch.cat(verdicts) if verdicts else torch.zeros(0, dtype=torch.bool, device=rows.device)


def run_certificate(
    target: EvaluationTarget, certificate: Certificate, name: str, progress: Progress
) -> CertificateResult:
    """Run a certificate on all images, batch by batch.

    Raises:
        EvaluationError: the threat is not an Lp ball.
    """
    data, parts, threat = target.data, [], _lp_threat(target, name)
    chunks = target.chunks(torch.arange(len(data), device=data.images.device))
    for done, chunk in enumerate(chunks):
        progress(name, done * target.batch_size, len(data))
        parts.append(
            certificate(
                target.model,
                data.floats(chunk),
                data.labels[chunk],
                threat=threat,
                generator=attack_generator(target, name, chunk),
            )
        )
    counterexample = None
    if any(part.counterexample is not None for part in parts):
        shown = [
            data.floats(chunk) if part.counterexample is None else part.counterexample
            for part, chunk in zip(parts, chunks, strict=True)
        ]
        counterexample = torch.cat(shown)
    return CertificateResult(
        verdict=torch.cat([part.verdict for part in parts]),
        radius=torch.cat([part.radius for part in parts]),
        prediction=torch.cat([part.prediction for part in parts]),
        certifies=parts[0].certifies,
        lower_bound=torch.cat([_lower_bound(part) for part in parts]),
        failure_probability=max(part.failure_probability for part in parts),
        counterexample=counterexample,
        stage=_texts([part.stage for part in parts], chunks),
        reason=_texts([part.reason for part in parts], chunks),
        work=torch.cat([torch.zeros_like(part.prediction) if part.work is None else part.work for part in parts]),
        seconds=torch.cat(
            [torch.full_like(part.radius, torch.nan) if part.seconds is None else part.seconds for part in parts]
        ),
    )


def _texts(parts: Sequence[Sequence[str] | None], chunks: Sequence[Tensor]) -> tuple[str, ...]:
    """The texts of all chunks; empty ones for a chunk without texts."""
    pairs = zip(parts, chunks, strict=True)
    return tuple(word for part, chunk in pairs for word in (part or [""] * len(chunk)))


def _lower_bound(part: CertificateResult) -> Tensor:
    return torch.full_like(part.radius, torch.nan) if part.lower_bound is None else part.lower_bound


def _lp_threat(target: EvaluationTarget, name: str) -> ThreatModel:
    if not isinstance(target.threat, ThreatModel):
        raise EvaluationError(
            f"the certificate {name!r} is defined for Lp balls, the threat is {target.threat.kind!r}: "
            "use a suite without certificates"
        )
    return target.threat
