"""Networks as mixed-integer linear programs: columns for the values of every node, rows for its operation.

Tjeng, Xiao and Tedrake, "Evaluating Robustness of Neural Networks with Mixed Integer Programming" (ICLR 2019). An
open ReLU r = relu(z) with l < z < u has a binary a: r >= z, r >= 0, r <= u a, r <= z - l (1 - a).
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from robustly.certification.network import Graph, Node, UnsupportedOperationError
from robustly.certification.network.graph import INPUT
from robustly.certification.operations import RULES, Interval
from robustly.certification.operations.pooling import taps
from robustly.certification.sets import InputSet

Numbers = NDArray[np.float64]
Columns = NDArray[np.int64]

LARGEST = 5000
"""Number of values of all nodes up to which a program is made."""
_CHUNK = 512


@dataclass
class Program:
    """A linear program under construction, with some whole columns.

    Args:
        lower: least value of each column, in parts.
        upper: largest value of each column, in parts.
        whole: 1 for columns that are whole numbers, in parts.
        entries: row, column and value of the coefficients, in parts.
        limits: least and largest value of each row, in parts.
    """

    lower: list[Numbers] = field(default_factory=list)
    upper: list[Numbers] = field(default_factory=list)
    whole: list[Numbers] = field(default_factory=list)
    entries: list[tuple[Columns, Columns, Numbers]] = field(default_factory=list)
    limits: list[tuple[Numbers, Numbers]] = field(default_factory=list)
    columns: int = 0
    rows: int = 0

    def copy(self) -> "Program":
        """A program to which more columns and rows can be added."""
        return replace(
            self,
            lower=[*self.lower],
            upper=[*self.upper],
            whole=[*self.whole],
            entries=[*self.entries],
            limits=[*self.limits],
        )

    def add_columns(self, lower: Numbers, upper: Numbers, whole: bool = False) -> Columns:
        """Add columns with their limits, and return their indices."""
        self.lower.append(lower)
        self.upper.append(upper)
        self.whole.append(np.full(len(lower), float(whole)))
        self.columns += len(lower)
        return np.arange(self.columns - len(lower), self.columns)

    def free_columns(self, count: int) -> Columns:
        """Add columns without limits."""
        return self.add_columns(np.full(count, -np.inf), np.full(count, np.inf))

    def add_rows(self, lower: Numbers, upper: Numbers, *parts: tuple[Columns, Numbers]) -> None:
        """Add rows `lower <= sum over parts of coefficients * columns <= upper`.

        A part is an index of columns with a matrix of coefficients, `(rows, columns)`, or with one coefficient for
        each row and column, `(rows,)`.
        """
        count = len(lower)
        for columns, coefficients in parts:
            if coefficients.ndim == 1:
                row, column = np.arange(count), columns
                values = coefficients
            else:
                row, at = coefficients.nonzero()
                column, values = columns[at], coefficients[row, at]
            self.entries.append((row + self.rows, column, values))
        self.limits.append((lower, upper))
        self.rows += count

    def relu(self, z: Columns, shift: Numbers, lower: Numbers, upper: Numbers) -> Columns:
        """Columns of `relu(z + shift)` for bounds of `z + shift`."""
        out = self.add_columns(np.zeros(len(z)), np.maximum(upper, 0.0))
        one = np.ones(len(z))
        on, open_ = lower >= 0, (lower < 0) & (upper > 0)
        self.add_rows(shift[on], shift[on], (out[on], one[on]), (z[on], -one[on]))
        r, x, s, low, one = out[open_], z[open_], shift[open_], lower[open_], one[open_]
        above = np.full(len(r), np.inf)
        a = self.add_columns(0 * one, one, whole=True)
        self.add_rows(s, above, (r, one), (x, -one))
        self.add_rows(-above, 0 * one, (r, one), (a, -upper[open_]))
        self.add_rows(-above, s - low, (r, one), (x, -one), (a, -low))
        return out

    def solve(self, cost: Numbers, seconds: float, relaxed: bool) -> Any:
        """Least value of a linear function, by HiGHS through scipy."""
        optimize, sparse = load("scipy.optimize"), load("scipy.sparse")
        row, column, values = (np.concatenate([part[place] for part in self.entries]) for place in range(3))
        matrix = sparse.csr_array((values, (row, column)), shape=(self.rows, self.columns))
        low, high = (np.concatenate([part[place] for part in self.limits]) for place in range(2))
        whole = np.concatenate(self.whole)
        options = {"mip_rel_gap": 1e-9} | ({"time_limit": seconds} if np.isfinite(seconds) else {})
        return optimize.milp(
            cost,
            integrality=0 * whole if relaxed else whole,
            bounds=optimize.Bounds(np.concatenate(self.lower), np.concatenate(self.upper)),
            constraints=optimize.LinearConstraint(matrix, low, high),
            options=options,
        )


def load(name: str) -> Any:
    """A module of scipy.

    Raises:
        ImportError: scipy is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError("mixed-integer programs need the package scipy: pip install scipy") from error


def encode(graph: Graph, inputs: InputSet, bounds: Mapping[int, Interval]) -> tuple[Program, Columns, Columns]:
    """The program of a network over one input set, with the columns of its input and of its output.

    Args:
        graph: the network, in float64.
        inputs: a box, or the intersection of a box and an l1 ball, of one example.
        bounds: bounds of every node on which a ReLU, a clip or a max pool depends directly.

    Raises:
        UnsupportedOperationError: an operation or a ball has no exact encoding, or the network is too large.
    """
    size = sum(node.size for node in graph.nodes)
    if size > LARGEST:
        raise UnsupportedOperationError(
            f"{graph.source} has {size:,} values: mixed-integer programs are made for up to {LARGEST:,}"
        )
    program = Program()
    places: list[Columns] = []
    for node in graph.nodes:
        sources = [places[one] for one in node.inputs]
        if node.op == INPUT:
            places.append(_input(program, inputs, graph.source))
        elif node.op == "reshape":
            places.append(sources[0])
        elif RULES[node.op].relax is None:
            places.append(_affine(program, node, sources))
        else:
            low, high = (_numbers(bound) for bound in bounds[node.inputs[0]])
            places.append(_kinked(program, node, sources[0], low, high, graph.source))
    return program, places[0], places[-1]


def _numbers(values: torch.Tensor) -> Numbers:
    return values.detach().cpu().double().flatten().numpy()


def _input(program: Program, inputs: InputSet, source: str) -> Columns:
    x = program.add_columns(_numbers(inputs.lower), _numbers(inputs.upper))
    if inputs.ball is None:
        return x
    if inputs.ball.norm != "l1":
        raise UnsupportedOperationError(
            f"{source}: mixed-integer programs are made for boxes and l1 balls, not for {inputs.ball.norm} balls"
        )
    center, one, above = _numbers(inputs.ball.center), np.ones(len(x)), np.full(len(x), np.inf)
    away = program.add_columns(0 * one, above)
    program.add_rows(-center, above, (away, one), (x, -one))
    program.add_rows(center, above, (away, one), (x, one))
    program.add_rows(np.array([-np.inf]), _numbers(inputs.ball.radius), (away, one[None]))
    return x


def _affine(program: Program, node: Node, sources: Sequence[Columns]) -> Columns:
    """Rows of a linear operation: its matrix is found by evaluation on the unit vectors."""
    rule = RULES[node.op]
    zeros = [torch.zeros(1, *shape, dtype=torch.float64) for shape in node.input_shapes]
    shift = rule.evaluate(node, zeros).reshape(1, -1)
    out = program.free_columns(node.size)
    parts = [(out, np.ones(node.size))]
    for place, (columns, shape) in enumerate(zip(sources, node.input_shapes, strict=True)):
        for start in range(0, len(columns), _CHUNK):
            some = columns[start : start + _CHUNK]
            units = torch.zeros(len(some), len(columns), dtype=torch.float64)
            units[torch.arange(len(some)), start + torch.arange(len(some))] = 1.0
            given = [one.expand(len(some), *one.shape[1:]) for one in zeros]
            given[place] = units.view(len(some), *shape)
            matrix = rule.evaluate(node, given).flatten(1) - shift
            parts.append((some, -matrix.T.numpy()))
    program.add_rows(_numbers(shift), _numbers(shift), *parts)
    return out


def _kinked(program: Program, node: Node, x: Columns, low: Numbers, high: Numbers, source: str) -> Columns:
    zero = np.zeros(len(x))
    if node.op == "relu":
        return program.relu(x, zero, low, high)
    if node.op in ("leaky_relu", "abs"):
        slope = np.full(len(x), -1.0 if node.op == "abs" else node.settings.get("slope", 0.0))
        if "slope" in node.constants:
            slope = _numbers(node.constants["slope"].expand(node.shape))
        r = program.relu(x, zero, low, high)  # slope x + (1 - slope) relu(x)
        out = program.free_columns(len(x))
        program.add_rows(zero, zero, (out, zero + 1), (x, -slope), (r, slope - 1))
        return out
    if node.op == "clip":  # relu(x - least) + least - relu(x - most)
        least, most = (float(node.settings[name]) for name in ("low", "high"))
        start, base = (
            (x, 0.0) if least == -np.inf else (program.relu(x, zero - least, low - least, high - least), least)
        )
        parts = [(start, zero - 1)]
        if most != np.inf:
            parts.append((program.relu(x, zero - most, low - most, high - most), zero + 1))
        out = program.free_columns(len(x))
        program.add_rows(zero + base, zero + base, (out, zero + 1), *parts)
        return out
    if node.op == "max_pool":
        return _max_pool(program, node, x, low, high)
    raise UnsupportedOperationError(
        f"Operation {node.op!r} of node {node.name!r} in {source} has no mixed-integer encoding; supported are "
        "linear operations, relu, leaky_relu, abs, clip and max_pool"
    )


def _max_pool(program: Program, node: Node, x: Columns, low: Numbers, high: Numbers) -> Columns:
    """The largest value of each window: a binary for every value that can be the largest; they sum to 1."""
    shape = node.input_shapes[0]
    places = np.zeros((1, 1), dtype=np.int64)
    for axis, length in enumerate(shape[1:]):
        along = np.array(taps(node, axis))
        both = places[:, None, :, None] * length + along[None, :, None, :]
        both[np.broadcast_to((places < 0)[:, None, :, None] | (along < 0)[None, :, None, :], both.shape)] = -1
        places = both.reshape(both.shape[0] * both.shape[1], -1)
    plane = int(np.prod(shape[1:]))
    out = program.free_columns(node.size)
    for window, largest in enumerate(out):
        channel, at = divmod(window, places.shape[1])
        read = places[:, at][places[:, at] >= 0] + channel * plane
        read = read[high[read] >= low[read].max()]
        one = np.ones(len(read))
        y = np.full(len(read), largest)
        if len(read) == 1:
            program.add_rows(0 * one, 0 * one, (y, one), (x[read], -one))
            continue
        a = program.add_columns(0 * one, one, whole=True)
        room = high[read].max() - low[read]
        program.add_rows(0 * one, one * np.inf, (y, one), (x[read], -one))
        program.add_rows(-one * np.inf, room, (y, one), (x[read], -one), (a, room))
        program.add_rows(np.ones(1), np.ones(1), (a, one[None]))
    return out
