"""Examples that the cheap stages of a certificate leave open: order, shares of the time, and storage."""

import time
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from robustly.attacks.core.contract import frozen
from robustly.certification import CertificateResult, Deadline, InStages
from robustly.evaluation.certified_part import CertifiedPart, PartFolder, as_arrays, from_arrays, joined
from robustly.evaluation.parts import Arrays, Task, Work
from robustly.evaluation.recording import as_array
from robustly.evaluation.target import EvaluationTarget, Progress
from robustly.evidence import Verdict
from robustly.evidence.schema import CertificateColumns, column_fields
from robustly.threats import ThreatModel

FINISH = "branch and bound"
"""Kind of the tasks whose parts are single open examples."""


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
    left = [row for row in order if int(screened.ids[row]) not in finished]
    todo = [{**as_arrays(_of_row(screened, row)), "left": np.array([len(left) - n])} for n, row in enumerate(left)]
    task = Task(FINISH, name, target.threat.extent_text)
    begun = [from_arrays(one) for one in target.crew.finished(task, todo)]
    spent = sum(float(part.columns.seconds[0]) for part in (*finished.values(), *begun))
    seconds = None if certificate.seconds is None else max(0.0, certificate.seconds - spent)
    task = replace(task, seconds=seconds)
    done = len(order) - len(left)
    for found in target.crew.share(
        task,
        todo,
        finish_work(target, certificate, threat, seconds, target.crew.size),
        lambda more: progress(f"{name}: branch and bound", done + more, len(order)),
    ):
        part = from_arrays(found)
        finished[int(part.ids[0])] = part
        if folder is not None:
            folder.save(part)
    if order:
        progress(f"{name}: branch and bound", len(order), len(order))
    return joined([screened, *(finished[int(screened.ids[row])] for row in order)], screened.ids)


def finish_work(
    target: EvaluationTarget, certificate: InStages, threat: ThreatModel, seconds: float | None, size: int
) -> Work:
    """The work of a process on single open examples, whose time begins now.

    Args:
        target: the model and the data.
        certificate: the certificate.
        threat: the threat model.
        seconds: time for all examples; None for no limit.
        size: number of processes that share the examples.
    """
    place = {one: row for row, one in enumerate(as_array(target.data.ids).tolist())}
    deadline = Deadline.after(seconds)

    def work(part: Arrays) -> Arrays:
        before = from_arrays({name: values for name, values in part.items() if name != "left"})
        where = torch.tensor([place[int(before.ids[0])]], device=target.data.device)
        began = time.perf_counter()
        with frozen(target.model):
            found = certificate.finish(
                target.model,
                target.data.floats(where),
                target.data.labels[where],
                _result_of(before, where.device),
                threat=threat.select(where),
                deadline=deadline.share(max(1, -(-int(part["left"][0]) // size))),
            )
        return as_arrays(CertifiedPart.of(target.data.ids[where], found, time.perf_counter() - began))

    return work


def _of_row(part: CertifiedPart, row: int) -> CertifiedPart:
    """The results for one example, without its counterexample."""
    columns = {name: getattr(part.columns, name)[row : row + 1] for name in column_fields(CertificateColumns)}
    none = np.zeros((0,), np.float32)
    return CertifiedPart(part.ids[row : row + 1], CertificateColumns(**columns), none, part.terms)


def open_examples(screened: CertifiedPart) -> list[int]:
    """Rows of the open examples, nearest to a proof first; equal ones by id."""
    rows = np.flatnonzero(screened.columns.verdict == int(Verdict.UNKNOWN)).tolist()
    bound, ids = screened.columns.lower_bound, screened.ids
    return sorted(rows, key=lambda row: (-np.nan_to_num(bound[row], nan=-np.inf), ids[row]))


def _result_of(part: CertifiedPart, device: torch.device) -> CertificateResult:
    """The result for the example of a part."""
    columns = part.columns

    def tensor(values: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)

    return CertificateResult(
        verdict=tensor(columns.verdict),
        radius=tensor(columns.radius),
        prediction=tensor(columns.prediction),
        certifies=part.terms.certifies,
        lower_bound=tensor(columns.lower_bound),
        stage=(str(columns.stage[0]),),
        reason=(str(columns.reason[0]),),
        work=tensor(columns.work),
        seconds=tensor(columns.seconds),
    )
