"""sRGB, linear RGB, CIE XYZ relative to white, CIE 1976 L*a*b* and L*u*v*, with finite gradients everywhere.

White is the white of sRGB (D65): the rows of the matrix to XYZ are divided by their sums, so that white is
(1, 1, 1). Functions with a line near 0 are sums of a line up to the knee and a curve from it: this takes a third of
the time of `torch.where`, and no gradient is infinite.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from robustly.threats.contract import Images
from robustly.threats.known_slopes import wants_slopes, where_below, where_equal, with_slopes
from robustly.threats.precision import without_autocast

_TO_XYZ = torch.tensor(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9504]], dtype=torch.float64
)
_WHITE = _TO_XYZ.sum(1)  # X, Y, Z of white; Y is 1
_TO_RELATIVE = _TO_XYZ / _WHITE[:, None]
_FROM_RELATIVE = torch.linalg.inv(_TO_RELATIVE)
_FROM_XYZ = _FROM_RELATIVE / _WHITE
# Z is (z_per_y - 5) Y: linear RGB of X, Y and z_per_y Y
_FROM_FACTORS = torch.stack([_FROM_XYZ[:, 0], _FROM_XYZ[:, 1] - 5 * _FROM_XYZ[:, 2], _FROM_XYZ[:, 2]], 1)
# slopes by u' per r Y (9 by X less 3 by Z), by X, by Y with its part of Z, and by Z
_BACK_TO_FACTORS = torch.stack(
    [9 * _FROM_XYZ[:, 0] - 3 * _FROM_XYZ[:, 2], _FROM_XYZ[:, 0], _FROM_FACTORS[:, 1], _FROM_XYZ[:, 2]]
)
_KAPPA = (29 / 3) ** 3  # slope of lightness at black
_DECODED_KNEE, _ENCODED_KNEE = 0.04045, 0.0031308  # below them sRGB is a line
_CURVE_AT_DECODED: float = ((_DECODED_KNEE + 0.055) / 1.055) ** 2.4
_CURVE_AT_ENCODED: float = _ENCODED_KNEE ** (1 / 2.4)
_SLOPE_AT_ENCODED: float = 1.055 / 2.4 * _CURVE_AT_ENCODED / _ENCODED_KNEE
_KNEE = 6 / 29  # cube root at which CIE's cube root becomes a line
_LEAST_LIGHTNESS = 1e-3  # darker colours have their chromaticity divided by it


def decoded(images: Images) -> Images:
    """Linear RGB of sRGB values in [0, 1]."""
    curved = ((images.clamp_min(_DECODED_KNEE) + 0.055) / 1.055).log().mul(2.4).exp()
    return images.clamp_max(_DECODED_KNEE) / 12.92 + (curved - _CURVE_AT_DECODED)


def encoded(linear: Images) -> Images:
    """sRGB in [0, 1] of linear RGB, clipped."""
    slopes = wants_slopes(linear)
    with torch.no_grad():
        value, slope = _encoded(linear, slopes)
    return value if slope is None else with_slopes(value, (linear, slope))


def _encoded(linear: Images, slopes: bool) -> tuple[Images, Images | None]:
    """sRGB of linear RGB, and its slopes or None."""
    above = linear.clamp(_ENCODED_KNEE, 1.0)
    curve = above.log().mul_(1 / 2.4).exp_()
    line = linear.clamp(0.0, _ENCODED_KNEE).mul_(12.92)
    value = line.add_(curve - _CURVE_AT_ENCODED, alpha=1.055).clamp_(0.0, 1.0)
    if not slopes:
        return value, None
    slope = curve.mul_(1.055 / 2.4).div_(above)
    slope.add_(where_below(linear, _ENCODED_KNEE), alpha=12.92 - _SLOPE_AT_ENCODED)
    return value, slope.mul_(where_equal(linear.clamp(0.0, 1.0), linear))


def relative_xyz(linear: Images) -> Images:
    """XYZ relative to white from linear RGB `(N, 3, H, W)`; `(N, 1, H, W)` is grey, whose X, Y and Z are equal."""
    return linear if linear.shape[1] == 1 else _mixed(_TO_RELATIVE, linear)


def linear_rgb(relative: Images) -> Images:
    """Inverse of `relative_xyz`."""
    return relative if relative.shape[1] == 1 else _mixed(_FROM_RELATIVE, relative)


def cube_root(relative: Images) -> Images:
    """CIE's cube root, a line near 0; (116 times that of Y) - 16 is the lightness."""
    curved = relative.clamp_min(_KNEE**3).log().div(3).exp()
    return (_KAPPA / 116) * relative.clamp_max(_KNEE**3) + (curved - _KNEE + 16 / 116)


def cubed(root: Images) -> Images:
    """Inverse of `cube_root`."""
    wanted = wants_slopes(root)
    with torch.no_grad():
        value, slope = _cubed(root)
    return with_slopes(value, (root, slope)) if wanted else value


def _cubed(root: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse of `cube_root`, and its slopes: those of the cube at the knee are that of the line."""
    above = root.clamp_min(_KNEE)
    squared = above * above
    curve = (squared * above).sub_(_KNEE**3).sub_(16 / _KAPPA)
    return curve.add_(root.clamp_max(_KNEE).mul_(116 / _KAPPA)), squared.mul_(3)


def luv_of(images: Images) -> Float[Tensor, "n 3 h w"]:
    """L*/100, (u* + 100)/200 and (v* + 100)/200 of sRGB images `(N, 3, H, W)` in [0, 1].

    L* is in [0, 1]; u* and v* of some saturated colours lie outside.
    """
    xyz = relative_xyz(decoded(images)) * _WHITE.to(images)[:, None, None]
    x, y, z = xyz.unbind(1)
    lightness = 116 * cube_root(y) - 16
    per_total = (x + 15 * y + 3 * z + 1e-10).reciprocal()
    white_u, white_v = _white_chromaticity()
    u = 13 * lightness * (4 * x * per_total - white_u)
    v = 13 * lightness * (9 * y * per_total - white_v)
    return torch.stack([lightness / 100, (u + 100) / 200, (v + 100) / 200], 1)


def rgb_of_luv(luv: Float[Tensor, "n 3 h w"]) -> Images:
    """sRGB images in [0, 1] from scaled L*u*v*; colours out of the gamut are clipped in RGB.

    There is no second derivative.
    """
    if not wants_slopes(luv):
        return _rgb_of_luv(luv, slopes=False)[0]
    found: Images = _RgbOfLuv.apply(luv)  # type: ignore[no-untyped-call]
    return found


def _rgb_of_luv(luv: Float[Tensor, "n 3 h w"], slopes: bool) -> tuple[Images, tuple[Tensor, ...]]:
    """sRGB images, and the values that the backward pass multiplies with, if there is one.

    With u' = u / (13 L) + u'(white) and r = 1 / (4 v'), X = 9 u' r Y and Z = (12 - 3 u') r Y - 5 Y. The factors of
    Y are kept, and the last term is a part of the matrix to RGB.
    """
    share, u, v = luv.unbind(1)  # of the ranges
    per_share = share.clamp_min(_LEAST_LIGHTNESS / 100).mul_(6.5).reciprocal_()  # 200 / (13 L)
    white_u, white_v = _white_chromaticity()
    from_u, from_v = u.sub(0.5).mul_(per_share), v.sub(0.5).mul_(per_share)
    # sRGB has v' of at least 0.158; dark colours that leave the gamut could reach 0, where X is infinite
    to_u, free_v = from_u + white_u, from_v + white_v
    to_v = free_v.clamp_min(0.05)
    ratio = to_v.mul(4).reciprocal_()
    y, y_slope = _cubed(share.clamp_min(0.0).mul_(100 / 116).add_(16 / 116))
    x_per_y = to_u.mul_(9).mul_(ratio)
    z_per_y = (12 * ratio).sub_(x_per_y, alpha=1 / 3)
    xyz = torch.empty_like(luv)
    torch.mul(x_per_y, y, out=xyz[:, 0])
    xyz[:, 1] = y
    torch.mul(z_per_y, y, out=xyz[:, 2])
    rgb, rgb_slope = _encoded(_mixed(_FROM_FACTORS, xyz), slopes)
    if rgb_slope is None:
        return rgb, ()
    u_slope = y.mul_(ratio).mul_(per_share)
    v_slope = u_slope.mul(-4).mul_(where_equal(free_v, to_v))
    y_slope.mul_(where_below(share, 0.0).sub_(1).mul_(-100 / 116))
    # u' and v' are u and v times 200 / (13 L), of which dark colours have the largest
    is_free = where_below(share, _LEAST_LIGHTNESS / 100).sub_(1).mul_(-6.5)
    return rgb, (from_u.mul_(is_free), from_v.mul_(is_free), x_per_y, z_per_y, y_slope, u_slope, v_slope, rgb_slope)


class _RgbOfLuv(torch.autograd.Function):
    """The same with its gradient in closed form, in a sixth of the time of the chain of its operations."""

    @staticmethod
    def forward(ctx: Any, luv: Tensor) -> Tensor:
        """The images `(N, 3, H, W)`."""
        rgb, kept = _rgb_of_luv(luv, slopes=True)
        ctx.save_for_backward(*kept)
        return rgb

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Gradient with respect to L*u*v*, from the last step to the first."""
        from_u, from_v, x_per_y, z_per_y, y_slope, u_slope, v_slope, rgb_slope = ctx.saved_tensors
        by_u, by_x, by_y, by_z = _mixed(_BACK_TO_FACTORS, gradient * rgb_slope).unbind(1)
        by_ratio = by_x.mul_(x_per_y).addcmul_(by_z, z_per_y)
        found = torch.empty_like(gradient, memory_format=torch.contiguous_format)
        torch.mul(by_u, u_slope, out=found[:, 1])
        torch.mul(by_ratio, v_slope, out=found[:, 2])
        torch.mul(by_y.add_(by_ratio), y_slope, out=found[:, 0])
        found[:, 0].addcmul_(found[:, 1], from_u, value=-1).addcmul_(found[:, 2], from_v, value=-1)
        return found


def _white_chromaticity() -> tuple[float, float]:
    """u' and v' of white."""
    x, y, z = _WHITE.tolist()
    total = x + 15 * y + 3 * z
    return 4 * x / total, 9 * y / total


def _mixed(matrix: Float[Tensor, "m 3"], images: Images) -> Float[Tensor, "n m h w"]:
    with without_autocast(images):
        found = matrix.to(images) @ images.flatten(2)
    return found.view(len(images), len(matrix), *images.shape[2:])
