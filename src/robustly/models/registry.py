"""Models by name: their settings in a configuration file, and the networks built from them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robustly.model_names import TORCHSCRIPT, is_published
from robustly.models.adapter import as_classifier
from robustly.models.conv_small import ConvSmall
from robustly.models.layers import ACTIVATIONS
from robustly.models.lazy import create_parameters, has_lazy_parameters
from robustly.models.published import build_published, expected_images
from robustly.models.resnet import PreActResNet, ResNet
from robustly.models.small_cnn import SmallCNN
from robustly.models.tafd import ABLATIONS, tafd_resnet18, tafd_small_cnn
from robustly.models.user_code import build_user_model, load_torchscript
from robustly.models.weights import load_weights
from robustly.models.wide_resnet import WideResNet
from robustly.models.wrapping import wrap
from robustly.settings import Ratio, nearest

WIDEST = 64
"""Largest factor of the hidden widths."""


@dataclass(frozen=True)
class ModelConfig:
    """A model by its name and settings. None means the value of the reference implementation of that name.

    Args:
        name: a name in `MODELS`; `package.module:factory` for a model of the user's own; `timm:NAME`; `hf:FOLDER`
            or `hf:NAME` for a model of Hugging Face; `torchscript:FILE`.
        classes: number of logits, at least 2; None is 10.
        channels: channels of the images; None is 1 for `small_cnn`, `tafd_small_cnn` and `conv_small`, and 3 for
            the others.
        image_size: height and width in pixels; None is 28x28 for those three, and 32x32 for the others.
        width: factor of the hidden widths, in (0, 64], such as 0.25 for small machines.
        activation: a name in `ACTIVATIONS`; None is silu for the `_silu` networks and relu for the others.
        mean: per-channel mean on the [0, 1] scale for the input normalisation, such as 125.3/255; None for none.
        std: per-channel standard deviation on the [0, 1] scale; None for none.
        dropout: probability in [0, 1); None is 0.5 for `small_cnn` and `tafd_small_cnn`, and 0 for wide ResNets.
            The others have no dropout, except the fixed one in the router of a TaFD network.
        weights: a file or folder for `load_weights`; None for new weights, the published ones of timm and Hugging
            Face, or those of the user's factory.
        weights_key: the state dict to take from a file with several, such as `model_ema`; None finds it.
        ablation: of a TaFD network: "random_domains" (a fixed random router) or "no_masks"; None for the network of
            the paper.

    Raises:
        ValueError: for a name that does not exist and for a number outside its range.
    """

    name: str = "small_cnn"
    classes: int | None = None
    channels: int | None = None
    image_size: tuple[int, int] | None = None
    width: float = 1.0
    activation: str | None = None
    mean: tuple[Ratio, ...] | None = None
    std: tuple[Ratio, ...] | None = None
    dropout: float | None = None
    weights: str | None = None
    weights_key: str | None = None
    ablation: str | None = None

    def __post_init__(self) -> None:
        if ":" not in self.name and self.name not in MODELS:
            raise ValueError(
                f"unknown model {self.name!r}{nearest(self.name, MODELS)}: use {', '.join(MODELS)}, "
                "package.module:factory for a model of your own, timm:NAME, or hf:FOLDER"
            )
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std must be given together: set both, or neither")
        if self.classes is not None and self.classes < 2:
            raise ValueError(f"classes is {self.classes}: a classifier needs at least 2")
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"channels is {self.channels}: an image has at least 1")
        if self.image_size is not None and (len(self.image_size) != 2 or min(self.image_size) < 1):
            raise ValueError(f"image_size is {self.image_size}: give height and width in pixels")
        if not 0 < self.width <= WIDEST:
            raise ValueError(
                f"width is {self.width}: use a positive number of at most {WIDEST}, 1 for the network of the paper"
            )
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}: use a probability in [0, 1)")
        if self.ablation is not None and not (self.name.startswith("tafd_") and self.ablation in ABLATIONS):
            raise ValueError(
                f"ablation is {self.ablation!r}: use {' or '.join(ABLATIONS)} with tafd_resnet18 or tafd_small_cnn"
            )
        if self.activation is not None and self.activation not in ACTIVATIONS:
            raise ValueError(
                f"unknown activation {self.activation!r}{nearest(self.activation, ACTIVATIONS)}: "
                f"use {', '.join(ACTIVATIONS)}"
            )

    def for_images(self, classes: int, channels: int, image_size: tuple[int, int]) -> "ModelConfig":
        """The same settings, with None replaced by values of a data set.

        Given classes stay with given weights: data may have examples of some of their classes only.

        Raises:
            ValueError: if a given value differs from that of the data.
        """
        given = {"classes": self.classes, "channels": self.channels}
        if self.weights is not None and self.classes is not None:
            classes = self.classes
        for key, found in (("classes", classes), ("channels", channels)):
            if given[key] is not None and given[key] != found:
                raise ValueError(
                    f"the model has {key} = {given[key]} but the data has {found}: "
                    f"leave {key} out to use the data's"
                )
        if self.image_size is not None and tuple(self.image_size) != tuple(image_size):
            raise ValueError(
                f"the model has image_size = {tuple(self.image_size)} but the data has {tuple(image_size)}: "
                "leave image_size out to use the data's"
            )
        return replace(self, classes=classes, channels=channels, image_size=image_size)


@dataclass(frozen=True)
class Settings:
    """A `ModelConfig` with all values set, from which an architecture is built."""

    classes: int
    channels: int
    image_size: tuple[int, int]
    width: float
    activation: str
    dropout: float
    mean: tuple[Ratio, ...] | None
    std: tuple[Ratio, ...] | None
    ablation: str | None = None


@dataclass(frozen=True)
class Architecture:
    """A named network: its constructor, and the values of its reference implementation (no dropout: None)."""

    build: Callable[[Settings], nn.Module]
    channels: int = 3
    image_size: tuple[int, int] = (32, 32)
    activation: str = "relu"
    dropout: float | None = None


def _small_cnn(s: Settings) -> nn.Module:
    return SmallCNN(
        classes=s.classes,
        channels=s.channels,
        image_size=s.image_size,
        width=s.width,
        activation=s.activation,
        dropout=s.dropout,
        mean=s.mean,
        std=s.std,
    )


def _conv_small(s: Settings) -> nn.Module:
    return ConvSmall(
        classes=s.classes,
        channels=s.channels,
        image_size=s.image_size,
        width=s.width,
        activation=s.activation,
        mean=s.mean,
        std=s.std,
    )


def _resnet(strides: tuple[int, int, int, int]) -> Architecture:
    def build(s: Settings) -> nn.Module:
        return ResNet(
            classes=s.classes,
            channels=s.channels,
            width=s.width,
            strides=strides,
            activation=s.activation,
            mean=s.mean,
            std=s.std,
        )

    return Architecture(build)


def _preact_resnet18(s: Settings) -> nn.Module:
    return PreActResNet(
        classes=s.classes,
        channels=s.channels,
        width=s.width,
        activation=s.activation,
        mean=s.mean,
        std=s.std,
    )


def _tafd_resnet18(s: Settings) -> nn.Module:
    return tafd_resnet18(
        classes=s.classes,
        channels=s.channels,
        image_size=s.image_size,
        width=s.width,
        activation=s.activation,
        mean=s.mean,
        std=s.std,
        ablation=s.ablation,
    )


def _tafd_small_cnn(s: Settings) -> nn.Module:
    return tafd_small_cnn(
        classes=s.classes,
        channels=s.channels,
        image_size=s.image_size,
        width=s.width,
        activation=s.activation,
        dropout=s.dropout,
        mean=s.mean,
        std=s.std,
        ablation=s.ablation,
    )


def _wide(depth: int, widen: int, activation: str = "relu", momentum: float = 0.1) -> Architecture:
    def build(s: Settings) -> nn.Module:
        return WideResNet(
            depth,
            widen * s.width,
            classes=s.classes,
            channels=s.channels,
            activation=s.activation,
            dropout=s.dropout,
            momentum=momentum,
            mean=s.mean,
            std=s.std,
        )

    return Architecture(build, activation=activation, dropout=0.0)


MODELS: dict[str, Architecture] = {
    "small_cnn": Architecture(_small_cnn, channels=1, image_size=(28, 28), dropout=0.5),
    "conv_small": Architecture(_conv_small, channels=1, image_size=(28, 28)),
    "resnet18": _resnet((1, 2, 2, 2)),
    "resnet18_lbgat": _resnet((1, 1, 2, 2)),
    "preact_resnet18": Architecture(_preact_resnet18),
    "wrn16_4": _wide(16, 4),
    "wrn28_10": _wide(28, 10),
    "wrn34_10": _wide(34, 10),
    "wrn34_20": _wide(34, 20),
    "wrn70_16": _wide(70, 16),
    "wrn28_10_silu": _wide(28, 10, "silu", 0.01),
    "wrn70_16_silu": _wide(70, 16, "silu", 0.01),
    "tafd_resnet18": Architecture(_tafd_resnet18),
    "tafd_small_cnn": Architecture(_tafd_small_cnn, channels=1, image_size=(28, 28), dropout=0.5),
}


def build_model(
    config: ModelConfig, seed: int, allow_code: bool = False, images: Tensor | None = None
) -> nn.Module:
    """Build the configured network with its weights, on the CPU, in train mode.

    New weights depend on the seed alone: PyTorch's global generator is neither used nor changed.

    Args:
        config: the model's name and settings.
        seed: any integer of 64 bits.
        allow_code: True allows a name `package.module:factory` to import and call that code. A configuration file
            from others must not run code, so only the user's own command sets it.
        images: a few images, `(N, C, H, W)`, for networks that create parameters in their first forward pass; None
            leaves such parameters without shape.

    Raises:
        ValueError: if the settings do not fit together, or the name is the user's own code and `allow_code`
            is False.
        WeightsError: if the file of weights does not fit the network.
        FileNotFoundError: if the file of weights does not exist.
    """
    state = torch.get_rng_state()
    try:
        # not torch.manual_seed, which would also reseed every GPU
        torch.default_generator.manual_seed(seed)
        with torch.device("cpu"):
            model = new_network(config, allow_code)
    finally:
        torch.set_rng_state(state)
    if images is not None and has_lazy_parameters(model):
        create_parameters(model, images, seed)
    if config.weights is not None:
        load_weights(as_classifier(model), config.weights, config.weights_key)  # with layers kept in lists
    return model


def new_network(config: ModelConfig, allow_code: bool) -> nn.Module:
    """The configured network before the weights of a file are loaded; see `build_model`."""
    if is_published(config.name):
        return _published(config)
    if config.name.startswith(TORCHSCRIPT):
        return _normalised(load_torchscript(config.name, allow_code), config.mean, config.std)
    if ":" in config.name:
        own = build_user_model(config.name, config.classes, allow_code)
        return _normalised(own, config.mean, config.std)
    architecture = MODELS[config.name]
    if architecture.dropout is None and config.dropout:
        raise ValueError(f"dropout is {config.dropout} but {config.name} has no dropout: leave it out")
    dropout = architecture.dropout if config.dropout is None else config.dropout
    return architecture.build(
        Settings(
            classes=10 if config.classes is None else config.classes,
            channels=config.channels or architecture.channels,
            image_size=config.image_size or architecture.image_size,
            width=config.width,
            activation=config.activation or architecture.activation,
            dropout=dropout or 0.0,
            mean=config.mean,
            std=config.std,
            ablation=config.ablation,
        )
    )


def _published(config: ModelConfig) -> nn.Module:
    mean, std = config.mean, config.std
    if mean is None:
        found = expected_images(config.name)
        mean, std = found.mean, found.std
        if mean is None or std is None:
            raise ValueError(
                f"the model {config.name!r} does not state its input normalisation: give --model.mean and "
                "--model.std on the [0, 1] scale; 0 and 1 for none"
            )
    network = build_published(config.name, config.classes, config.weights, config.weights_key)
    return wrap(network, mean=mean, std=std)


def _normalised(network: nn.Module, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> nn.Module:
    """The network behind an input normalisation, where one is configured."""
    return network if mean is None else wrap(network, mean=mean, std=std)
