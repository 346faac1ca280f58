"""A model and images that fit each other."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from robustly.data import ImageData
from robustly.evaluation import EvaluationError
from robustly.evaluation.fitting import first_logits, fitted_data
from robustly.models import as_classifier, has_weights
from robustly.models.adapter import unwrapped
from robustly.models.wrapping import missing_normalisation

Model = nn.Module | Callable[[Tensor], object]
"""A network, or a function from images to logits."""


def fit(model: Model, data: ImageData, device: torch.device | str | None) -> tuple[nn.Module, ImageData]:
    """A model and data that fit each other: one device, and one class for each output.

    Raises:
        EvaluationError: the model is on another device than the requested one.
        ValueError: the model fails on the images, or has other classes.
    """
    bare = as_classifier(model)
    unnormalised = missing_normalisation(bare)
    if unnormalised:
        warnings.warn(unnormalised, stacklevel=3)
    placed = next((value.device for value in (*bare.parameters(), *bare.buffers())), None)
    if isinstance(unwrapped(model), nn.Module) and not has_weights(bare):
        warnings.warn(
            "no weights were found in the model, so they are not part of the evidence: register its networks as "
            "attributes, and its tensors as buffers, so that others can check it",
            stacklevel=3,
        )
    wanted = placed if device is None else _device(device)
    if placed is not None and wanted is not None and placed.type != wanted.type:
        raise EvaluationError(f"the model is on {placed}, not on {wanted}: move it with model.to({str(wanted)!r})")
    data = data if wanted is None or wanted.type == "meta" else data.to(wanted)
    adapted = as_classifier(bare, data.first(2))
    return adapted, fitted_data(adapted, data, first_logits(adapted, data).shape[1])


def _device(name: torch.device | str) -> torch.device:
    try:
        return torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise EvaluationError(f"there is no device {str(name)!r}: use cpu, cuda, cuda:1 or mps") from error
