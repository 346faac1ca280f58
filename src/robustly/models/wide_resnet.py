"""Wide residual networks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from robustly.models.layers import activation_layer, input_layer, scaled

_STEM = 16


class WideResNet(nn.Module):
    """WRN-depth-widen: 36,479,194 parameters for WRN-28-10, 46,160,474 for WRN-34-10 (10 classes).

    Zagoruyko and Komodakis, "Wide residual networks" (BMVC 2016), in the form of TRADES: three stages of
    widths 16, 32 and 64 times `widen`, strides 1, 2, 2, global average pooling. Parameter names and initial
    weights (He's normal with fan out; linear bias 0) are those of that release, without its block
    `sub_block1`, which its forward pass never uses. With SiLU and a momentum of 0.01 it is the network of
    Gowal et al. (2020).

    Args:
        depth: number of layers, 6 n + 4.
        widen: widening factor of the three stages; may be a fraction, as 0.5.
        classes: number of logits.
        channels: channels of the images.
        activation: a name in `ACTIVATIONS`.
        dropout: probability in [0, 1) of dropping an activation between the two convolutions of a block.
        momentum: share of the new batch in the running statistics, in (0, 1].
        same_padding: True pads the convolutions of stride 2 as TensorFlow's SAME does: images of even size get
            zeros on the right and below only. The networks that DeepMind published need it (Gowal et al. 2020 and
            2021, Rebuffi et al. 2021), and those that follow them (Wang et al. 2023).
        mean: per-channel mean of the input normalisation, or None for none.
        std: per-channel standard deviation of the input normalisation, or None for none.

    Raises:
        ValueError: if the depth is not 6 n + 4 with n >= 1.
    """

    def __init__(
        self,
        depth: int = 34,
        widen: float = 10.0,
        *,
        classes: int = 10,
        channels: int = 3,
        activation: str = "relu",
        dropout: float = 0.0,
        momentum: float = 0.1,
        same_padding: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(
                f"a wide ResNet of depth {depth} does not exist: use 10, 16, 22, 28, 34, ... (6 n + 4)"
            )
        stages = [_STEM, *(scaled(_STEM * factor, widen) for factor in (1, 2, 4))]
        kind = _Kind(activation, dropout, momentum, same_padding)
        self.normalize = input_layer(channels, mean, std)
        self.conv1 = nn.Conv2d(channels, stages[0], 3, padding=1, bias=False)
        self.block1 = _Stage(blocks, stages[0], stages[1], 1, kind)
        self.block2 = _Stage(blocks, stages[1], stages[2], 2, kind)
        self.block3 = _Stage(blocks, stages[2], stages[3], 2, kind)
        self.bn1 = nn.BatchNorm2d(stages[3], momentum=momentum)
        self.act = activation_layer(activation)
        self.fc = nn.Linear(stages[3], classes)
        _initialise(self)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of images in [0, 1]."""
        x = self.block3(self.block2(self.block1(self.conv1(self.normalize(x)))))
        logits: Tensor = self.fc(self.act(self.bn1(x)).mean(dim=(2, 3)))
        return logits


@dataclass(frozen=True)
class _Kind:
    """Settings of all blocks of a network."""

    activation: str
    dropout: float
    momentum: float
    same_padding: bool


class _Stage(nn.Module):
    """Blocks of one width; the first one changes width and stride."""

    def __init__(self, blocks: int, before: int, after: int, stride: int, kind: "_Kind") -> None:
        super().__init__()
        others = (_Block(after, after, 1, kind) for _ in range(blocks - 1))
        self.layer = nn.Sequential(_Block(before, after, stride, kind), *others)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        out: Tensor = self.layer(x)
        return out


class _Block(nn.Module):
    """Normalisation, activation, convolution; twice. The shortcut convolves only where widths differ."""

    def __init__(self, before: int, after: int, stride: int, kind: "_Kind") -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before, momentum=kind.momentum)
        self.act1 = activation_layer(kind.activation)
        self.pads = kind.same_padding and stride == 2
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=0 if self.pads else 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after, momentum=kind.momentum)
        self.act2 = activation_layer(kind.activation)
        self.drop = nn.Dropout(kind.dropout)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.convShortcut: nn.Conv2d | None = None
        # for some `widen` the widths are equal although the stride is 2: the shapes differ then too
        if before != after or stride != 1:
            self.convShortcut = nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        inner = self.act1(self.bn1(x))
        kept = x if self.convShortcut is None else self.convShortcut(inner)
        padded = _padded(inner) if self.pads else inner
        out: Tensor = self.conv2(self.drop(self.act2(self.bn2(self.conv1(padded))))) + kept
        return out


def _padded(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c p q"]:
    """Zeros of TensorFlow's SAME padding for a convolution of size 3 and stride 2."""
    height, width = x.shape[2:]
    return F.pad(x, (width % 2, 1, height % 2, 1))


def _initialise(model: WideResNet) -> None:
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=math.sqrt(2 / (layer.kernel_size[0] ** 2 * layer.out_channels)))
    nn.init.zeros_(model.fc.bias)
