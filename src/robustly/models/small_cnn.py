"""The four-convolution network that TRADES trains on MNIST."""

from collections import OrderedDict
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from robustly.models.layers import activation_layer, input_layer, scaled

SMALLEST_SIDE = 16


class SmallCNN(nn.Module):
    """Two pairs of 3x3 convolutions with max pooling, then three linear layers: 312,202 parameters on MNIST.

    Zhang et al., "Theoretically principled trade-off between robustness and accuracy" (TRADES, ICML 2019), after
    Carlini and Wagner (2017). Parameter names are those of the authors' release, so that their weights load. As
    there, convolutions have He's normal initialisation (fan in) and the last layer is zero. Before the first update
    all logits are therefore 0, and so is the gradient with respect to the input.

    Args:
        classes: number of logits.
        channels: channels of the images.
        image_size: height and width in pixels, each at least 16.
        width: factor of all hidden widths (32, 64 and 200).
        activation: a name in `ACTIVATIONS`.
        dropout: probability in [0, 1) of dropping a feature between the first two linear layers; 0.5 in the
            original.
        mean: per-channel mean of the input normalisation, or None for none.
        std: per-channel standard deviation of the input normalisation, or None for none.

    Raises:
        ValueError: for a side under 16 pixels and for an unknown activation.
    """

    def __init__(
        self,
        *,
        classes: int = 10,
        channels: int = 1,
        image_size: tuple[int, int] = (28, 28),
        width: float = 1.0,
        activation: str = "relu",
        dropout: float = 0.5,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if min(image_size) < SMALLEST_SIDE:
            raise ValueError(
                f"small_cnn needs images of at least {SMALLEST_SIDE}x{SMALLEST_SIDE} pixels, "
                f"not {image_size[0]}x{image_size[1]}"
            )
        first, second, hidden = scaled(32, width), scaled(64, width), scaled(200, width)
        height, breadth = (_pooled(_pooled(side)) for side in image_size)
        self.normalize = input_layer(channels, mean, std)
        self.feature_extractor = nn.Sequential(
            OrderedDict[str, nn.Module](
                conv1=nn.Conv2d(channels, first, 3),
                act1=activation_layer(activation),
                conv2=nn.Conv2d(first, first, 3),
                act2=activation_layer(activation),
                pool1=nn.MaxPool2d(2),
                conv3=nn.Conv2d(first, second, 3),
                act3=activation_layer(activation),
                conv4=nn.Conv2d(second, second, 3),
                act4=activation_layer(activation),
                pool2=nn.MaxPool2d(2),
            )
        )
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(
            OrderedDict[str, nn.Module](
                fc1=nn.Linear(second * height * breadth, hidden),
                act1=activation_layer(activation),
                drop=nn.Dropout(dropout),
                fc2=nn.Linear(hidden, hidden),
                act2=activation_layer(activation),
                fc3=nn.Linear(hidden, classes),
            )
        )
        _initialise(self)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of images in [0, 1]."""
        features = self.feature_extractor(self.normalize(x))
        logits: Tensor = self.classifier(self.flatten(features))
        return logits


def _pooled(side: int) -> int:
    """Side after two unpadded 3x3 convolutions and a 2x2 pooling."""
    return (side - 4) // 2


def _initialise(model: SmallCNN) -> None:
    for layer in model.feature_extractor:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for parameter in model.classifier.get_submodule("fc3").parameters():
        nn.init.zeros_(parameter)
