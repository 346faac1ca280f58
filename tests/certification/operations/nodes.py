"""One or more nodes of every operation, with random inputs, for tests of the rules."""

import torch
from torch import Tensor

from robustly.certification.network import Node
from robustly.certification.operations import RULES, Interval, Relaxation, Rows

INFINITY = float("inf")


def node_of(
    op: str,
    *shapes: tuple[int, ...],
    settings: dict[str, object] | None = None,
    constants: dict[str, Tensor] | None = None,
    shape: tuple[int, ...] | None = None,
) -> Node:
    """A node that reads inputs of these shapes; its shape is computed if it is not given."""
    first = Node(
        "tested", op, tuple(range(len(shapes))), shape or shapes[0], settings or {}, constants or {}, shapes
    )
    if shape is None:
        made = RULES[op].evaluate(first, [torch.zeros(1, *one, dtype=torch.float64) for one in shapes])
        shape = tuple(made.shape[1:])
    return Node("tested", op, first.inputs, shape, settings or {}, constants or {}, shapes)


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _conv(stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, **more: object) -> dict[str, object]:
    return {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, **more}


def _pool(kernel, stride, padding=(0, 0), ceil_mode=False, **more: object) -> dict[str, object]:
    return {"kernel": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil_mode, **more}


def _linear_nodes() -> list[Node]:
    weight = {"weight": draws(8, 2, 3, 2), "bias": draws(8)}
    return [
        node_of("linear", (5,), constants={"weight": draws(3, 5), "bias": draws(3)}),
        node_of("linear", (4, 5), constants={"weight": draws(3, 5), "bias": draws(3)}),
        node_of("linear", (5,), constants={"weight": draws(3, 5)}),
        node_of("conv", (2, 6, 7), settings=_conv((2, 2), (1, 0)), constants=weight),
        node_of("conv", (4, 9, 7), settings=_conv((3, 1), (2, 1), (2, 3), 2), constants=weight),
        node_of("conv", (4, 6, 6), settings=_conv((1, 2), groups=2), constants={"weight": weight["weight"]}),
        node_of("conv", (2, 9), settings=_conv((2,), (1,), (2,)), constants={"weight": draws(3, 2, 3)}),
        node_of(
            "conv_transpose",
            (4, 3, 4),
            settings=_conv((2, 3), (1, 0), (1, 2), 2, output_padding=(1, 2)),
            constants={"weight": draws(4, 3, 3, 2), "bias": draws(6)},
        ),
        node_of(
            "conv_transpose",
            (2, 5),
            settings=_conv((2,), (0,), (3,), output_padding=(2,)),
            constants={"weight": draws(2, 3, 2)},
        ),
        node_of("scale", (3, 4, 5), constants={"factor": draws(3, 1, 1), "shift": draws(3, 1, 1, seed=1)}),
        node_of("scale", (3, 4, 5), constants={"factor": draws(3, 4, 5), "shift": draws(4, 5, seed=1)}),
        node_of("scale", (3, 4, 5), constants={"shift": draws(1, 1, 5)}),
        node_of("scale", (7,), constants={"factor": draws(7)}),
    ]


def _moving_nodes() -> list[Node]:
    return [
        node_of("constant", constants={"value": draws(3, 4)}, shape=(3, 4)),
        node_of("reshape", (3, 4, 5), shape=(6, 10)),
        node_of("reshape", (3, 4), shape=(12,)),
        node_of("transpose", (3, 4, 5), settings={"permutation": (2, 0, 1)}),
        node_of("slice", (3, 9), settings={"axis": 1, "start": 1, "stop": 8, "step": 3}),
        node_of("slice", (3, 9), settings={"axis": -1, "start": -4, "stop": 2**40, "step": 1}),
        node_of("slice", (3, 9), settings={"axis": 0, "start": 0, "stop": -1, "step": 1}),
        node_of(
            "gather",
            (3, 5),
            settings={"axis": 1},
            constants={"index": torch.tensor([[4, -5], [4, 1]])},
            shape=(3, 2, 2),
        ),
        node_of("gather", (3, 5), settings={"axis": 0}, constants={"index": torch.tensor(-1)}, shape=(5,)),
        node_of("concat", (3, 2), (3, 4), settings={"axis": 1}),
        node_of("concat", (3, 2), (3, 4), (3, 1), settings={"axis": -1}),
        node_of("pad", (2, 3, 4), settings={"pads": (1, 2, 0, 3), "value": 0.0}),
        node_of("pad", (2, 3, 4), settings={"pads": (1, -1, -1, 2, 1, 0), "value": 1.5}),
        node_of("expand", (3, 1), shape=(2, 3, 4)),
        node_of("expand", (1, 4), shape=(1, 4)),
        node_of("sum", (3, 4, 5), settings={"axes": (1, -1), "keepdim": False}),
        node_of("sum", (3, 4, 5), settings={"axes": (-3,), "keepdim": True}),
        node_of("add", (3, 4), (3, 4)),
        node_of("sub", (3, 4), (3, 4)),
        node_of("avg_pool", (2, 7, 8), settings=_pool((3, 2), (2, 2), (1, 0), count_include_pad=True)),
        node_of("avg_pool", (2, 7, 8), settings=_pool((3, 3), (2, 2), (1, 1), True, count_include_pad=False)),
        node_of("avg_pool", (2, 8, 8), settings=_pool((3, 3), (2, 3), (1, 1), True, count_include_pad=True)),
        node_of("avg_pool", (2, 9), settings=_pool((2,), (3,), (1,), count_include_pad=True)),
        node_of("adaptive_avg_pool", (2, 7, 5), shape=(2, 3, 2)),
        node_of("adaptive_avg_pool", (2, 7), shape=(2, 4)),
    ]


def _bent_nodes() -> list[Node]:
    shape = (3, 4, 5)
    return [
        node_of("relu", shape),
        *(node_of("leaky_relu", shape, settings={"slope": slope}) for slope in (0.1, 3.0, -0.5)),
        node_of("leaky_relu", shape, constants={"slope": draws(3, 1, 1)}),
        node_of("abs", shape),
        *(
            node_of("clip", shape, settings={"low": low, "high": high})
            for low, high in ((0.0, 0.75), (-1.0, 1.0), (-INFINITY, 0.25), (0.125, INFINITY))
        ),
        node_of("sigmoid", shape),
        node_of("tanh", shape),
        node_of("softplus", shape),
        node_of("softplus", shape, settings={"beta": 3.0}),
        *(node_of("elu", shape, settings={"alpha": alpha}) for alpha in (1.0, 0.3, 2.0)),
        node_of("square", shape),
        *(node_of("gelu", shape, settings={"approximate": kind}) for kind in ("none", "tanh")),
        node_of("silu", shape),
        node_of("mul", shape, shape),
        node_of("max_pool", (2, 7, 8), settings=_pool((3, 2), (2, 2), (1, 1), dilation=(1, 1))),
        node_of("max_pool", (2, 8, 9), settings=_pool((2, 3), (1, 2), (0, 1), True, dilation=(2, 1))),
        node_of("max_pool", (2, 9), settings=_pool((3,), (2,), (1,), dilation=(1,))),
    ]


LINEAR_NODES = (*_linear_nodes(), *_moving_nodes())
"""Nodes of the operations without a relaxation."""
BENT_NODES = tuple(_bent_nodes())
"""Nodes of the operations with a relaxation."""


def name_of(node: Node) -> str:
    return f"{node.op}-{node.input_shapes}"


def boxes_of(
    node: Node, batch: int, width: float, seed: int = 0, dtype: torch.dtype = torch.float64
) -> list[Interval]:
    """Random boxes around 0, the widths between 0 and `width`, for each input."""
    boxes = []
    for count, shape in enumerate(node.input_shapes):
        center = draws(batch, *shape, seed=seed + 10 * count).to(dtype)
        radius = width / 2 * draws(batch, *shape, seed=seed + 10 * count + 1).abs().clamp_max(1).to(dtype)
        boxes.append(Interval(center - radius, center + radius))
    return boxes


def points_of(boxes: list[Interval], count: int, seed: int = 0) -> list[Tensor]:
    """Random points of boxes, half of them corners, `(count, B, *shape)` for each input, in double precision."""
    points = []
    for number, box in enumerate(boxes):
        generator = torch.Generator().manual_seed(seed + number)
        low, high = box.lower.double(), box.upper.double()
        place = torch.rand(count, *low.shape, generator=generator, dtype=torch.float64)
        place[: count // 2] = place[: count // 2].round()
        points.append(torch.minimum(torch.maximum(low + place * (high - low), low), high))
    return points


def regular_rows(node: Node, batch: int, count: int, seed: int = 5) -> Rows:
    return Rows(draws(batch, count, *node.shape, seed=seed))


def ragged_rows(node: Node, batch: int, count: int, seed: int = 6) -> Rows:
    example = torch.randint(0, batch, (count,), generator=torch.Generator().manual_seed(seed))
    return Rows(draws(count, *node.shape, seed=seed), example)


def window_rows(node: Node, batch: int, count: int, size: tuple[int, int], seed: int = 7) -> Rows:
    """Windows in and at the border of the plane, 0 outside."""
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = node.shape
    offset = torch.stack(
        [torch.randint(1 - size[i], (height, width)[i], (count,), generator=generator) for i in (0, 1)], 1
    )
    rows = Rows(
        draws(count, channels, *size, seed=seed),
        torch.randint(0, batch, (count,), generator=generator),
        offset,
        (height, width),
    )
    inside = rows.gather(torch.ones(batch, *node.shape, dtype=torch.float64))
    return rows.with_coefficients(rows.coefficients * inside)


def lines_at(node: Node, extra: Relaxation, inputs: list[Tensor]) -> Interval:
    """Values of the two lines of a relaxation at inputs `(P, B, *shape)`, one for each value of the output."""

    def line(side: int, slope: Tensor, offset: Tensor | None) -> Tensor:
        shift = 0.0 if offset is None else offset.double()
        if len(inputs) == 2:
            return slope[..., 0].double() * inputs[0] + slope[..., 1].double() * inputs[1] + shift
        x = inputs[0]
        if extra.index is not None:
            place = extra.index[side].flatten(2).expand(len(x), -1, -1, -1)
            x = x.flatten(3).gather(3, place).reshape(len(x), *slope.shape)
        return slope.double() * x + shift

    return Interval(line(0, extra.lower_slope, extra.lower_offset), line(1, extra.upper_slope, extra.upper_offset))
