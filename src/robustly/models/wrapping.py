"""The normalisation and the class names that a model of another library brings along."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from robustly.models.adapted import Adapted
from robustly.models.adapter import AdapterError, as_classifier, changed, kind_of, unwrapped
from robustly.models.layers import Normalize


def wrap(
    model: object,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    processor: object = None,
) -> nn.Module:
    """A module from images in [0, 1] to logits, with the normalisation that the model expects as its first layer.

    Args:
        model: anything that `as_classifier` takes.
        mean: per-channel mean on the [0, 1] scale.
        std: per-channel standard deviation on the [0, 1] scale.
        processor: a Hugging Face image processor, or the dictionary of its configuration, whose normalisation is
            used. Without it and without mean and std, the `pretrained_cfg` of a timm model gives them.

    Raises:
        AdapterError: only one of mean and std, or a processor without a normalisation that can be read.
        ValueError: numbers that are not a normalisation.
    """
    if (mean is None) != (std is None):
        raise AdapterError("mean and std must be given together: give both, or neither")
    if mean is not None and processor is not None:
        raise AdapterError("give either mean and std or a processor, not both")
    if mean is None and processor is not None:
        mean, std = _of_processor(processor)
    elif mean is None:
        mean, std = _of_timm(unwrapped(model))
    adapted = as_classifier(model)
    if mean is None or std is None:
        return adapted
    layer = Normalize(_channels("mean", mean), _channels("std", std))
    device = next((value.device for value in adapted.parameters()), None)
    layer = layer if device is None else layer.to(device)
    if isinstance(adapted, Adapted) and adapted.normalize is None:
        return changed(adapted, normalize=layer)
    return Adapted(adapted, normalize=layer)


def _channels(name: str, given: object) -> list[float]:
    """Numbers of the channels, on the [0, 1] scale.

    Raises:
        AdapterError: they are not a list of numbers, or a mean on the scale of 0 to 255.
    """
    try:
        numbers = [] if isinstance(given, str) else [float(value) for value in given]  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        numbers = []
    if not numbers:
        raise AdapterError(f"{name} is {given!r}: give a list with one number for each channel, such as [0.5]")
    if name == "mean" and max(numbers) > 2:
        raise AdapterError(f"mean is {numbers}: images are in [0, 1] here, so divide mean and std by 255")
    return numbers


def missing_normalisation(model: object) -> str:
    """A sentence if a model of another library expects normalised images and has no such layer; else empty."""
    bare = unwrapped(model)
    while isinstance(bare, Adapted):
        if bare.normalize is not None:
            return ""
        bare = unwrapped(bare.inner)
    mean, std = _of_timm(bare)
    if mean is not None and std is not None and (any(mean) or any(value != 1 for value in std)):
        return (
            f"the model states that it expects images normalised by mean {_numbers(mean)} and std {_numbers(std)}, "
            "but gets images in [0, 1]: pass robustly.wrap(model), which does that inside"
        )
    if hasattr(getattr(bare, "config", None), "model_type"):
        return (
            "models of Hugging Face mostly expect normalised images, but this one gets images in [0, 1]: pass "
            "robustly.wrap(model, processor=AutoImageProcessor.from_pretrained(...)), or mean= and std="
        )
    return ""


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


def names_of_outputs(model: object) -> tuple[str, ...] | None:
    """Class names of a model's outputs, from Hugging Face's configuration (`id2label`) or timm; None without."""
    bare = unwrapped(model)
    while isinstance(bare, Adapted):
        bare = bare.inner
    labels = getattr(getattr(bare, "config", None), "id2label", None)
    if isinstance(labels, Mapping) and labels:
        numbered = {int(key): str(value) for key, value in labels.items()}
        names = tuple(numbered[place] for place in sorted(numbered))
        return None if all(name == f"LABEL_{place}" for place, name in enumerate(names)) else names
    given = (getattr(bare, "pretrained_cfg", None) or {}).get("label_names")
    return tuple(str(name) for name in given) if given else None


def _of_processor(processor: object) -> tuple[Sequence[float] | None, Sequence[float] | None]:
    """Mean and standard deviation of a Hugging Face image processor, on the [0, 1] scale."""

    def setting(name: str) -> Any:
        return processor.get(name) if isinstance(processor, Mapping) else getattr(processor, name, None)

    if setting("do_normalize") is False:
        return None, None
    mean, std = setting("image_mean"), setting("image_std")
    if mean is None or std is None:
        inner = setting("image_processor")
        if inner is not None:
            return _of_processor(inner)
        raise AdapterError(
            f"the processor ({kind_of(processor)}) has no image_mean and image_std: give mean and std"
        )
    factor = setting("rescale_factor")
    if setting("do_rescale") is False or (factor is not None and abs(float(factor) * 255 - 1) > 1e-6):
        raise AdapterError(
            "the processor does not scale pixels by 1/255: give mean and std on the [0, 1] scale instead"
        )
    return list(mean), list(std)


def _of_timm(model: object) -> tuple[Sequence[float] | None, Sequence[float] | None]:
    found = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if not isinstance(found, Mapping) or found.get("mean") is None or found.get("std") is None:
        return None, None
    return list(found["mean"]), list(found["std"])
