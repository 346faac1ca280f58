"""The adjoint of a convolution: a transposed convolution, by an ordinary one where that is faster."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional

_NARROW = 4
"""Most input channels for which the ordinary convolution is faster on CPUs: 1.5 to 7 times with 1 to 3 channels."""


def is_narrow(weight: Tensor, setting: Mapping[str, Any]) -> bool:
    """Return True if a convolution of two axes has few input channels, one group and no dilation."""
    plain = setting["groups"] == 1 and all(step == 1 for step in setting["dilation"])
    return weight.dim() == 4 and plain and weight.shape[1] <= _NARROW


def adjoint(
    rows: Tensor,
    weight: Tensor,
    setting: Mapping[str, Any],
    *,
    padding: tuple[int, ...] = (0, 0),
    lost: tuple[int, ...] = (0, 0),
) -> Tensor:
    """Coefficients of a convolution's input from those of its output.

    Args:
        rows: `(N, Cout, *size)`.
        weight: weight of the convolution, `(Cout, Cin / groups, *kernel)`.
        setting: stride, dilation and groups of the convolution.
        padding: padding of the convolution.
        lost: numbers of last rows and columns of the padded input that no window covers.
    """
    if is_narrow(weight, setting):
        return _interleaved(rows, weight, setting["stride"], padding, lost)
    back = functional.conv_transpose1d if weight.dim() == 3 else functional.conv_transpose2d
    axes = weight.dim() - 2
    moved: Tensor = back(
        rows, weight, None, setting["stride"], padding[:axes], lost[:axes], setting["groups"], setting["dilation"]
    )
    return moved


def _interleaved(
    rows: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, ...], lost: tuple[int, ...]
) -> Tensor:
    """One convolution for each remainder of the place by the stride; their results are interleaved.

    The input at place `stride * q + r` gets the rows at `q - t` times the weights at `stride * t + r`.
    """
    made, channels, *kernel = weight.shape
    taps = [-(-size // step) for size, step in zip(kernel, stride, strict=True)]
    grown = [tap * step - size for tap, step, size in zip(taps, stride, kernel, strict=True)]
    whole = functional.pad(weight, (0, grown[1], 0, grown[0]))
    parts = whole.view(made, channels, taps[0], stride[0], taps[1], stride[1]).flip(2, 4)
    parts = parts.permute(1, 3, 5, 0, 2, 4).reshape(channels * stride[0] * stride[1], made, *taps)
    moved = functional.conv2d(rows, parts, padding=(taps[0] - 1, taps[1] - 1))
    count, _, height, width = moved.shape
    planes = moved.view(count, channels, *stride, height, width).permute(0, 1, 4, 2, 5, 3)
    full = planes.reshape(count, channels, height * stride[0], width * stride[1])
    sizes = [
        (size - 1) * step + length - 2 * around + more
        for size, step, length, around, more in zip(rows.shape[2:], stride, kernel, padding, lost, strict=True)
    ]
    missing = [around + size - have for around, size, have in zip(padding, sizes, full.shape[2:], strict=True)]
    if max(missing) > 0:
        full = functional.pad(full, (0, max(0, missing[1]), 0, max(0, missing[0])))
    return full[:, :, padding[0] : padding[0] + sizes[0], padding[1] : padding[1] + sizes[1]]
