"""The adjoint of a convolution by an ordinary convolution equals torch's transposed convolution."""

import pytest
import torch
from torch.nn import functional

from robustly.certification.operations.adjoints import adjoint, is_narrow

CASES = [
    (stride, kernel, padding, lost)
    for stride in ((1, 1), (2, 2), (3, 2))
    for kernel in ((1, 1), (3, 3), (4, 3), (5, 5))
    for padding in ((0, 0), (1, 1), (2, 0))
    for lost in ((0, 0), (1, 1), (0, 1), (2, 0))
    if all(more < step for more, step in zip(lost, stride, strict=True))  # a convolution cannot lose more
    if all(2 * around <= size for around, size in zip(padding, kernel, strict=True))
]


@pytest.mark.parametrize(("stride", "kernel", "padding", "lost"), CASES)
def test_few_channels(
    stride: tuple[int, int], kernel: tuple[int, int], padding: tuple[int, int], lost: tuple[int, int]
) -> None:
    draws = torch.Generator().manual_seed(sum((*stride, *kernel, *padding, *lost)))
    weight = torch.randn(5, 3, *kernel, dtype=torch.float64, generator=draws)
    rows = torch.randn(2, 5, 6, 7, dtype=torch.float64, generator=draws)
    setting = {"stride": stride, "dilation": (1, 1), "groups": 1}
    assert is_narrow(weight, setting)
    found = adjoint(rows, weight, setting, padding=padding, lost=lost)
    right = functional.conv_transpose2d(rows, weight, None, stride, padding, lost)
    assert found.shape == right.shape
    assert float((found - right).abs().max()) < 1e-12


@pytest.mark.parametrize(("channels", "groups", "dilation"), [(5, 1, 1), (1, 2, 1), (1, 1, 2)])
def test_others_stay_transposed(channels: int, groups: int, dilation: int) -> None:
    weight = torch.zeros(4, channels, 3, 3)
    assert not is_narrow(weight, {"groups": groups, "dilation": (dilation, dilation)})
