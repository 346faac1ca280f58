"""Examples that the cheap stages of a certificate leave open: order, shares of the time, and storage."""

import time

import numpy as np
import torch
from numpy.typing import NDArray

from robustly.attacks.core.contract import frozen
from robustly.certification import CertificateResult, Deadline, InStages
from robustly.evaluation.certified_part import CertifiedPart, PartFolder, joined
from robustly.evaluation.recording import as_array
from robustly.evaluation.target import EvaluationTarget, Progress
from robustly.evidence import Verdict
from robustly.threats import ThreatModel


def finish_open(
    target: EvaluationTarget,
    certificate: InStages,
    name: str,
    threat: ThreatModel,
    screened: CertifiedPart,
    folder: PartFolder | None,
    progress: Progress,
) -> CertifiedPart:
    """Go on with the open examples one after the other, the one with the largest lower bound first.

    Each gets an equal share of the time that is left, so that what an easy one does not need goes to later ones.

    Args:
        target: the model and the data.
        certificate: the certificate.
        name: its name in the suite.
        threat: the threat model.
        screened: results of the cheap stages, of the examples in `screened.ids`.
        folder: storage of finished examples; None without one.
        progress: callback with (name, done, total).
    """
    finished = {int(part.ids[0]): part for part in ([] if folder is None else folder.load())}
    order = open_examples(screened)
    place = {one: row for row, one in enumerate(as_array(target.data.ids).tolist())}
    spent = sum(float(part.columns.seconds[0]) for part in finished.values())
    left = None if certificate.seconds is None else max(0.0, certificate.seconds - spent)
    deadline = Deadline.after(left)
    for done, row in enumerate(order):
        example = int(screened.ids[row])
        if example in finished:
            continue
        progress(f"{name}: branch and bound", done, len(order))
        where = torch.tensor([place[example]], device=target.data.device)
        began = time.perf_counter()
        with frozen(target.model):
            found = certificate.finish(
                target.model,
                target.data.floats(where),
                target.data.labels[where],
                _result_of(screened, row, where.device),
                threat=threat.select(where),
                deadline=deadline.share(len(order) - done),
            )
        part = CertifiedPart.of(target.data.ids[where], found, time.perf_counter() - began)
        finished[example] = part
        if folder is not None:
            folder.save(part)
    if order:
        progress(f"{name}: branch and bound", len(order), len(order))
    return joined([screened, *(finished[int(screened.ids[row])] for row in order)], screened.ids)


def open_examples(screened: CertifiedPart) -> list[int]:
    """Rows of the open examples, nearest to a proof first; equal ones by id."""
    rows = np.flatnonzero(screened.columns.verdict == int(Verdict.UNKNOWN)).tolist()
    bound, ids = screened.columns.lower_bound, screened.ids
    return sorted(rows, key=lambda row: (-np.nan_to_num(bound[row], nan=-np.inf), ids[row]))


def _result_of(part: CertifiedPart, row: int, device: torch.device) -> CertificateResult:
    columns, at = part.columns, slice(row, row + 1)

    def tensor(values: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values[at])).to(device)

    return CertificateResult(
        verdict=tensor(columns.verdict),
        radius=tensor(columns.radius),
        prediction=tensor(columns.prediction),
        certifies=part.terms.certifies,
        lower_bound=tensor(columns.lower_bound),
        stage=(str(columns.stage[row]),),
        reason=(str(columns.reason[row]),),
        work=tensor(columns.work),
        seconds=tensor(columns.seconds),
    )
