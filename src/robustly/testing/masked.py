"""Networks with masked gradients, for tests of diagnostics, attacks and evaluations.

Each wraps a network and leaves most of its predictions as they are. Its gradients vanish, break, or point
elsewhere, so that naive attacks overestimate robustness.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Images = Float[Tensor, "n c h w"]
Logits = Float[Tensor, "n k"]
GOLDEN_ANGLE = 2.399963  # multiples of it are spread evenly over the circle


class Masked(nn.Module):
    """A network between two functions.

    Args:
        net: network from images in [0, 1] to logits.
        before: function of the images.
        after: function of the logits.
    """

    def __init__(
        self,
        net: nn.Module,
        before: Callable[[Tensor], Tensor] | None = None,
        after: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x: Images) -> Logits:
        """Logits of images in [0, 1]."""
        logits: Tensor = self.net(x if self.before is None else self.before(x))
        return logits if self.after is None else self.after(logits)


def low_temperature(net: nn.Module, factor: float = 1e4) -> nn.Module:
    """Logits multiplied by a large factor: the gradient of cross-entropy underflows to zero."""
    return Masked(net, after=lambda logits: factor * logits)


def saturated_softmax(net: nn.Module, factor: float = 1e3) -> nn.Module:
    """Probabilities of multiplied logits in place of logits: exactly 0 and 1, without a gradient."""
    return Masked(net, after=lambda logits: (factor * logits).softmax(1))


def clipped_logits(net: nn.Module, bound: float = 1e-2) -> nn.Module:
    """Logits that a hard tanh clips; a remainder without a gradient keeps the prediction."""
    return Masked(net, after=lambda z: F.hardtanh(z - z.mean(1, keepdim=True), -bound, bound) + z.detach())


def one_hot_output(net: nn.Module) -> nn.Module:
    """The predicted class as logits 1 and 0, connected to the image by a gradient of zero."""
    return Masked(net, after=lambda z: F.one_hot(z.argmax(1), z.shape[1]).to(z) + 0 * z)


def rounded_input(net: nn.Module, levels: int = 5) -> nn.Module:
    """Images rounded to a few grey levels (Xu, Evans and Qi, "Feature squeezing", NDSS 2018)."""
    return Masked(net, before=lambda x: (x * (levels - 1)).round() / (levels - 1))


def thermometer_input(net: nn.Module, levels: int = 8) -> nn.Module:
    """Images as counts of passed thresholds (Buckman et al., "Thermometer encoding", ICLR 2018)."""

    def encode(x: Tensor) -> Tensor:
        thresholds = (torch.arange(levels, device=x.device) + 0.5) / levels
        return (x[..., None] > thresholds).to(x).mean(-1)

    return Masked(net, before=encode)


def compressed_input(net: nn.Module, step: float = 0.2, block: int = 4) -> nn.Module:
    """Blocks of the image with rounded cosine coefficients, as JPEG stores them.

    Args:
        net: the network.
        step: quantisation step of the coefficients.
        block: side of a block in pixels; it divides height and width.
    """
    place = torch.arange(block, dtype=torch.float64)
    cosines = torch.cos(torch.pi / block * (place + 0.5) * place[:, None]) * (2 / block) ** 0.5
    cosines[0] /= 2**0.5
    basis = torch.kron(cosines, cosines).float()

    def compress(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        columns = F.unfold(x.reshape(n * c, 1, h, w), block, stride=block)
        matrix = basis.to(columns)
        rounded = matrix.T @ ((matrix @ columns / step).round() * step)
        return F.fold(rounded, (h, w), block, stride=block).reshape(x.shape).clamp(0, 1)

    return Masked(net, before=compress)


def noisy_input(net: nn.Module, deviation: float = 0.1) -> nn.Module:
    """Gaussian noise on the image at every call."""
    return Masked(net, before=lambda x: x + deviation * torch.randn_like(x))


def dropped_input(net: nn.Module, probability: float = 0.1) -> nn.Module:
    """Pixels dropped at random at each call, in evaluation mode too (activations: Dhillon et al., ICLR 2018)."""
    return Masked(net, before=lambda x: F.dropout(x, probability, training=True))


def shattered_gradient(net: nn.Module, amplitude: float = 5e-3, frequency: float = 1e4) -> nn.Module:
    """A sine of high frequency added to the image: a small change with a large gradient whose sign varies."""

    def shatter(x: Tensor) -> Tensor:
        phases = GOLDEN_ANGLE * torch.arange(x[0].numel(), device=x.device).reshape(x[0].shape)
        return x + amplitude * torch.sin(frequency * x + phases)

    return Masked(net, before=shatter)


def detached_input(net: nn.Module) -> nn.Module:
    """A network without a gradient to its images."""
    return Masked(net, before=lambda x: x.detach())


def partly_detached_input(net: nn.Module, border: int = 2) -> nn.Module:
    """A gradient to the pixels of the border only.

    Args:
        net: the network.
        border: width of the border in pixels.
    """

    def detach_centre(x: Tensor) -> Tensor:
        keeps = torch.ones_like(x[:1, :1])
        keeps[..., border:-border, border:-border] = 0
        return x * keeps + x.detach() * (1 - keeps)

    return Masked(net, before=detach_centre)


def misleading_gradient(net: nn.Module) -> nn.Module:
    """The gradient of the network at the negative of the image."""

    class Misleading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                exact = self.net(x)
            other = self.net(1 - x)
            difference: Tensor = exact + (other - other.detach())
            return difference

    return Misleading()


def exploding_gradient(net: nn.Module) -> nn.Module:
    """A square root at zero in the first layer: the gradient is NaN."""
    return Masked(net, before=lambda x: x + (x - x.detach()).square().sqrt())


MASKED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "low temperature": low_temperature,
    "saturated softmax": saturated_softmax,
    "clipped logits": clipped_logits,
    "one-hot output": one_hot_output,
    "rounded input": rounded_input,
    "thermometer input": thermometer_input,
    "compressed input": compressed_input,
    "noisy input": noisy_input,
    "dropped input": dropped_input,
    "shattered gradient": shattered_gradient,
    "detached input": detached_input,
    "partly detached input": partly_detached_input,
    "misleading gradient": misleading_gradient,
    "exploding gradient": exploding_gradient,
}
"""The constructors by the names that tables use."""
