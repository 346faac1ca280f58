"""Laws of every rule of the table: adjoints, intervals and lower bounds that hold at random points and corners."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from certification.operations.nodes import (
    BENT_NODES,
    LINEAR_NODES,
    boxes_of,
    draws,
    lines_at,
    name_of,
    node_of,
    points_of,
    ragged_rows,
    regular_rows,
    window_rows,
)
from robustly.certification.network import Node, UnsupportedOperationError
from robustly.certification.operations import RULES, Interval, Pushed, Rows, add_rows, supported

BENT = pytest.mark.parametrize("node", BENT_NODES, ids=name_of)
PLANES = [node for node in (*LINEAR_NODES, *BENT_NODES) if RULES[node.op].windows and len(node.shape) == 3]


def is_free(node: Node) -> bool:
    return RULES[node.op].has_free and float(node.settings.get("alpha", 1)) <= 1


def moved_value(pushed: Pushed, inputs: list[Tensor], rows: Rows) -> Tensor:
    value = torch.zeros(rows.leading, dtype=torch.float64)
    value = value if pushed.bias is None else value + pushed.bias
    for part, x in zip(pushed.inputs, inputs, strict=True):
        assert part is not None
        value = value + part.dot(x)
    return value


def test_every_operation_of_the_table_is_tested_and_described():
    assert {node.op for node in (*LINEAR_NODES, *BENT_NODES)} == set(RULES)
    assert [op for op, _ in supported()] == sorted(RULES)
    for op, words in supported():
        assert (RULES[op].relax is None) == (words == "exact: linear")


@pytest.mark.parametrize("node", LINEAR_NODES, ids=name_of)
@pytest.mark.parametrize("rows_of", [regular_rows, ragged_rows])
def test_adjoint(node: Node, rows_of):
    rows = rows_of(node, 3, 4)
    inputs = [draws(3, *shape, seed=20 + count) for count, shape in enumerate(node.input_shapes)]
    output = RULES[node.op].evaluate(node, inputs).expand(3, *node.shape)
    pushed = RULES[node.op].backward(node, rows, None)
    torch.testing.assert_close(moved_value(pushed, inputs, rows), rows.dot(output), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("node", PLANES, ids=name_of)
@pytest.mark.parametrize(("count", "size"), [(5, (1, 1)), (40, (2, 3)), (5, (4, 2))])
def test_windows_are_moved_like_the_full_rows(node: Node, count: int, size: tuple[int, int]):
    rule, boxes = RULES[node.op], boxes_of(node, 3, 2.0)
    rows = window_rows(node, 3, count, size)
    extra = None if rule.relax is None else rule.relax(node, boxes, None)
    small, full = rule.backward(node, rows, extra), rule.backward(node, rows.dense(), extra)
    for part, whole in zip(small.inputs, full.inputs, strict=True):
        assert part is not None
        assert whole is not None
        torch.testing.assert_close(part.dense().coefficients, whole.coefficients, rtol=1e-12, atol=1e-12)
        if part.offset is not None:  # what lies outside the plane is 0
            torch.testing.assert_close(part.coefficients.abs().sum(), whole.coefficients.abs().sum())
    assert (small.bias is None) == (full.bias is None)
    if small.bias is not None:
        torch.testing.assert_close(small.bias, full.bias, rtol=1e-12, atol=1e-12)


def test_windows_of_one_cell_take_the_product_and_few_wide_ones_the_convolution():
    node = next(node for node in PLANES if node.op == "conv")
    many, few = window_rows(node, 3, 200, (2, 2)), window_rows(node, 3, 3, (2, 2))
    moved = RULES["conv"].backward(node, many, None).inputs[0]
    part = Rows(many.coefficients[:3], many.example[:3], many.offset[:3], many.plane)
    same = RULES["conv"].backward(node, part, None).inputs[0]
    torch.testing.assert_close(moved.dense().coefficients[:3], same.dense().coefficients)
    assert few.plane == node.shape[1:]


def typed(node: Node, dtype: torch.dtype) -> Node:
    """The node with floating-point constants of this type."""
    constants = {name: one.to(dtype) if one.is_floating_point() else one for name, one in node.constants.items()}
    return replace(node, constants=constants)


def values_at(node: Node, points: list[Tensor]) -> Tensor:
    """Outputs `(P, B, *shape)` at points `(P, B, *shape)`."""
    values = RULES[node.op].evaluate(node, [point.flatten(0, 1) for point in points])
    return values.reshape(*points[0].shape[:2], *node.shape) if points else values


@pytest.mark.parametrize("node", [node for node in LINEAR_NODES if node.inputs], ids=name_of)
def test_interval_of_a_linear_operation_is_attained(node: Node):
    """Each bound is the value at a corner: by the adjoint of the value, which has the signs of the coefficients."""
    rule, boxes = RULES[node.op], boxes_of(node, 2, 2.0)
    found = rule.interval(node, boxes)
    ones = torch.eye(node.size, dtype=torch.float64).view(1, -1, *node.shape).expand(2, -1, *node.shape)
    for sign, bound in ((1, found.lower), (-1, found.upper)):
        rows = Rows(sign * ones)
        pushed = rule.backward(node, rows, None)
        least = torch.zeros(2, node.size, dtype=torch.float64) if pushed.bias is None else pushed.bias
        for part, box in zip(pushed.inputs, boxes, strict=True):
            assert part is not None
            up, down = part.coefficients.clamp_min(0), part.coefficients.clamp_max(0)
            least = least + Rows(up).dot(box.lower) + Rows(down).dot(box.upper)
        torch.testing.assert_close(sign * bound.flatten(1), least, rtol=1e-10, atol=1e-10)
    single = typed(node, torch.float32)
    assert rule.interval(single, boxes_of(node, 2, 2.0, dtype=torch.float32)).lower.dtype == torch.float32


@BENT
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_lines_and_interval_enclose_the_operation(node: Node, dtype: torch.dtype):
    """1,000 points, half of them corners, for the standard relaxation and for free parameters.

    Lines of single precision hold as they are; the slope of a leaky ReLU is rounded to single precision.
    """
    rule = RULES[node.op]
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6 * (node.op == "leaky_relu")
    assert rule.relax is not None
    one = typed(node, dtype)
    for width in (0.0, 1e-4, 1.0, 6.0):
        boxes = boxes_of(node, 1, width, seed=3, dtype=dtype)
        points = points_of(boxes, 1000)
        values = values_at(node, points)
        found = rule.interval(one, boxes)
        assert found.lower.dtype == dtype
        assert bool((values >= found.lower - tolerance).all())
        assert bool((values <= found.upper + tolerance).all())
        shape = (1, *node.shape)
        choices = [None, torch.rand(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)]
        for free in choices if rule.has_free else choices[:1]:
            extra = rule.relax(one, boxes, free)
            assert extra.lower_slope.dtype == dtype
            low, high = lines_at(node, extra, points)
            assert bool((low <= values + tolerance).all())
            assert bool((high >= values - tolerance).all())
            if width == 0:
                assert float((high - low).max()) < 1e4 * torch.finfo(dtype).eps


@BENT
def test_lines_are_closer_than_the_interval(node: Node):
    """On the mean over random boxes, in the middle of the box."""
    rule, boxes = RULES[node.op], boxes_of(node, 40, 1.0, seed=9)
    assert rule.relax is not None
    middle = [((box.lower + box.upper) / 2).unsqueeze(0) for box in boxes]
    low, high = lines_at(node, rule.relax(node, boxes, None), middle)
    found = rule.interval(node, boxes)
    ratio = float((high - low).mean() / (found.upper - found.lower).mean())
    assert ratio < (1.01 if node.op in ("elu", "max_pool") else 0.5), ratio


@BENT
def test_rows_take_the_line_on_the_side_of_their_sign(node: Node):
    rule, boxes = RULES[node.op], boxes_of(node, 2, 2.0)
    assert rule.relax is not None
    extra, rows = rule.relax(node, boxes, None), regular_rows(node, 2, 3)
    points = points_of(boxes, 1)
    low, high = (one.squeeze(0).unsqueeze(1) for one in lines_at(node, extra, points))
    up, down = rows.coefficients.clamp_min(0), rows.coefficients.clamp_max(0)
    found = moved_value(rule.backward(node, rows, extra), [point.squeeze(0) for point in points], rows)
    torch.testing.assert_close(found, (up * low + down * high).flatten(2).sum(2), rtol=1e-10, atol=1e-10)


@BENT
def test_ragged_rows_are_moved_like_regular_ones(node: Node):
    rule, boxes = RULES[node.op], boxes_of(node, 2, 2.0)
    extra = rule.relax(node, boxes, None)
    regular = regular_rows(node, 2, 3)
    ragged = Rows(regular.coefficients.flatten(0, 1), torch.tensor([0, 0, 0, 1, 1, 1]))
    first, second = rule.backward(node, regular, extra), rule.backward(node, ragged, extra)
    for one, other in zip(first.inputs, second.inputs, strict=True):
        torch.testing.assert_close(one.coefficients.flatten(0, 1), other.coefficients)
    assert (first.bias is None) == (second.bias is None)
    if first.bias is not None:
        torch.testing.assert_close(first.bias.flatten(), second.bias)


@pytest.mark.parametrize("node", [node for node in BENT_NODES if is_free(node)], ids=name_of)
def test_free_parameters_of_each_row(node: Node):
    """Parameters per row give what each row gets alone with these parameters; they have gradients."""
    rule, boxes = RULES[node.op], boxes_of(node, 2, 4.0)
    rows = regular_rows(node, 2, 3)
    free = torch.rand(2, 3, *node.shape, dtype=torch.float64).requires_grad_()
    gathered = [type(box)(rows.gather(box.lower), rows.gather(box.upper)) for box in boxes]
    extra = rule.relax(node, gathered, free)
    assert extra.per_row
    pushed = rule.backward(node, rows, extra)
    for row in range(3):
        alone = Rows(rows.coefficients[:, row : row + 1])
        single = rule.backward(node, alone, rule.relax(node, boxes, free[:, row]))
        for one, other in zip(pushed.inputs, single.inputs, strict=True):
            torch.testing.assert_close(one.coefficients[:, row], other.coefficients[:, 0])
        torch.testing.assert_close(pushed.bias[:, row], single.bias[:, 0])
    total = pushed.bias.sum() + sum((part.coefficients**2).sum() for part in pushed.inputs)
    (gradient,) = torch.autograd.grad(total, free)
    assert bool(gradient.isfinite().all())
    assert float(gradient.abs().max()) > 0


@BENT
def test_gradients_for_bounds_are_finite(node: Node):
    """Also for intervals of one point and for intervals that end at 0."""
    boxes = boxes_of(node, 2, 4.0)
    for box in boxes:
        box.lower.flatten()[:3] = torch.tensor([0.0, -1.0, 0.5])
        box.upper.flatten()[:3] = torch.tensor([0.0, 0.0, 0.5])
        box.lower.requires_grad_()
        box.upper.requires_grad_()
    rule, rows = RULES[node.op], regular_rows(node, 2, 3)
    before = [box.lower.detach().clone() for box in boxes]
    pushed = rule.backward(node, rows, rule.relax(node, boxes, None))
    total = sum(part.dot(box.lower).sum() for part, box in zip(pushed.inputs, boxes, strict=True))
    total = total + pushed.bias.sum() + sum(bound.sum() for bound in rule.interval(node, boxes))
    total.backward()
    for box, old in zip(boxes, before, strict=True):
        assert bool(box.lower.grad.isfinite().all())
        assert bool(box.upper.grad is None or box.upper.grad.isfinite().all())
        assert torch.equal(box.lower.detach(), old)


def test_the_difference_of_a_value_with_itself_is_zero():
    """relu(x) - relu(x) with one shared node: the rows cancel before the relaxation, whatever it is."""
    node = node_of("sub", (3,), (3,))
    rows = regular_rows(node, 1, 4)
    first, second = RULES["sub"].backward(node, rows, None).inputs
    assert first is not None
    assert second is not None
    both = add_rows(first, second)
    relu = node_of("relu", (3,))
    box = Interval(torch.tensor([[-1.0, -2.0, -3.0]]).double(), torch.tensor([[2.0, 1.0, 3.0]]).double())
    pushed = RULES["relu"].backward(relu, both, RULES["relu"].relax(relu, [box], None))
    assert pushed.inputs[0] is not None
    assert float(pushed.inputs[0].coefficients.abs().max()) == 0
    assert float(pushed.bias.abs().max()) == 0


@pytest.mark.parametrize(
    ("op", "setting", "message"),
    [
        ("clip", {"low": 1.0, "high": 0.0}, r"'tested' \(clip\) clips to \[1, 0\]; supported is the lower limit"),
        ("elu", {"alpha": -1.0}, r"'tested' \(elu\) has alpha -1; supported is 0 or more"),
        ("softplus", {"beta": 0.0}, r"'tested' \(softplus\) has beta 0; supported is more than 0"),
    ],
)
def test_settings_for_which_the_bounds_would_be_wrong_are_refused(
    op: str, setting: dict[str, object], message: str
):
    node = node_of(op, (3,), settings=setting, shape=(3,))
    zero = torch.zeros(1, 3)
    with pytest.raises(UnsupportedOperationError, match=message):
        RULES[op].evaluate(node, [zero])
    with pytest.raises(UnsupportedOperationError, match=message):
        RULES[op].relax(node, [Interval(zero, zero)], None)


@pytest.mark.parametrize("node", PLANES, ids=name_of)
def test_no_rows(node: Node):
    rule = RULES[node.op]
    extra = None if rule.relax is None else rule.relax(node, boxes_of(node, 2, 1.0), None)
    for rows in (window_rows(node, 2, 0, (2, 2)), ragged_rows(node, 2, 0), regular_rows(node, 2, 0)):
        for part in rule.backward(node, rows, extra).inputs:
            assert part is not None
            assert part.coefficients.numel() == 0
