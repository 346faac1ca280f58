"""The network of two convolutions with strides on which papers on verification compare."""

from collections import OrderedDict
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from robustly.models.layers import activation_layer, input_layer, scaled

SMALLEST_SIDE = 4


class ConvSmall(nn.Module):
    """Two 4x4 convolutions with stride 2, then two linear layers: 166,406 parameters on MNIST.

    `CNN-A` of Dathathri et al., "Enabling certification of verification-agnostic networks via memory-efficient
    semidefinite programming" (NeurIPS 2020), after the small network of Wong and Kolter (ICML 2018); ERAN's
    `ConvSmall` is the same without padding. Without max pools, bounds are tighter and cost less than for
    `SmallCNN`. The initial weights are PyTorch's.

    Args:
        classes: number of logits.
        channels: channels of the images.
        image_size: height and width in pixels, each at least 4.
        width: factor of all hidden widths (16, 32 and 100).
        activation: a name in `ACTIVATIONS`.
        mean: per-channel mean of the input normalisation, or None for none.
        std: per-channel standard deviation of the input normalisation, or None for none.

    Raises:
        ValueError: for a side under 4 pixels and for an unknown activation.
    """

    def __init__(
        self,
        *,
        classes: int = 10,
        channels: int = 1,
        image_size: tuple[int, int] = (28, 28),
        width: float = 1.0,
        activation: str = "relu",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if min(image_size) < SMALLEST_SIDE:
            raise ValueError(
                f"conv_small needs images of at least {SMALLEST_SIDE}x{SMALLEST_SIDE} pixels, "
                f"not {image_size[0]}x{image_size[1]}"
            )
        first, second, hidden = scaled(16, width), scaled(32, width), scaled(100, width)
        height, breadth = (side // 2 // 2 for side in image_size)
        self.normalize = input_layer(channels, mean, std)
        self.features = nn.Sequential(
            OrderedDict[str, nn.Module](
                conv1=nn.Conv2d(channels, first, 4, stride=2, padding=1),
                act1=activation_layer(activation),
                conv2=nn.Conv2d(first, second, 4, stride=2, padding=1),
                act2=activation_layer(activation),
            )
        )
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(
            OrderedDict[str, nn.Module](
                fc1=nn.Linear(second * height * breadth, hidden),
                act1=activation_layer(activation),
                fc2=nn.Linear(hidden, classes),
            )
        )

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of images in [0, 1]."""
        logits: Tensor = self.classifier(self.flatten(self.features(self.normalize(x))))
        return logits
