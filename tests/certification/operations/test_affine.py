"""Convolutions: adjoints for every geometry, and closed forms of linear layers."""

import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from certification.operations.nodes import draws, node_of, regular_rows, window_rows
from robustly.certification.operations import RULES, Interval, Rows

AXIS = st.tuples(
    *(st.integers(*limits) for limits in ((1, 9), (1, 4), (1, 4), (0, 3), (1, 3)))
)  # length, kernel, stride, padding, dilation


@settings(max_examples=30)
@given(AXIS, AXIS, st.sampled_from([1, 2, 4]))
@example((7, 3, 2, 1, 1), (8, 3, 2, 1, 1), 1)  # the last column is read by no window, the last row is
@example((9, 2, 4, 0, 1), (9, 1, 3, 3, 1), 2)
def test_adjoint_of_any_convolution(down: tuple[int, ...], right: tuple[int, ...], groups: int):
    assume(
        all(
            length + 2 * padding > dilation * (kernel - 1) for length, kernel, _, padding, dilation in (down, right)
        )
    )
    _, kernel, stride, padding, dilation = zip(down, right, strict=True)
    setting = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    weight = draws(4, 4 // groups, *kernel)
    node = node_of("conv", (4, down[0], right[0]), settings=setting, constants={"weight": weight, "bias": draws(4)})
    x = draws(2, *node.input_shapes[0], seed=3)
    y = functional.conv2d(x, weight, draws(4), stride, padding, dilation, groups)
    for rows in (regular_rows(node, 2, 2), window_rows(node, 2, 3, (1, 2)), window_rows(node, 2, 30, (2, 1))):
        pushed = RULES["conv"].backward(node, rows, None)
        moved, bias = pushed.inputs[0], pushed.bias
        assert moved is not None
        torch.testing.assert_close(moved.dot(x) + bias, rows.dot(y), rtol=1e-10, atol=1e-10)


def test_windows_grow_with_stride_dilation_and_kernel():
    setting = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 1}
    node = node_of("conv", (1, 40, 40), settings=setting, constants={"weight": draws(1, 1, 3, 2)})
    rows = Rows(draws(1, 1, 2, 3), torch.tensor([0]), torch.tensor([[5, 7]]), node.shape[1:])
    moved = RULES["conv"].backward(node, rows, None).inputs[0]
    assert moved is not None
    assert moved.coefficients.shape == (1, 1, (2 - 1) * 2 + 3, (3 - 1) + 2 * 1 + 1)
    assert moved.offset is not None
    assert moved.offset.tolist() == [[9, 5]]
    assert moved.plane == (40, 40)


def test_windows_as_large_as_the_plane_become_full_rows():
    setting = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    node = node_of("conv", (2, 4, 4), settings=setting, constants={"weight": draws(3, 2, 3, 3)})
    moved = RULES["conv"].backward(node, window_rows(node, 2, 5, (2, 2)), None).inputs[0]
    assert moved is not None
    assert moved.offset is None
    assert moved.coefficients.shape == (5, 2, 4, 4)


def test_interval_of_a_linear_layer_by_hand():
    node = node_of(
        "linear", (2,), constants={"weight": torch.tensor([[1.0, -2.0]]), "bias": torch.tensor([3.0])}, shape=(1,)
    )
    box = Interval(torch.tensor([[-1.0, 0.0]]), torch.tensor([[2.0, 5.0]]))
    found = RULES["linear"].interval(node, [box])
    assert found.lower.item() == -8.0
    assert found.upper.item() == 5.0
