"""Conversion between PyTorch and evidence: tensors and arrays, and records of plain values for the rest."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustly.certification import CertificateResult
from robustly.evaluation.suites.suite import Suite, settings
from robustly.evaluation.target import EvaluationTarget, Mode
from robustly.evidence import EvidenceError, StoredImages, Verdict
from robustly.evidence.provenance import (
    DataRecord,
    ModelRecord,
    SuiteAttack,
    SuiteCertificate,
    SuiteRecord,
    ThreatRecord,
)
from robustly.evidence.schema import CertificateColumns, Texts
from robustly.models import weights_hash
from robustly.models.adapter import model_name
from robustly.output_text import one_line
from robustly.threats import Threat, ThreatError, ThreatModel, parse_threat

LONGEST_TEXT = 200
"""Longest text of a column."""
STAGE = re.compile(r"[A-Za-z0-9_ +.-]{0,40}", re.ASCII)
"""Form of the names of stages."""


def as_array(values: Tensor, dtype: torch.dtype | None = None) -> NDArray[Any]:
    """A tensor as an array on the CPU, converted to `dtype` if it is given."""
    array: NDArray[Any] = values.detach().to("cpu", dtype or values.dtype).contiguous().numpy()
    return array


def stored_images(ids: Tensor, images: Tensor, theta: Tensor | None = None) -> StoredImages:
    """Convert images of some examples.

    Args:
        ids: ids of the examples, `(M,)`.
        images: inputs of the model, `(M, C, H, W)`.
        theta: parameters of the change, `(M, ...)`; None if the threat moves the image itself.
    """
    kept = None if theta is None else as_array(theta, torch.float32)
    return StoredImages(as_array(ids), as_array(images, torch.float32), kept)


def certificate_columns(found: CertificateResult) -> CertificateColumns:
    """The columns of a certificate; a decided example has no reason for being open."""
    bound, count = found.lower_bound, len(found.verdict)
    decided = as_array((found.verdict == Verdict.VERIFIED) | (found.verdict == Verdict.FALSIFIED))
    return CertificateColumns(
        verdict=as_array(found.verdict),
        radius=as_array(found.radius, torch.float64),
        prediction=as_array(found.prediction),
        lower_bound=as_array(torch.full_like(found.radius, torch.nan) if bound is None else bound, torch.float64),
        stage=_texts(found.stage, count),
        reason=np.where(decided, "", _texts(found.reason, count)),
        work=np.zeros(count, dtype=np.int64) if found.work is None else as_array(found.work),
        seconds=np.full(count, np.nan) if found.seconds is None else as_array(found.seconds, torch.float64),
    )


def _texts(words: Sequence[str] | None, count: int) -> Texts:
    """Texts as a column; characters that are not printed in one line are replaced, and long texts are cut."""
    return np.array([""] * count if words is None else [one_line(word)[:LONGEST_TEXT] for word in words], np.str_)


def model_record(target: EvaluationTarget) -> ModelRecord:
    """Record of the tested network."""
    return ModelRecord(
        name=model_name(target.model),
        parameters=sum(parameter.numel() for parameter in target.model.parameters()),
        weights_sha256=weights_hash(target.model),
    )


def data_record(target: EvaluationTarget) -> DataRecord:
    """Record of the test examples."""
    data = target.data
    return DataRecord(source=data.source, count=len(data), sha256=data.digest(), classes=tuple(data.classes))


def threat_record(threat: Threat) -> ThreatRecord:
    """Record of a threat with one extent for all examples."""
    return ThreatRecord(
        text=str(threat),
        kind=threat.kind,
        words=threat.words(),
        box=threat.box,
        limit=float(threat.extent),
        limit_text=threat.extent_text,
        unit=threat.unit,
        norm=threat.norm if isinstance(threat, ThreatModel) else None,
    )


def stored_threat(record: ThreatRecord, arrays: Mapping[str, NDArray[Any]]) -> Threat:
    """The threat of an evaluation, from its record and the arrays that are stored with it.

    Raises:
        EvidenceError: what is stored makes another threat than the record states.
        ThreatError: a text that no threat has.
    """
    threat = parse_threat(
        record.text, record.box, {name: torch.from_numpy(array) for name, array in arrays.items()}
    )
    stray = sorted(set(arrays) - set(threat.arrays))
    if stray:
        raise EvidenceError(f"arrays are stored that the threat {record.text} does not have: {', '.join(stray)}")
    if str(threat) != record.text:
        raise EvidenceError(f"the summary states the threat {record.text}, its stored arrays give {threat}")
    return threat


def threat_or_kind(record: ThreatRecord) -> Threat | str:
    """The threat of an evaluation from its record alone; its kind where the threat needs stored arrays."""
    try:
        return parse_threat(record.text, record.box, {})
    except ThreatError:
        return record.kind


def suite_record(target: EvaluationTarget, suite: Suite, mode: Mode) -> SuiteRecord:
    """Record of the suite and its mode."""
    return SuiteRecord(
        name=suite.name,
        mode=mode,
        seed=target.seed,
        batch_size=target.batch_size,
        attacks=tuple(
            SuiteAttack(name, suite.title(name), settings(attack), suite.plan(name))
            for name, attack in suite.attacks.items()
        ),
        certificates=tuple(
            SuiteCertificate(name, suite.title(name), certificate.certifies, settings(certificate))
            for name, certificate in suite.certificates.items()
        ),
        curve=suite.curve,
        curve_sizes=suite.curve_sizes,
    )
