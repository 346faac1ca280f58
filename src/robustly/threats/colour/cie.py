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
    clipped = linear.clamp(0.0, 1.0)
    above = clipped.clamp_min(_ENCODED_KNEE)
    curve = above.log().mul_(1 / 2.4).exp_()
    line = clipped.clamp_max(_ENCODED_KNEE).mul_(12.92)
    value = line.add_(curve.sub(_CURVE_AT_ENCODED).mul_(1.055)).clamp_(0.0, 1.0)
    if not slopes:
        return value, None
    slope = curve.mul_(1.055 / 2.4).div_(above)
    slope.add_(where_below(clipped, _ENCODED_KNEE), alpha=12.92 - _SLOPE_AT_ENCODED)
    return value, slope.mul_(where_equal(clipped, linear))


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
    """sRGB images, and the intermediate values that the backward pass needs, if there is one."""
    lightness, u, v = luv.mul(200).sub_(100).unbind(1)
    lightness = lightness.div(2).add_(50)
    per_lightness = lightness.clamp_min(_LEAST_LIGHTNESS).mul_(13).reciprocal_()
    white_u, white_v = _white_chromaticity()
    # sRGB has v' of at least 0.158; dark colours that leave the gamut could reach 0, where X is infinite
    to_u, free_v = (u * per_lightness).add_(white_u), (v * per_lightness).add_(white_v)
    to_v = free_v.clamp_min(0.05)
    y, y_slope = _cubed(lightness.clamp_min(0.0).add_(16).div_(116))
    per_v = y / (4 * to_v)
    xyz = torch.empty_like(luv)
    torch.mul(9 * to_u, per_v, out=xyz[:, 0])
    xyz[:, 1] = y
    torch.mul((12 - 3 * to_u).sub_(20 * to_v), per_v, out=xyz[:, 2])
    rgb, rgb_slope = _encoded(linear_rgb(xyz.div_(_WHITE.to(luv)[:, None, None])), slopes)
    if rgb_slope is None:
        return rgb, ()
    return rgb, (lightness, u, v, per_lightness, to_u, free_v, to_v, y_slope, per_v, rgb_slope)


class _RgbOfLuv(torch.autograd.Function):
    """The same with its gradient in closed form, in a third of the time of the chain of its operations."""

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
        lightness, u, v, per_lightness, to_u, free_v, to_v, y_slope, per_v, rgb_slope = ctx.saved_tensors
        by_xyz = _mixed((_FROM_RELATIVE / _WHITE).mT, gradient * rgb_slope)
        by_x, by_y, by_z = by_xyz.unbind(1)
        # X = 9 u' p, Z = (12 - 3 u' - 20 v') p with p = Y / (4 v')
        by_u = (9 * by_x).sub_(by_z, alpha=3).mul_(per_v)
        by_per_v = (9 * by_x).mul_(to_u)
        by_per_v.add_((12 - 3 * to_u).sub_(to_v, alpha=20).mul_(by_z)).div_(to_v)
        by_v = (20 * by_z).add_(by_per_v).mul_(per_v).neg_().mul_(where_equal(free_v, to_v))
        by_y = by_y + by_per_v / 4
        # u' and v' are u and v times 1 / (13 L*), of which dark colours have the largest
        by_lightness = (by_u * u).add_(by_v * v).mul_(per_lightness).mul_(per_lightness).mul_(-13)
        by_lightness.mul_(1 - where_below(lightness, _LEAST_LIGHTNESS))
        by_lightness.add_(by_y.mul_(y_slope).div_(116).mul_(1 - where_below(lightness, 0.0)))
        found = torch.stack([by_lightness.div_(2), by_u.mul_(per_lightness), by_v.mul_(per_lightness)], 1)
        return found.mul_(200)


def _white_chromaticity() -> tuple[float, float]:
    """u' and v' of white."""
    x, y, z = _WHITE.tolist()
    total = x + 15 * y + 3 * z
    return 4 * x / total, 9 * y / total


def _mixed(matrix: Float[Tensor, "3 3"], images: Images) -> Images:
    with without_autocast(images):
        return (matrix.to(images) @ images.flatten(2)).view_as(images)
