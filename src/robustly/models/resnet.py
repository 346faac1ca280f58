"""ResNet-18 for small images, in its three published forms."""

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor, nn

from robustly.models.layers import activation_layer, input_layer, scaled

_BLOCKS_PER_STAGE = 2


class ResNet(nn.Module):
    """Post-activation ResNet-18 with a 3x3 stem: 11,173,962 parameters for 10 classes.

    He et al., "Deep residual learning for image recognition" (CVPR 2016), in the form for 32x32 images that
    TRADES and its descendants use; `strides=(1, 1, 2, 2)` is the variant of LBGAT (Cui et al., ICCV 2021) and
    DYNAT. Global average pooling takes any image size. Parameter names are those of the public releases, and
    as there the initial weights are PyTorch's own.

    Args:
        classes: number of logits.
        channels: channels of the images.
        width: factor of all hidden widths (64, 128, 256 and 512).
        strides: stride of each of the four stages.
        activation: a name in `ACTIVATIONS`.
        mean: per-channel mean of the input normalisation, or None for none.
        std: per-channel standard deviation of the input normalisation, or None for none.
    """

    def __init__(
        self,
        *,
        classes: int = 10,
        channels: int = 3,
        width: float = 1.0,
        strides: tuple[int, int, int, int] = (1, 2, 2, 2),
        activation: str = "relu",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        stages = [scaled(64 * factor, width) for factor in (1, 2, 4, 8)]
        self.normalize = input_layer(channels, mean, std)
        self.conv1 = nn.Conv2d(channels, stages[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stages[0])
        self.act1 = activation_layer(activation)
        self.layer1 = _stage(_Block, stages[0], stages[0], strides[0], activation)
        self.layer2 = _stage(_Block, stages[0], stages[1], strides[1], activation)
        self.layer3 = _stage(_Block, stages[1], stages[2], strides[2], activation)
        self.layer4 = _stage(_Block, stages[2], stages[3], strides[3], activation)
        self.linear = nn.Linear(stages[3], classes)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of images in [0, 1]."""
        x = self.act1(self.bn1(self.conv1(self.normalize(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


class PreActResNet(nn.Module):
    """Pre-activation ResNet-18 with a 3x3 stem: 11,172,170 parameters for 10 classes.

    He et al., "Identity mappings in deep residual networks" (ECCV 2016), in the form that Rice et al. (ICML
    2020), AWP and Fast-AT train: the shortcut starts after the first activation, and the last normalisation
    is before the pooling. Parameter names are those of the public releases, and as there the initial
    weights are PyTorch's own.

    Args:
        classes: number of logits.
        channels: channels of the images.
        width: factor of all hidden widths (64, 128, 256 and 512).
        activation: a name in `ACTIVATIONS`.
        mean: per-channel mean of the input normalisation, or None for none.
        std: per-channel standard deviation of the input normalisation, or None for none.
    """

    def __init__(
        self,
        *,
        classes: int = 10,
        channels: int = 3,
        width: float = 1.0,
        activation: str = "relu",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        stages = [scaled(64 * factor, width) for factor in (1, 2, 4, 8)]
        self.normalize = input_layer(channels, mean, std)
        self.conv1 = nn.Conv2d(channels, stages[0], 3, padding=1, bias=False)
        self.layer1 = _stage(_PreActBlock, stages[0], stages[0], 1, activation)
        self.layer2 = _stage(_PreActBlock, stages[0], stages[1], 2, activation)
        self.layer3 = _stage(_PreActBlock, stages[1], stages[2], 2, activation)
        self.layer4 = _stage(_PreActBlock, stages[2], stages[3], 2, activation)
        self.bn = nn.BatchNorm2d(stages[3])
        self.act = activation_layer(activation)
        self.linear = nn.Linear(stages[3], classes)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of images in [0, 1]."""
        x = self.conv1(self.normalize(x))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.linear(self.act(self.bn(x)).mean(dim=(2, 3)))
        return logits


def _stage(
    block: Callable[[int, int, int, str], nn.Module], before: int, after: int, stride: int, activation: str
) -> nn.Sequential:
    first = block(before, after, stride, activation)
    return nn.Sequential(first, *(block(after, after, 1, activation) for _ in range(_BLOCKS_PER_STAGE - 1)))


class _Block(nn.Module):
    """Convolution, normalisation, activation; twice, the second activation after the sum."""

    def __init__(self, before: int, after: int, stride: int, activation: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.act1 = activation_layer(activation)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.act2 = activation_layer(activation)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != after:
            self.shortcut.append(nn.Conv2d(before, after, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(after))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        inner = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        out: Tensor = self.act2(inner + self.shortcut(x))
        return out


class _PreActBlock(nn.Module):
    """Normalisation, activation, convolution; twice. The shortcut starts after the first activation."""

    def __init__(self, before: int, after: int, stride: int, activation: str) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.act1 = activation_layer(activation)
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.act2 = activation_layer(activation)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        inner: Tensor = self.act1(self.bn1(x))
        kept = x if self.shortcut is None else self.shortcut(inner)
        out: Tensor = self.conv2(self.act2(self.bn2(self.conv1(inner)))) + kept
        return out
