"""Answers to one instance: a network from an ONNX file and a property from a VNN-LIB file."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from robustly.certification.bounds.propagation import ibp
from robustly.certification.deadline import Deadline
from robustly.certification.network import Graph, Node, UnsupportedOperationError
from robustly.certification.outcome import Outcome
from robustly.certification.readers.onnx_reader import TOLERANCE, OnnxNetwork, read_onnx
from robustly.certification.sets import InputSet
from robustly.certification.specification import Specification
from robustly.certification.vnnlib import Case, Query, UnsupportedQueryError, VnnlibError, read_vnnlib, witness_text
from robustly.evidence import Verdict
from robustly.output_text import first_line

WORDS = ("unsat", "sat", "timeout", "unknown", "error")
_WORD = {
    Verdict.VERIFIED: "unsat",
    Verdict.FALSIFIED: "sat",
    Verdict.TIMEOUT: "timeout",
    Verdict.UNKNOWN: "unknown",
    Verdict.ERROR: "error",
}
_POINTS, _POINTS_OF = 16, 5
"""Inputs of each box at which the network is compared with onnxruntime, and most boxes."""


@runtime_checkable
class Prover(Protocol):
    """The verification of one property over one input set."""

    def __call__(
        self,
        graph: Graph,
        inputs: InputSet,
        spec: Specification,
        *,
        deadline: Deadline,
        confirm: Callable[[Tensor], Tensor],
    ) -> Outcome:
        """Verify a property; `confirm` gives outputs of the real network, NaN for false counterexamples."""
        ...


@dataclass(frozen=True)
class Answer:
    """Answer to an instance.

    Args:
        word: one of `WORDS`: "unsat" if the property holds, "sat" if an input violates it.
        reason: a sentence on an open answer or an unusual property; empty if there is nothing to say.
        seconds: time for reading and proving.
        stage: method that decided; empty if none was needed.
        work: bounded domains.
        lower_bound: least proved bound of the cases' margins, infinite if there are none.
        witness: the counterexample as a result file has it; empty if there is none.
        version: version of the property's VNN-LIB.
    """

    word: str
    reason: str = ""
    seconds: float = 0.0
    stage: str = ""
    work: int = 0
    lower_bound: float = float("inf")
    witness: str = ""
    version: int = 1


def answer(network: Path, property_: Path, *, deadline: Deadline, prove: Prover) -> Answer:
    """Read and decide one instance.

    Wrong input is the word "error"; a property or network of a kind that is not supported, and a lack of memory,
    are "unknown"; each has its reason.

    Args:
        network: an ONNX file, which may be gzipped.
        property_: a VNN-LIB file, which may be gzipped.
        deadline: moment at which work stops.
        prove: method for each case.
    """
    began = time.monotonic()
    version = 1
    try:
        query = read_vnnlib(property_)
        version = query.version
        found = _decided(network, query, deadline, prove)
    except (UnsupportedQueryError, UnsupportedOperationError) as error:
        found = Answer("unknown", reason=str(error))
    except MemoryError as error:
        found = Answer("unknown", reason=_out_of_memory(error))
    except RuntimeError as error:
        if not _lacks_memory(error):
            raise
        found = Answer("unknown", reason=_out_of_memory(error))
    except (ValueError, OSError, ImportError) as error:
        found = Answer("error", reason=str(error))
    return replace(found, seconds=time.monotonic() - began, version=version)


def _decided(network: Path, query: Query, deadline: Deadline, prove: Prover) -> Answer:
    if not query.cases:
        return Answer("unsat", reason=query.remark)
    onnx = read_onnx(network)
    _check_sizes(onnx.graph, query)
    _check_arithmetic(onnx, query)
    answers: list[Answer] = []
    open_cases = list(query.cases)
    for last in (False, True):  # each case gets its share of the time, then the open ones what is left
        still_open = []
        for place, case in enumerate(open_cases):
            share = deadline if last else deadline.sooner(deadline.left / (len(open_cases) - place))
            one = _case_answer(onnx, query, case, share, prove)
            if one.word == "sat":
                return replace(one, reason=query.remark)
            answers.append(one)
            if one.word == "timeout":
                still_open.append(case)
        if not still_open or len(query.cases) == 1 or deadline.passed:
            break
        answers = [one for one in answers if one.word != "timeout"]
        open_cases = still_open
    hardest = max(answers, key=lambda one: (WORDS.index(one.word), one.work))
    least = min(-math.inf if math.isnan(one.lower_bound) else one.lower_bound for one in answers)
    return replace(hardest, work=sum(one.work for one in answers), lower_bound=least)


def _check_sizes(graph: Graph, query: Query) -> None:
    for word, given, own in (
        ("inputs", query.inputs, graph.nodes[0].size),
        ("outputs", query.outputs, graph.outputs),
    ):
        if given != own:
            raise VnnlibError(f"{query.source} has {given} {word}, but {graph.source} has {own}")


def _check_arithmetic(onnx: OnnxNetwork, query: Query) -> None:
    """Compare the network with onnxruntime inside the boxes: a proof speaks of real arithmetic."""
    generator = torch.Generator().manual_seed(0)
    for case in query.cases[:_POINTS_OF]:
        share = torch.rand(_POINTS, query.inputs, generator=generator)
        share[: _POINTS // 2] = share[: _POINTS // 2].round()  # corners, where rounding is largest
        share[:1], share[1:2] = 0, 1
        points = case.clamped(case.box.least + share * (case.box.most - case.box.least))
        apart = onnx.difference(points.reshape(-1, *onnx.graph.input_shape).numpy())
        if not apart <= TOLERANCE:
            raise UnsupportedQueryError(
                f"{onnx.source}: onnxruntime and exact arithmetic differ by {apart:.2g} (relative) "
                f"in the box of {query.source}, so a proof would not hold for the network as it is computed"
            )


def _case_answer(onnx: OnnxNetwork, query: Query, case: Case, deadline: Deadline, prove: Prover) -> Answer:
    graph = _with_inputs(onnx.graph) if case.reads_inputs else onnx.graph
    shape = (1, *graph.input_shape)
    inputs = InputSet(case.box.lower.reshape(shape), case.box.upper.reshape(shape))

    def outputs(x: Tensor) -> Tensor:
        return torch.from_numpy(onnx.outputs(x.reshape(-1, *onnx.graph.input_shape).numpy())).reshape(len(x), -1)

    def confirm(x: Tensor) -> Tensor:
        inside = case.clamped(x)
        y = outputs(inside)
        real = torch.tensor([case.violated(*pair) for pair in zip(inside, y, strict=True)])
        read = (torch.cat([y, inside.to(y)], 1) if case.reads_inputs else y).double()
        false = case.specification.violated(read) & ~real if len(read) == 1 else ~real
        return torch.where(false.unsqueeze(1), torch.nan, read)

    outcome = prove(graph, inputs, _safe(case, graph, inputs), deadline=deadline, confirm=confirm)
    word, reason, witness = _WORD[Verdict(outcome.verdict)], outcome.reason, ""
    if word == "sat":
        if outcome.counterexample is None:
            raise RuntimeError(f"{outcome.stage} has found a counterexample, but does not return it")
        x = case.clamped(outcome.counterexample.reshape(1, -1))
        y = outputs(x)
        if case.violated(x[0], y[0]):
            witness = witness_text(query, x[0], y[0])
        else:
            word, reason = "unknown", "a counterexample was found that onnxruntime does not confirm"
    return Answer(word, reason, 0.0, outcome.stage, outcome.work, outcome.lower_bound, witness)


def _safe(case: Case, graph: Graph, inputs: InputSet) -> Specification:
    """The specification with offsets lowered by what its rounded factors can change."""
    if case.inexact is None:
        return case.specification
    interval = ibp(graph, inputs, rounding=True)[graph.output]
    largest = torch.maximum(interval.lower.abs(), interval.upper.abs()).reshape(-1).double()
    change = (case.inexact * largest).sum(1) * (1 + 1e-9)
    return replace(case.specification, offset=case.specification.offset - 2 * change)


def _with_inputs(graph: Graph) -> Graph:
    """The network with its inputs behind its outputs, so that conditions on inputs are rows over outputs."""
    size, outputs, index = graph.nodes[0].size, graph.outputs, len(graph.nodes)
    added = (
        Node("inputs of the property", "reshape", (0,), (size,)),
        Node("outputs of the property", "reshape", (graph.output,), (outputs,)),
        Node("both", "concat", (index + 1, index), (outputs + size,), {"axis": 0}),
    )
    return replace(graph, nodes=graph.nodes + added)


def _lacks_memory(error: RuntimeError) -> bool:
    text = str(error).lower()
    return any(words in text for words in ("out of memory", "not enough memory", "can't allocate", "alloc_cpu"))


def _out_of_memory(error: Exception) -> str:
    return f"out of memory: {first_line(error)}"
