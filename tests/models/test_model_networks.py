"""Networks: published parameter counts, shapes, and the choices that a caller has."""

import pytest
import torch
from torch import nn

from robustly.models import (
    MODELS,
    ModelConfig,
    Normalize,
    PreActResNet,
    ResNet,
    Settings,
    SmallCNN,
    WideResNet,
    build_model,
)


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # 320 + 9248 + 18496 + 36928 in the convolutions, 205000 + 40200 + 2010 in the linear layers
        ("small_cnn", 312_202),
        # 272 + 8224 in the convolutions, 156900 + 1010 in the linear layers
        ("conv_small", 166_406),
        ("resnet18", 11_173_962),
        ("resnet18_lbgat", 11_173_962),
        # with the last batch normalisation, which kuangliu's 11,171,146 is without
        ("preact_resnet18", 11_171_146 + 1024),
        ("wrn28_10", 36_479_194),
        ("wrn34_10", 46_160_474),
        ("wrn28_10_silu", 36_479_194),
        # two experts in five layers (1728, 36864, 73728, 294912 and 1179648 weights each) and 2 x 2 x 11 numbers in
        # each; in the router 1792, 73856 and 295168 in the convolutions, 896, 16448 and 130 in the others
        ("tafd_resnet18", 11_173_962 + 2 * 1_586_880 + 5 * 44 + 388_290),
        # two experts of 288 and 18432 weights; 97,314 in the router
        ("tafd_small_cnn", 312_202 + 2 * 18_720 + 2 * 44 + 97_314),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, count: int) -> None:
    with torch.device("meta"):
        model = MODELS[name].build(_reference_settings(name))
    assert parameter_count(model) == count


def _reference_settings(name: str) -> Settings:
    known = MODELS[name]
    return Settings(10, known.channels, known.image_size, 1.0, known.activation, known.dropout or 0.0, None, None)


@pytest.mark.parametrize(
    "name", ["small_cnn", "conv_small", "resnet18", "resnet18_lbgat", "preact_resnet18", "wrn16_4"]
)
def test_logits_have_one_column_for_each_class(name: str) -> None:
    model = build_model(ModelConfig(name, classes=7, channels=2, image_size=(24, 20), width=0.1), seed=0)
    assert model.eval()(torch.rand(3, 2, 24, 20)).shape == (3, 7)


def test_lbgat_keeps_four_times_the_pixels_in_the_last_stages() -> None:
    sizes = {}
    for name, strides in (("plain", (1, 2, 2, 2)), ("lbgat", (1, 1, 2, 2))):
        model = ResNet(width=0.1, strides=strides)
        model.layer4.register_forward_hook(lambda _m, _x, out, name=name: sizes.update({name: out.shape[-1]}))
        model(torch.rand(2, 3, 32, 32))
    assert sizes == {"plain": 4, "lbgat": 8}


def test_width_scales_every_hidden_layer() -> None:
    narrow = ResNet(width=0.25)
    assert narrow.conv1.out_channels == 16
    assert narrow.linear.in_features == 128
    assert build_model(ModelConfig("wrn34_10", width=0.1), 0).get_submodule("fc").in_features == 64
    assert SmallCNN(width=0.5).feature_extractor.get_submodule("conv4").out_channels == 32


def test_small_cnn_starts_with_zero_logits_as_in_trades() -> None:
    assert torch.equal(SmallCNN()(torch.rand(2, 1, 28, 28)), torch.zeros(2, 10))


def test_wide_resnet_starts_from_he_initialisation_with_fan_out() -> None:
    weight = WideResNet(10, 4.0).get_parameter("block3.layer.0.conv2.weight")
    assert weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)


def test_silu_wide_resnets_have_the_slow_statistics_of_their_paper() -> None:
    model = build_model(ModelConfig("wrn28_10_silu", width=0.1), 0)
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert {layer.momentum for layer in norms} == {0.01}
    assert any(isinstance(layer, nn.SiLU) for layer in model.modules())
    assert not any(isinstance(layer, nn.ReLU) for layer in model.modules())


def test_another_activation_replaces_all() -> None:
    model = PreActResNet(width=0.1, activation="softplus")
    assert sum(isinstance(layer, nn.Softplus) for layer in model.modules()) == 17
    assert not any(isinstance(layer, nn.ReLU) for layer in model.modules())


def test_normalisation_is_part_of_the_model() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    layer = Normalize(mean, std)
    x = torch.rand(2, 3, 4, 4)
    expected = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(layer(x), expected)
    model = build_model(ModelConfig("resnet18", width=0.1, mean=mean, std=std), 0)
    assert "normalize.mean" in model.state_dict()
    plain = build_model(ModelConfig("resnet18", width=0.1), 0)
    torch.testing.assert_close(model.eval()(x), plain.eval()(expected))


@pytest.mark.parametrize(
    ("mean", "std", "words"),
    [
        ((0.5,), (0.5, 0.5), "one number for each channel"),
        ((), (), "one number for each channel"),
        ((0.5,), (0.0,), "positive"),
        ((float("nan"),), (1.0,), "finite"),
    ],
)
def test_normalize_refuses(mean: tuple[float, ...], std: tuple[float, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Normalize(mean, std)


def test_networks_refuse_what_they_cannot_be() -> None:
    with pytest.raises(ValueError, match="at least 16x16"):
        SmallCNN(image_size=(15, 28))
    with pytest.raises(ValueError, match="depth 12 does not exist"):
        WideResNet(12)
    with pytest.raises(ValueError, match="depth 4 does not exist"):
        WideResNet(4)
    with pytest.raises(ValueError, match="did you mean 'relu'"):
        ResNet(activation="rellu")
