"""The settings of our own networks from a file of their weights."""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor, nn

from robustly.models.checkpoints import WeightsError, read_weights, weights_file, written_about
from robustly.models.registry import MODELS, WIDEST, ModelConfig, new_network
from robustly.models.weight_names import NamesError, fitted
from robustly.models.without_values import without_values
from robustly.settings import SettingsError, build

ABOUT_MODEL = "model"
_EXPORTED = "robustly"
"""Key of the metadata of `robustly export`, whose JSON has the settings under `model`."""
_SIGNS = {
    "small_cnn": "classifier.fc3.weight",
    "conv_small": "features.conv2.weight",
    "wrn": "block1.layer.0.conv1.weight",
    "resnet": "layer1.0.conv1.weight",
    "tafd": "router.conv1.weight",
}
"""A weight that networks have whose name begins so; the others are not tried, because building them takes time."""
_OUTPUT_LAYERS = (
    *("linear.weight", "fc.weight", "classifier.fc3.weight", "classifier.fc2.weight"),
    *("body.linear.weight", "body.classifier.fc3.weight"),
)
_OF_IMAGE_SIZE = ("classifier.fc1.weight", "body.classifier.fc1.weight")
_INPUT_LAYERS = (
    *("conv1.weight", "feature_extractor.conv1.weight", "features.conv1.weight", "router.conv1.weight"),
)
_NORMALISATION = ("normalize.mean", "normalize.std")


def about_model(config: ModelConfig) -> dict[str, str]:
    """Metadata for `save_weights` from which `recognised` reads the settings of the network."""
    return {ABOUT_MODEL: json.dumps(asdict(replace(config, weights=None, weights_key=None)))}


def recognised(path: str | Path, key: str | None = None, among: Collection[str] = tuple(MODELS)) -> ModelConfig:
    """Settings of the network whose weights a file holds, with these weights.

    Files of `save_weights` state them. Otherwise they follow from names and shapes, if one network fits.

    Args:
        path: as for `read_weights`.
        key: as for `read_weights`.
        among: names of the networks that are tried.

    Raises:
        FileNotFoundError: if there is no such file.
        WeightsError: if it cannot be read, or no network fits, or several do.
    """
    file = weights_file(path)
    about = written_about(file)
    stated = about.get(ABOUT_MODEL, about.get(_EXPORTED))
    if stated is not None and among == tuple(MODELS):
        try:
            content = json.loads(stated)
            config = build(ModelConfig, content if ABOUT_MODEL in about else content.get("model"), "model")
            return replace(config, weights=str(file), weights_key=key)
        except (SettingsError, ValueError, AttributeError) as error:
            raise WeightsError(f"{file}: its metadata does not state settings of a model ({error})") from None
    given = read_weights(file, key)
    fits = [config for name in among for config in _fitting(name, given)]
    if len(fits) != 1:
        names = ", ".join(config.name for config in fits)
        reason = (
            f"fits {names}, which differ in strides or activations only: choose one with --model NAME"
            if fits
            else f"fits none of the networks {', '.join(among)}: name the network with --model "
            "package.module:factory, --timm NAME or --hf-model FOLDER"
        )
        raise WeightsError(f"{file}: {reason}")
    return replace(fits[0], weights=str(file), weights_key=key)


def _fitting(name: str, given: Mapping[str, Tensor]) -> Iterator[ModelConfig]:
    """The settings of one network under which it has the given names and shapes; nothing if there are none."""
    sign = next((weight for start, weight in _SIGNS.items() if name.startswith(start)), _SIGNS["resnet"])
    if not any(one.endswith(sign) for one in given):
        return
    plain = ModelConfig(name)
    weights, reference = _named_as(plain, given), _empty(plain).state_dict()
    first, last = _layer(_INPUT_LAYERS, weights), _layer(_OUTPUT_LAYERS, weights)
    if first is None or last is None:
        return
    channels = first.shape[1]
    config = ModelConfig(name, classes=max(2, len(last)), channels=channels)
    stated = config
    if all(one in weights for one in _NORMALISATION):
        config = replace(config, mean=(0.0,) * channels, std=(1.0,) * channels)
        mean, std = (tuple(weights[one].flatten().tolist()) for one in _NORMALISATION)
        stated = replace(stated, mean=mean, std=std)
    exact = last.shape[1] / next(reference[one].shape[1] for one in _OUTPUT_LAYERS if one in reference)
    widths = dict.fromkeys([*(round(exact, digits) for digits in (2, 3, 4)), exact])
    for sized in (replace(config, width=width) for width in widths if 0 < width <= WIDEST):
        # fitted to the names at this width, weights of the whole network may be found twice
        if _fits(sized, weights) and _fits(sized, _named_as(sized, given)):
            yield replace(stated, width=sized.width)
            return


def _named_as(config: ModelConfig, given: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The given weights under the names of a network; none if they fit it in several ways."""
    try:
        weights = fitted(given, _empty(config).state_dict()).weights
    except NamesError:
        return {}
    return {name: value for name, value in weights.items() if not name.startswith("sub_block1.")}


def _layer(names: tuple[str, ...], weights: Mapping[str, Tensor]) -> Tensor | None:
    """The weight of a layer, `(outputs, inputs, ...)`; None without one."""
    found = (weights[name] for name in names if name in weights)
    return next((value for value in found if value.ndim > 1 and value.numel()), None)


def _fits(config: ModelConfig, weights: Mapping[str, Tensor]) -> bool:
    """True if a network has the names and shapes of the weights, apart from the size of the images.

    Names depend on the width: a wide ResNet has no shortcut in a block that keeps the number of channels.
    """
    own = _empty(config).state_dict()
    needed = {name for name in own if not name.endswith("num_batches_tracked")}
    return needed <= weights.keys() <= own.keys() and all(
        value.shape == own[name].shape or (name in _OF_IMAGE_SIZE and len(value) == len(own[name]))
        for name, value in weights.items()
    )


def _empty(config: ModelConfig) -> nn.Module:
    return without_values(lambda: new_network(config, allow_code=False))
