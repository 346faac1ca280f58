"""Answers to instances: sizes, conditions on inputs, rounding, witnesses under onnxruntime, and wrong input."""

import gzip
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from robustly.certification.answers import Answer, answer
from robustly.certification.bounds.methods import margins
from robustly.certification.deadline import Deadline
from robustly.certification.falsify import falsify
from robustly.certification.network import Graph
from robustly.certification.outcome import Outcome
from robustly.certification.sets import InputSet
from robustly.certification.specification import Specification
from robustly.evidence import Verdict

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

HEAD = "".join(f"(declare-const {name} Real)\n" for name in ("X_0", "X_1", "Y_0", "Y_1"))
BOX = HEAD + "(assert (and (<= -1 X_0 1) (<= -1 X_1 1)))\n"


def network(file: Path, weight: object = ((1, 1), (1, -1)), bias: object = (0, 0), kind: str = "Relu") -> Path:
    """Write `kind(weight x + bias)`, with two inputs and two outputs."""
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    info = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w", "b"], ["h"], transB=1),
            helper.make_node(kind, ["h"], ["y"]),
        ],
        "net",
        [helper.make_tensor_value_info("x", info, [1, 2])],
        [helper.make_tensor_value_info("y", info, [1, 2])],
        [
            numpy_helper.from_array(np.array(weight, np.float32), "w"),
            numpy_helper.from_array(np.array(bias, np.float32), "b"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    file.write_bytes(model.SerializeToString())
    return file


def prove(
    graph: Graph,
    inputs: InputSet,
    spec: Specification,
    *,
    deadline: Deadline,
    confirm: Callable[[Tensor], Tensor],
) -> Outcome:
    """An attack that onnxruntime confirms, else CROWN in float64."""
    x = falsify(graph.to(torch.float32), inputs, spec, starts=32, steps=20)
    if x is not None and bool(spec.violated(confirm(x)).all()):
        return Outcome(Verdict.FALSIFIED, -1.0, x, "attack", 0)
    bound = float(spec.worst(margins(graph.to(torch.float64), inputs, spec, "crown")))
    return Outcome(Verdict.VERIFIED if bound > 0 else Verdict.UNKNOWN, bound, None, "crown", 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    network(tmp_path / "net.onnx")
    return tmp_path


def decided(folder: Path, text: str, **of_network: object) -> Answer:
    (folder / "p.vnnlib").write_text(text)
    if of_network:
        network(folder / "net.onnx", **of_network)
    return answer(folder / "net.onnx", folder / "p.vnnlib", deadline=Deadline.after(60), prove=prove)


def test_proved_and_broken(folder: Path) -> None:
    holds = decided(folder, BOX + "(assert (>= Y_0 2.5))")
    assert (holds.word, holds.stage, holds.witness) == ("unsat", "crown", "")
    assert holds.lower_bound == pytest.approx(0.5)
    assert decided(folder, BOX + "(assert (>= Y_0 1.5))").word == "sat"


def test_gzipped_files(folder: Path) -> None:
    (folder / "n.onnx.gz").write_bytes(gzip.compress((folder / "net.onnx").read_bytes()))
    (folder / "p.vnnlib.gz").write_bytes(gzip.compress((BOX + "(assert (>= Y_0 2.5))").encode()))
    found = answer(folder / "n.onnx.gz", folder / "p.vnnlib.gz", deadline=Deadline(), prove=prove)
    assert found.word == "unsat"


def test_one_broken_case_decides_and_all_must_hold(folder: Path) -> None:
    boxes = "(assert (or (<= X_0 -0.9) (and (>= X_0 0.9) (>= X_1 0.5))))"
    assert decided(folder, f"{BOX}{boxes}(assert (>= Y_0 1.2))").word == "sat"
    assert decided(folder, f"{BOX}{boxes}(assert (<= Y_1 -0.1))").word == "unsat"


def test_witness_is_in_the_decimal_box_and_onnxruntime_gives_its_outputs(folder: Path) -> None:
    found = decided(folder, HEAD + "(assert (and (<= 0.1 X_0 0.3) (<= 0.6 X_1 0.7)))(assert (>= Y_0 0.999999))")
    assert found.word == "sat"
    values = dict(re.findall(r"\((\w+) (\S+?)\)", found.witness))
    x = [Fraction(values[name]) for name in ("X_0", "X_1")]
    assert Fraction("0.1") <= x[0] <= Fraction("0.3")
    assert Fraction("0.6") <= x[1] <= Fraction("0.7")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "net.onnx"), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": np.array([[float(one) for one in x]], np.float32)})
    assert [Fraction(float(one)) for one in y[0]] == [Fraction(values[name]) for name in ("Y_0", "Y_1")]
    assert Fraction(values["Y_0"]) >= Fraction("0.999999")


def test_a_violation_by_rounding_only_is_not_sat(folder: Path) -> None:
    fixed = HEAD + "(assert (and (<= X_0 0.5) (>= X_0 0.5) (<= X_1 0.5) (>= X_1 0.5)))"
    low = float(np.float32(0.7))  # below 0.7
    assert Fraction(low) < Fraction("0.7")
    found = decided(folder, fixed + "(assert (>= Y_0 0.7))", weight=((0, 0), (0, 0)), bias=(low, 0))
    assert found.word != "sat"
    assert decided(folder, fixed + f"(assert (>= Y_0 {low!r}))").word == "sat"


def test_linear_conditions_on_inputs_are_kept(folder: Path) -> None:
    assert decided(folder, f"{BOX}(assert (<= (+ X_0 X_1) -3))(assert (>= Y_0 0))").word == "unsat"
    corner = "(assert (<= (+ X_0 X_1) 1))"
    found = decided(folder, f"{BOX}{corner}(assert (>= Y_0 0.9))")
    assert found.word == "sat"
    values = dict(re.findall(r"\((\w+) (\S+?)\)", found.witness))
    assert Fraction(values["X_0"]) + Fraction(values["X_1"]) <= 1


def test_rounded_factors_lower_the_bound(folder: Path) -> None:
    """0.1 Y_0 >= 0.2 is reached at the corner only in the rounded condition or in the exact one."""
    found = decided(folder, BOX + "(assert (> (* 0.1 Y_0) 0.2))")
    assert found.word == "unknown"
    assert found.lower_bound <= 0
    assert decided(folder, BOX + "(assert (> (* 0.1 Y_0) 0.2000001))").word == "unsat"


def test_vacuous_and_always(folder: Path) -> None:
    found = decided(folder, BOX + "(assert (>= X_0 2))")
    assert (found.word, found.reason[:8]) == ("unsat", "vacuous:")
    found = decided(folder, BOX)
    assert found.word == "sat"
    assert "every input" in found.reason


def test_real_against_float_arithmetic(folder: Path) -> None:
    """`1e8 + x_1 - 1e8` is x_1 in the reals and 0 in float32: no proof without the remark."""
    found = decided(
        folder,
        HEAD + "(assert (and (<= 1e8 X_0 100000001) (<= 0 X_1 1)))(assert (>= Y_0 0.5))",
        weight=((1, 1), (1, 0)),
        bias=(-1e8, -1e8),
    )
    assert found.word == "unknown"
    assert "differ by" in found.reason


@pytest.mark.parametrize(
    ("text", "word", "reason"),
    [
        (BOX + "(assert (<= Y_0 Y_9))", "error", "p.vnnlib, line 6, column 17: Y_9 is not declared"),
        (BOX + "(declare-const X_2 Real)(assert (<= 0 X_2 1))", "error", "p.vnnlib has 3 inputs, but"),
        (HEAD + "(assert (<= X_0 1))", "error", "missing are X_0 (lower), X_1 (lower), X_1 (upper)"),
        (BOX + 40 * "(assert (or (<= Y_0 0) (<= Y_1 0)))", "unknown", "expand to 1099511627776 disjuncts"),
    ],
)
def test_wrong_input_is_an_answer(folder: Path, text: str, word: str, reason: str) -> None:
    found = decided(folder, text)
    assert found.word == word
    assert reason in found.reason


def test_an_unsupported_operator_is_named(folder: Path) -> None:
    found = decided(folder, BOX + "(assert (<= Y_0 0))", kind="Sin")
    assert found.word == "unknown"
    assert "Sin" in found.reason


def test_lack_of_memory_and_time(folder: Path) -> None:
    (folder / "p.vnnlib").write_text(BOX + "(assert (or (<= X_0 -0.9) (>= X_0 0.9)))(assert (<= Y_0 -1))")

    def without_memory(*_: object, **__: object) -> Outcome:
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"
        )

    calls: list[float] = []

    def slow(*_: object, deadline: Deadline, **__: object) -> Outcome:
        calls.append(deadline.left)
        late = len(calls) == 1
        return Outcome(Verdict.TIMEOUT if late else Verdict.VERIFIED, -1.0 if late else 1.0, None, "split", 5)

    files = folder / "net.onnx", folder / "p.vnnlib"
    found = answer(*files, deadline=Deadline.after(60), prove=without_memory)
    assert (found.word, found.reason[:14]) == ("unknown", "out of memory:")
    found = answer(*files, deadline=Deadline.after(60), prove=slow)
    assert (found.word, found.work) == ("unsat", 10)
    assert calls[0] == pytest.approx(30, abs=2)
    assert calls[2] == pytest.approx(60, abs=2)  # what is left is for the case that stayed open
    calls.clear()
    assert answer(*files, deadline=Deadline.after(0), prove=slow).word == "timeout"
