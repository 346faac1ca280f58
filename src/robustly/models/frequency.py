"""Frequency-conditional convolution: one expert kernel for each domain, each on its own band of the spectrum."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import conv2d, one_hot

_ORDERS = ((0, 0), (1, 1), (1, -1), (2, 0), (2, 2), (2, -2), (3, 1), (3, -1), (3, 3), (3, -3))
"""Degree n and order m of the Zernike functions; a negative order is the sine."""


@dataclass(frozen=True)
class Route:
    """The domain of each image of a batch, as weights of the domains.

    Args:
        hard: 1 at the domain and 0 elsewhere, `(N, K)`.
        soft: probabilities of the domains, `(N, K)`, whose gradient stands for that of `hard`; None without
            such a stand-in.
    """

    hard: Float[Tensor, "n k"]
    soft: Float[Tensor, "n k"] | None = None


def fixed_route(domains: Int64[Tensor, " n"], count: int, like: Tensor) -> Route:
    """A route without stand-in, through given domains.

    Args:
        domains: numbers from 0.
        count: number of all domains K.
        like: tensor whose type the weights have.
    """
    return Route(one_hot(domains, count).to(like.dtype))


def zernike_basis(height: int, width: int) -> Float[Tensor, "m h f"]:
    """The ten real Zernike functions of degree at most 3 on the frequencies of `torch.fft.rfft2`, in float64.

    Rows are vertical frequencies in the order of `torch.fft.fftfreq`, columns the `width // 2 + 1` horizontal ones.
    The radius is divided by the largest one, and each function by the root of its mean square.

    Args:
        height: pixels of a column of the image, at least 1.
        width: pixels of a row, at least 1.
    """
    y = torch.fft.fftfreq(height, dtype=torch.float64)[:, None]
    x = torch.fft.rfftfreq(width, dtype=torch.float64)[None, :]
    radius, angle = torch.hypot(x, y), torch.atan2(y, x)
    radius = radius / radius.amax().clamp_min(torch.finfo(torch.float64).tiny)
    functions = torch.stack([_radial(n, abs(m), radius) * _angular(m, angle) for n, m in _ORDERS])
    size = functions.square().mean((1, 2), keepdim=True).sqrt()
    return functions / torch.where(size > 1e-12, size, 1.0)


def _radial(n: int, m: int, radius: Tensor) -> Tensor:
    """Radial Zernike polynomial of degree n and order m, for n - m even."""
    value = torch.zeros_like(radius)
    for k in range((n - m) // 2 + 1):
        above = (-1) ** k * math.factorial(n - k)
        below = math.factorial(k) * math.factorial((n + m) // 2 - k) * math.factorial((n - m) // 2 - k)
        value = value + above / below * radius ** (n - 2 * k)
    return value


def _angular(m: int, angle: Tensor) -> Tensor:
    return torch.cos(m * angle) if m >= 0 else torch.sin(-m * angle)


class FrequencyConv2d(nn.Module):
    """Convolution with a shared kernel and, for each of K domains, an expert kernel on a band of the spectrum.

    TaFD (Xie, He and Fang, arXiv 2606.17540), after the released code. The spectrum X = rfft2(h) of the features is
    split into K bands by masks, which add up to 1. A domain d has masks of its own: softmax over k of
    a_dk + sum_m c_dkm B_m, with learned a and c and the Zernike functions B of `zernike_basis`. The output for an
    image of domain d is residual(h) + expert_d(irfft2(X mask_dd)) + bias. All a and c start at 0, so that every
    mask is 1 / K.

    With soft weights p of the domains, a and c are mixed with p, and the output is
    residual(h) + sum_k p_k expert_k(irfft2(X mask_k)) + bias. At p = 0 or 1 it is the output above. In a route with
    a stand-in, values are those of the hard weights and gradients those of the soft ones (a straight-through
    gradient; BPDA of Athalye et al., ICML 2018).

    Args:
        before: channels of the features.
        after: channels of the output.
        size: side of the kernel.
        domains: number of domains K, at least 1.
        image_size: height and width of the features, for which the basis is kept; others work too.
        stride: of the convolution.
        padding: zeros at each side.
        bias: whether the output has a bias.
        masked: False for an ablation without masks, a and c: every expert has the whole spectrum, and the output is
            residual(h) + expert_d(h) + bias.

    Raises:
        ValueError: fewer than one domain.
    """

    basis: Tensor
    bias: nn.Parameter | None
    embedding: nn.Parameter | None

    def __init__(
        self,
        before: int,
        after: int,
        size: int,
        *,
        domains: int,
        image_size: tuple[int, int],
        stride: int = 1,
        padding: int = 0,
        bias: bool = False,
        masked: bool = True,
    ) -> None:
        super().__init__()
        if domains < 1:
            raise ValueError(f"domains must be at least 1, got {domains}")
        self.domains, self.stride, self.padding = domains, stride, padding
        self.image_size = image_size
        # the shared kernel and the experts side by side; channels-last is defined for four dimensions
        self.weight = nn.Parameter(torch.empty(after, (1 + domains) * before, size, size))
        self.embedding = nn.Parameter(torch.zeros(domains, domains, 1 + len(_ORDERS))) if masked else None
        self.bias = nn.Parameter(torch.empty(after)) if bias else None
        self.register_buffer("basis", zernike_basis(*image_size).to(self.weight.dtype), persistent=False)
        bound = 1 / math.sqrt(before * size * size)  # PyTorch's own for a convolution
        for weight in (self.weight, *([] if self.bias is None else [self.bias])):
            nn.init.uniform_(weight, -bound, bound)

    @property
    def kernels(self) -> Float[Tensor, "k1 d c s s"]:
        """The shared kernel, and after it those of the experts."""
        return torch.stack(self.weight.chunk(1 + self.domains, dim=1))

    def masks(self, weights: Float[Tensor, "n k"], height: int, width: int) -> Float[Tensor, "n k h f"]:
        """Masks of the K bands for images of given weights of the domains; they add up to 1 over the bands.

        In a layer without masks every one of them is 1.

        Args:
            weights: weights of the domains.
            height: of the features, in pixels.
            width: of the features, in pixels.
        """
        if self.embedding is None:
            return weights.new_ones(*weights.shape, height, width // 2 + 1)
        kept = (height, width) == self.image_size
        basis = self.basis if kept else zernike_basis(height, width).to(self.basis)
        rows = torch.einsum("nd,dkc->nkc", weights, self.embedding.to(weights))
        scores = rows[:, :, :1, None] + torch.einsum("nkm,mhf->nkhf", rows[:, :, 1:], basis.to(weights))
        return scores.softmax(1)

    def forward(self, h: Float[Tensor, "n c h w"], route: Route) -> Float[Tensor, "n d i j"]:
        """Features of the next layer."""
        if route.soft is None:
            return self._mixed(h, route.hard)
        soft = self._mixed(h, route.soft)
        with torch.no_grad():
            hard = self._mixed(h, route.hard)
        return hard + (soft - soft.detach())

    def _mixed(self, h: Tensor, weights: Tensor) -> Tensor:
        """Output for weights of the domains: one convolution over the features and their weighted bands."""
        if len(h) == 0:  # of which there are no FFTs
            joined = torch.cat([h] * (1 + self.domains), dim=1)
            return conv2d(joined, self.weight, self.bias, self.stride, self.padding)
        height, width = h.shape[2:]
        if self.embedding is None:  # a band is all of the features, times its weight
            bands = h[:, None] * weights.to(h.dtype)[:, :, None, None, None]
            return conv2d(torch.cat([h, bands.flatten(1, 2)], 1), self.weight, self.bias, self.stride, self.padding)
        wide = h.float() if h.dtype in (torch.float16, torch.bfloat16) else h  # FFTs need at least float32
        weights = weights.to(wide.dtype)
        gates = weights[:, :, None, None] * self.masks(weights, height, width)
        spectrum = torch.fft.rfft2(wide, norm="ortho")
        bands = torch.fft.irfft2(spectrum[:, None] * gates[:, :, None], s=(height, width), norm="ortho")
        joined = torch.cat([h, bands.flatten(1, 2).to(h.dtype)], dim=1)
        return conv2d(joined, self.weight, self.bias, self.stride, self.padding)

    def extra_repr(self) -> str:
        """Text of the settings in `print(model)`."""
        _, after, before, size, _ = self.kernels.shape
        return f"{before}, {after}, {size}, domains={self.domains}, stride={self.stride}, padding={self.padding}"
