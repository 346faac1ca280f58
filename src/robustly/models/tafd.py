"""Threat-aware frequency decoupling (TaFD): a router, and a classifier with experts that follow its route."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustly.models.adapted import Adapted
from robustly.models.adapter import unwrapped
from robustly.models.frequency import FrequencyConv2d, Route, fixed_route
from robustly.models.layers import input_layer, scaled
from robustly.models.resnet import ResNet
from robustly.models.small_cnn import SmallCNN

DOMAINS = 2
"""Threat domains of the paper's networks: Lp threats, and changes of colour and geometry."""
SMALLEST_SIDE = 8
RANDOM_DOMAINS, NO_MASKS = "random_domains", "no_masks"
ABLATIONS = (RANDOM_DOMAINS, NO_MASKS)
"""Variants in which one part of the idea is missing: the router, or the masks of the spectrum."""
_GRID = 8  # sides of the averages that a random router reads


class RandomRouter(nn.Module):
    """Domain logits without training: an ablation of the router, for which domains are as good as drawn.

    They are fixed random directions times the image, averaged over a grid of 8 x 8 places. The directions have mean
    0 over the places, so that brightness does not decide. The route of an image depends on the image alone, as that
    of a trained router, and on no threat: an attack changes it where the image is near the edge between domains.

    Args:
        channels: channels of the images.
        domains: number of domains.
    """

    directions: Tensor

    def __init__(self, channels: int, domains: int) -> None:
        super().__init__()
        drawn = torch.randn(domains, channels, _GRID * _GRID)
        self.register_buffer("directions", (drawn - drawn.mean(2, keepdim=True)).flatten(1))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Domain logits."""
        return nn.functional.adaptive_avg_pool2d(x, _GRID).flatten(1) @ self.directions.to(x.dtype).T


class TafdNetwork(nn.Module):
    """A classifier with experts for K threat domains, and the router that chooses a domain for each image.

    Xie, He and Fang, "TaFD" (arXiv 2606.17540), after the released code. To attacks, evaluations and audits it is
    one ordinary classifier. The route is that of the largest router logit of the image alone. Where gradients are
    enabled, the frequency-conditional convolutions have the same values, with the gradient of the soft route (see
    `FrequencyConv2d`), so that attacks see how a perturbation moves the route.

    Args:
        body: the classifier, whose `FrequencyConv2d` layers have as many domains as the router has logits.
        logits: computes the logits of the body for normalised images `(N, C, H, W)` and a route.
        router: computes domain logits `(N, K)` of normalised images.
        domains: number of domains K.
        normalize: input normalisation of both; None for none.
    """

    def __init__(
        self,
        body: nn.Module,
        logits: Callable[[nn.Module, Tensor, Route], Tensor],
        router: nn.Module,
        domains: int,
        normalize: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.normalize = nn.Identity() if normalize is None else normalize
        self.body, self.router, self.domains = body, router, domains
        self._logits = logits

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Logits of images in [0, 1], by the router's route."""
        x = self.normalize(x)
        found: Tensor = self.router(x)
        route = fixed_route(found.argmax(1), self.domains, found)
        if torch.is_grad_enabled():
            route = Route(route.hard, found.softmax(1))
        return self._logits(self.body, x, route)

    @property
    def has_random_domains(self) -> bool:
        """True for the ablation without a trained router."""
        return isinstance(self.router, RandomRouter)

    def domain_logits(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Router logits of images in [0, 1]."""
        logits: Tensor = self.router(self.normalize(x))
        return logits

    def dispatched(self, x: Float[Tensor, "n c h w"], domains: Int64[Tensor, " n"]) -> Float[Tensor, "n classes"]:
        """Logits of images in [0, 1] by given domains, without the router; their gradient is exact.

        Args:
            x: the images.
            domains: a domain from 0 to K - 1 for each image.
        """
        x = self.normalize(x)
        return self._logits(self.body, x, fixed_route(domains, self.domains, x))


def routed_network(model: object) -> TafdNetwork | None:
    """The network with threat domains inside the wrappers of a model, or None."""
    bare = unwrapped(model)
    while isinstance(bare, Adapted):
        bare = unwrapped(bare.inner)
    return bare if isinstance(bare, TafdNetwork) else None


class ForcedRoute(nn.Module):
    """A classifier that routes every image through one domain of a `TafdNetwork`, whose weights it shares.

    Args:
        network: the network.
        domain: the domain, from 0.
    """

    def __init__(self, network: TafdNetwork, domain: int) -> None:
        super().__init__()
        self.network, self.domain = network, domain
        self.train(network.training)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Logits of images in [0, 1]."""
        domains = torch.full((len(x),), self.domain, dtype=torch.int64, device=x.device)
        return self.network.dispatched(x, domains)


def forced(model: nn.Module, domain: int) -> ForcedRoute:
    """The classifier that routes every image through one domain; it has exact gradients, and shares the weights.

    Args:
        model: a `TafdNetwork`, such as `tafd_resnet18`.
        domain: the domain, from 0.

    Raises:
        ValueError: a network of another kind, or a domain that it does not have.
    """
    if not isinstance(model, TafdNetwork):
        raise ValueError(
            f"forced routes need a network with threat domains, such as tafd_resnet18, not {type(model).__name__}"
        )
    if not 0 <= domain < model.domains:
        raise ValueError(f"domain is {domain}: the network has the domains 0 to {model.domains - 1}")
    return ForcedRoute(model, domain)


def tafd_resnet18(
    *,
    classes: int = 10,
    channels: int = 3,
    image_size: tuple[int, int] = (32, 32),
    width: float = 1.0,
    domains: int = DOMAINS,
    activation: str = "relu",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    ablation: str | None = None,
) -> TafdNetwork:
    """`ResNet` whose stem and first convolution of each stage are frequency-conditional: 14,736,232 parameters.

    The paper's places, in a ResNet-18 instead of its ResNet-34. The router has 64, 128 and 256 channels.

    Args:
        classes: number of logits.
        channels: channels of the images.
        image_size: height and width in pixels, each at least 8; larger ones work too.
        width: factor of all hidden widths, those of the router included.
        domains: number of threat domains, at least 1.
        activation: a name in `ACTIVATIONS`.
        mean: per-channel mean of the input normalisation, or None for none.
        std: per-channel standard deviation of the input normalisation, or None for none.
        ablation: "random_domains" (a `RandomRouter`), "no_masks" (every expert has the whole spectrum) or None.

    Raises:
        ValueError: a side under 8 pixels, fewer than one domain, an unknown activation or ablation.
    """
    _check_sides("tafd_resnet18", image_size)
    _check_ablation(ablation)
    body = ResNet(classes=classes, channels=channels, width=width, activation=activation)
    body.set_submodule("conv1", _conditional(body.conv1, domains, image_size, ablation))
    sides = image_size
    for stage in (body.layer1, body.layer2, body.layer3, body.layer4):
        plain = stage[0].get_submodule("conv1")
        assert isinstance(plain, nn.Conv2d)
        stage[0].set_submodule("conv1", _conditional(plain, domains, sides, ablation))
        sides = (-(-sides[0] // plain.stride[0]), -(-sides[1] // plain.stride[1]))
    router = _router(channels, scaled(64, width), domains, ablation)
    return TafdNetwork(body, _resnet_logits, router, domains, input_layer(channels, mean, std))


def tafd_small_cnn(
    *,
    classes: int = 10,
    channels: int = 1,
    image_size: tuple[int, int] = (28, 28),
    width: float = 1.0,
    domains: int = DOMAINS,
    activation: str = "relu",
    dropout: float = 0.5,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    ablation: str | None = None,
) -> TafdNetwork:
    """`SmallCNN` whose first convolution of each pair is frequency-conditional: 447,044 parameters on MNIST.

    The router has 32, 64 and 128 channels.

    Args:
        classes: number of logits.
        channels: channels of the images.
        image_size: height and width in pixels, each at least 16.
        width: factor of all hidden widths, those of the router included.
        domains: number of threat domains, at least 1.
        activation: a name in `ACTIVATIONS`.
        dropout: as in `SmallCNN`.
        mean: per-channel mean of the input normalisation, or None for none.
        std: per-channel standard deviation of the input normalisation, or None for none.
        ablation: as in `tafd_resnet18`.

    Raises:
        ValueError: a side under 16 pixels, fewer than one domain, or an unknown activation.
    """
    _check_ablation(ablation)
    body = SmallCNN(
        classes=classes,
        channels=channels,
        image_size=image_size,
        width=width,
        activation=activation,
        dropout=dropout,
    )
    layers = body.feature_extractor
    halved = ((image_size[0] - 4) // 2, (image_size[1] - 4) // 2)
    for name, sides in (("conv1", image_size), ("conv3", halved)):
        plain = layers.get_submodule(name)
        assert isinstance(plain, nn.Conv2d)
        layers.set_submodule(name, _conditional(plain, domains, sides, ablation))
    router = _router(channels, scaled(32, width), domains, ablation)
    return TafdNetwork(body, _small_cnn_logits, router, domains, input_layer(channels, mean, std))


def _resnet_logits(body: nn.Module, x: Tensor, route: Route) -> Tensor:
    """Logits of a `ResNet`; its first convolution and those of its stages take the route."""
    assert isinstance(body, ResNet)
    x = body.act1(body.bn1(body.conv1(x, route)))
    stages: tuple[Any, ...] = (body.layer1, body.layer2, body.layer3, body.layer4)
    for first, *others in stages:
        inner = first.bn2(first.conv2(first.act1(first.bn1(first.conv1(x, route)))))
        x = first.act2(inner + first.shortcut(x))
        for block in others:
            x = block(x)
    logits: Tensor = body.linear(x.mean(dim=(2, 3)))
    return logits


def _small_cnn_logits(body: nn.Module, x: Tensor, route: Route) -> Tensor:
    """Logits of a `SmallCNN`; its frequency-conditional layers take the route."""
    assert isinstance(body, SmallCNN)
    for layer in body.feature_extractor:
        x = layer(x, route) if isinstance(layer, FrequencyConv2d) else layer(x)
    logits: Tensor = body.classifier(body.flatten(x))
    return logits


def _conditional(
    plain: nn.Conv2d, domains: int, image_size: tuple[int, int], ablation: str | None
) -> FrequencyConv2d:
    """The frequency-conditional convolution in place of a plain one."""
    return FrequencyConv2d(
        plain.in_channels,
        plain.out_channels,
        plain.kernel_size[0],
        domains=domains,
        image_size=image_size,
        stride=plain.stride[0],
        padding=int(plain.padding[0]),
        bias=plain.bias is not None,
        masked=ablation != NO_MASKS,
    )


def _router(channels: int, first: int, domains: int, ablation: str | None) -> nn.Module:
    """Three convolutions with batch normalisation, dropout and pooling, and two linear layers."""
    if ablation == RANDOM_DOMAINS:
        return RandomRouter(channels, domains)
    layers = OrderedDict[str, nn.Module]()
    before = channels
    for number, dropout in enumerate((0.1, 0.2, 0.3)):
        after = first * 2**number
        layers |= {
            f"conv{number + 1}": nn.Conv2d(before, after, 3, padding=1),
            f"bn{number + 1}": nn.BatchNorm2d(after),
            f"act{number + 1}": nn.ReLU(),
            f"drop{number + 1}": nn.Dropout2d(dropout),
            f"pool{number + 1}": nn.MaxPool2d(2),
        }
        before = after
    layers |= {
        "average": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "fc1": nn.Linear(before, first),
        "act4": nn.ReLU(),
        "drop4": nn.Dropout(0.6),
        "fc2": nn.Linear(first, domains),
    }
    return nn.Sequential(layers)


def _check_sides(name: str, image_size: tuple[int, int]) -> None:
    if min(image_size) < SMALLEST_SIDE:
        raise ValueError(
            f"{name} needs images of at least {SMALLEST_SIDE}x{SMALLEST_SIDE} pixels, not "
            f"{image_size[0]}x{image_size[1]}"
        )


def _check_ablation(ablation: str | None) -> None:
    if ablation is not None and ablation not in ABLATIONS:
        raise ValueError(f"unknown ablation {ablation!r}: use {' or '.join(ABLATIONS)}, or leave it out")
