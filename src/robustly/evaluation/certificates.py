"""Run the certificates of a suite, and confirm their counterexamples."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from robustly.attacks.core.contract import frozen
from robustly.certification import Certificate, ChecksModel, InStages, Prepares
from robustly.evaluation.certificate_queue import FINISH, finish_open, finish_work
from robustly.evaluation.certified_part import CertifiedPart, PartFolder, as_arrays, from_arrays, joined
from robustly.evaluation.checkpoint import EvaluationCheckpoint
from robustly.evaluation.parts import Arrays, Task, Work, WorkError
from robustly.evaluation.recording import as_array, stored_images
from robustly.evaluation.stages import EvaluationError
from robustly.evaluation.suites.suite import Suite
from robustly.evaluation.target import EvaluationTarget, Progress, attack_generator
from robustly.evidence import StoredImages, Verdict
from robustly.evidence.certified_numbers import CertificateTerms
from robustly.evidence.schema import CERTIFICATE, CertificateColumns, Whole
from robustly.memory import in_halves, is_out_of_memory
from robustly.runtime import raise_if_lost
from robustly.threats import ThreatModel

SCREEN = "certificate"
"""Kind of the tasks whose parts are batches of a certificate."""
NO_MEMORY = "out of memory"
UNCONFIRMED = "a forward pass did not confirm its counterexample"


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


def check_certificates(target: EvaluationTarget, suite: Suite) -> None:
    """Refuse certificates that do not support the model or the threat, before the attacks start.

    Raises:
        EvaluationError: the threat is not an Lp ball, or a certificate does not support the model.
    """
    for name, certificate in suite.certificates.items():
        if not isinstance(certificate, Certificate):
            raise EvaluationError(
                f"the certificate {name!r} lacks `certifies`: see `robustly.certification.Certificate`"
            )
        threat = _lp_threat(target, name)
        if isinstance(certificate, ChecksModel):
            few = torch.arange(min(2, len(target.data)), device=target.data.device)
            try:
                with frozen(target.model):
                    certificate.check(target.model, target.data.floats(few), threat=threat)
            except ValueError as error:
                raise EvaluationError(f"the certificate {name!r} cannot be computed: {error}") from error


def run_certificates(
    target: EvaluationTarget, suite: Suite, progress: Progress, checkpoint: EvaluationCheckpoint | None = None
) -> Certified:
    """Run all certificates of a suite on all images.

    A counterexample is confirmed if the stored image lies in the threat set and a separate forward pass
    misclassifies it. Otherwise the verdict becomes unknown.

    Args:
        target: the model, the data and the threat.
        suite: the certificates.
        progress: callback with (name, done, total).
        checkpoint: storage of the finished parts; None without one.

    Raises:
        EvaluationError: as `run_certificate`.
    """
    columns, images, terms, unconfirmed = {}, {}, {}, {}
    for name, certificate in suite.certificates.items():
        found = run_certificate(target, certificate, name, progress, checkpoint)
        terms[name], columns[name], unconfirmed[name] = found.terms, found.columns, 0
        rows = np.flatnonzero(found.columns.falsified)
        if len(rows):
            device = target.data.device
            places, shown = torch.from_numpy(rows).to(device), torch.from_numpy(found.images).to(device)
            holds = is_counterexample(target, _lp_threat(target, name), places, shown)
            columns[name] = _without(found.columns, rows[as_array(~holds)])
            unconfirmed[name] = int((~holds).sum())
            images[name] = stored_images(target.data.ids[places[holds]], shown[holds])
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
    target: EvaluationTarget,
    certificate: Certificate,
    name: str,
    progress: Progress,
    checkpoint: EvaluationCheckpoint | None = None,
    rows: Tensor | None = None,
) -> CertifiedPart:
    """Run a certificate on images, in batches of the target.

    Examples for which the memory does not suffice, each one alone, get the verdict `ERROR`.

    Args:
        target: the model, the data and the threat.
        certificate: the certificate.
        name: its name in the suite, which keys its random numbers.
        progress: callback with (name, done, total).
        checkpoint: storage of the finished parts; None without one.
        rows: rows of the images, `(M,)`; None for all.

    Raises:
        EvaluationError: the threat is not an Lp ball, or the certificate raises an error or returns something
            other than its contract states.
        OSError: a part cannot be written.
    """
    data = target.data
    rows = torch.arange(len(data), device=data.device) if rows is None else rows
    folder = (
        None if checkpoint is None else PartFolder(checkpoint.folder / f"{CERTIFICATE}.{name}", checkpoint.identity)
    )
    certificate = prepared(target, certificate, name)
    parts = [] if folder is None else folder.load()
    finished = {one for part in parts for one in part.ids.tolist()}
    threat = _lp_threat(target, name)
    size = min(target.batch_size, certificate.batch) if isinstance(certificate, InStages) else target.batch_size
    chunks = replace(target, batch_size=size).chunks(rows)
    left = [chunk[[one not in finished for one in data.ids[chunk].tolist()]] for chunk in chunks]
    todo = [{"rows": as_array(chunk)} for chunk in left if len(chunk)]
    count, task = len(finished), Task(SCREEN, name, target.threat.extent_text)
    try:
        for found in target.crew.share(
            task,
            todo,
            certificate_work(target, certificate, task, target.crew.size),
            lambda done: progress(name, min(count + done * size, len(rows)), len(rows)),
        ):
            part = from_arrays(found)
            parts.append(part)
            if folder is not None:
                folder.save(part)
        if todo:  # else they are those of branch and bound, of an earlier start
            target.crew.forget_parts()
        screened = joined(parts, as_array(data.ids[rows]))
        if not isinstance(certificate, InStages):
            return screened
        last = None if folder is None else PartFolder(folder.folder / "finished", folder.identity)
        found_all = finish_open(target, certificate, name, threat, screened, last, progress)
        target.crew.forget_parts()
        return found_all
    except WorkError as error:
        raise EvaluationError(str(error).removeprefix(f"{EvaluationError.__name__}: ")) from error
    except EvaluationError:
        raise
    except ValueError as error:
        raise EvaluationError(f"the certificate {name!r} failed: {error}") from error


def certificate_work(target: EvaluationTarget, certificate: Certificate, task: Task, size: int) -> Work:
    """The work of a process on the parts of a certificate.

    Args:
        target: the model, the data and the threat.
        certificate: the certificate, as `prepared` returns it.
        task: of the kind `SCREEN` for batches of images, or `FINISH` for branch and bound on single images.
        size: number of processes that share it.
    """
    name, threat = task.name, _lp_threat(target, task.name)
    if task.kind == FINISH:
        if not isinstance(certificate, InStages):
            raise EvaluationError(f"the certificate {name!r} has no stages")
        return finish_work(target, certificate, threat, task.seconds, size)

    def work(part: Arrays) -> Arrays:
        rows = torch.from_numpy(part["rows"]).to(target.data.device)
        return as_arrays(joined(_certified(target, certificate, name, rows), as_array(target.data.ids[rows])))

    return work


def prepared(target: EvaluationTarget, certificate: Certificate, name: str) -> Certificate:
    """The certificate with everything that it reads from the model; the same one if it reads nothing."""
    if not isinstance(certificate, Prepares):
        return certificate
    few = torch.arange(min(2, len(target.data)), device=target.data.device)
    with frozen(target.model):
        threat = _lp_threat(target, name).select(few)
        return certificate.prepared(target.model, target.data.floats(few), threat=threat)


def _certified(target: EvaluationTarget, certificate: Certificate, name: str, rows: Tensor) -> list[CertifiedPart]:
    """The parts of one batch: one, or those of its halves where the memory does not suffice."""
    data = target.data
    certify = certificate.screen if isinstance(certificate, InStages) else certificate

    def certified(some: Tensor) -> CertifiedPart:
        began = time.perf_counter()
        try:
            with frozen(target.model):
                found = certify(
                    target.model,
                    data.floats(some),
                    data.labels[some],
                    threat=_lp_threat(target, name).select(some),
                    generator=attack_generator(target, name, some),
                )
            return CertifiedPart.of(data.ids[some], found, time.perf_counter() - began)
        except Exception as error:
            if not is_out_of_memory(error):
                raise_if_lost(error, data.device)
                raise EvaluationError(f"the certificate {name!r} failed: {_words(error)}") from error
            if len(some) > 1:
                raise
        terms = CertificateTerms(certificate.certifies)
        return CertifiedPart.failed(data.ids[some], terms, NO_MEMORY, time.perf_counter() - began)

    return in_halves(certified, rows)


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def _without(columns: CertificateColumns, rows: Whole) -> CertificateColumns:
    """The columns with some falsified rows as unknown, because their counterexample does not hold."""
    verdict, reason = columns.verdict.copy(), columns.reason.astype(object)
    verdict[rows], reason[rows] = int(Verdict.UNKNOWN), UNCONFIRMED
    return replace(columns, verdict=verdict, reason=reason.astype(np.str_))


def _lp_threat(target: EvaluationTarget, name: str) -> ThreatModel:
    if not isinstance(target.threat, ThreatModel):
        raise EvaluationError(
            f"the certificate {name!r} is defined for Lp balls, the threat is {target.threat.kind!r}: "
            "certify a ball such as linf:0.1, or evaluate without certificates"
        )
    return target.threat
