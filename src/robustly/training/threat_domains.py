"""Threat domains of TaFD: spectral descriptors of attacked images, and clusters of their means.

Xie, He and Fang, "TaFD" (arXiv 2606.17540), after the released code.
"""

from collections.abc import Sequence
from itertools import combinations, permutations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from robustly.randomness import shuffled

FEATURES = 15
LIMITS = (0.2, 0.5)
"""Radii in cycles per pixel between the low, the middle and the high band."""
MOST_COMPONENTS = 4
LARGEST_CHOICE = 8
"""Most threats and most domains whose clusters are compared exhaustively."""
_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_NOTHING = 1e-10  # share of the energy below which a channel of colour is rounding


def spectral_descriptor(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 15"]:
    """Spectral features of images, in float64: shares of energy, angles and dominances of the colours.

    The spectrum rfft2 of each channel is transformed to Y, Cb and Cr. Nine features are the shares of the energy
    |F|^2 in each of these at low (radius at most 0.2 cycles per pixel), middle (at most 0.5) and high frequencies.
    The others are, for each band, the angle atan2(sqrt(E_Cr), sqrt(E_Cb)), and the dominance
    (E_Cr - E_Cb) / (E_Cr + E_Cb + 1e-6) of the shares. Images without three channels have the mean of their
    channels as Y, and no colour.

    Args:
        images: in [0, 1].
    """
    x = images.detach().double()
    if x.shape[1] == 3:
        turned = torch.einsum("dc,nchw->ndhw", x.new_tensor(_YCBCR), x)
    else:
        turned = torch.cat([x.mean(1, keepdim=True), x.new_zeros(len(x), 2, *x.shape[2:])], dim=1)
    energy = torch.fft.rfft2(turned, norm="ortho").abs().square()
    y = torch.fft.fftfreq(x.shape[2], dtype=x.dtype, device=x.device)[:, None]
    radius = torch.hypot(y, torch.fft.rfftfreq(x.shape[3], dtype=x.dtype, device=x.device)[None, :])
    band = (radius > LIMITS[0]).long() + (radius > LIMITS[1]).long()
    sums = torch.stack([(energy * (band == number)).sum((2, 3)) for number in range(3)], dim=2)  # (n, YCbCr, band)
    shares = sums / sums.sum((1, 2), keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    shares = torch.where(shares < _NOTHING, 0.0, shares)
    blue, red = shares[:, 1], shares[:, 2]
    angle, dominance = torch.atan2(red.sqrt(), blue.sqrt()), (red - blue) / (red + blue + 1e-6)
    return torch.cat([shares.flatten(1), angle, dominance], dim=1)


def clustered(
    prototypes: Float[Tensor, "m f"], count: int, previous: Int64[Tensor, " m"] | None = None
) -> Int64[Tensor, " m"]:
    """Domain of each threat, from 0: k-means on the standardised prototypes, in at most four principal components.

    Lloyd's algorithm starts from every choice of `count` prototypes as centres (for more than eight, from the first
    ones), and the clusters of the smallest sum of squares are taken, so that no random number is used. The domains
    are numbered as before as far as possible; at first, threat 0 has domain 0.

    Args:
        prototypes: mean descriptor of each threat.
        count: number of domains, at most the number of threats.
        previous: domains before.
    """
    points = _components(prototypes.double().cpu())
    small = len(points) <= LARGEST_CHOICE
    starts = combinations(range(len(points)), count) if small else iter([tuple(range(count))])
    tried = [_lloyd(points, points[list(start)]) for start in starts]
    found = min(tried, key=lambda one: float(one[1]))[0]
    return _aligned(found, count, previous).to(prototypes.device)


def dealt(threats: int, count: int, seed: int) -> Int64[Tensor, " m"]:
    """A random domain of each threat, from 0: the threats in a random order are dealt to the domains in turn.

    Every domain has threats, and their numbers differ by at most one. Threat 0 has domain 0.

    Args:
        threats: number of threats.
        count: number of domains, at most the number of threats.
        seed: on which alone the order depends.
    """
    found = torch.empty(threats, dtype=torch.int64)
    found[shuffled(threats, "domains of threats", seed)] = torch.arange(threats) % count
    return _aligned(found, count, None)


def _components(points: Tensor) -> Tensor:
    """Standardised points in their principal components; a feature without spread is 0."""
    centred = points - points.mean(0)
    spread = centred.square().mean(0).sqrt()
    scaled = torch.where(spread > 1e-12, centred / spread.clamp_min(1e-12), 0.0)
    left, sizes, _ = torch.linalg.svd(scaled, full_matrices=False)
    kept = min(MOST_COMPONENTS, max(1, len(points) - 1))
    scores: Tensor = (left * sizes)[:, :kept]
    return scores


def _lloyd(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Clusters of points, and their sum of squares; a centre without points stays."""
    labels = torch.full((len(points),), -1)
    for _ in range(100):
        before, labels = labels, torch.cdist(points, centres).argmin(1)
        if torch.equal(before, labels):
            break
        own = [points[labels == number] for number in range(len(centres))]
        centres = torch.stack([one.mean(0) if len(one) else old for one, old in zip(own, centres, strict=True)])
    return labels, (points - centres[labels]).square().sum()


def _aligned(found: Tensor, count: int, previous: Tensor | None) -> Tensor:
    """The same clusters with the numbers that agree most with those before."""
    if previous is None:
        first = int(found[0])
        names = [first, *(number for number in range(count) if number != first)]
        return torch.tensor([names.index(int(one)) for one in found])
    old = previous.cpu()
    orders: Sequence[tuple[int, ...]] = list(permutations(range(count))) if count <= LARGEST_CHOICE else []
    renamed = [torch.tensor(order)[found] for order in orders] or [found]
    return min(renamed, key=lambda one: int((one != old).sum()))
