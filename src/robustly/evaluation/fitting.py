"""Data whose class numbers are those of a model's outputs."""

import torch
from torch import Tensor, nn

from robustly.attacks.core.contract import frozen
from robustly.attacks.core.model_access import logits_of
from robustly.data import ImageData, fitted_to
from robustly.data.class_names import are_numbers
from robustly.evaluation.stages import EvaluationError
from robustly.models import names_of_outputs
from robustly.output_text import first_line


def fitted_data(model: nn.Module, data: ImageData, outputs: int) -> ImageData:
    """The data with one class for each output of the model.

    Where the model names its outputs and all classes of the data have such names, the numbers become those of the
    outputs. Otherwise `fitted_to` adds classes that are mere numbers.

    Args:
        model: the model.
        data: labelled images.
        outputs: number of its outputs, that is, of logits per image.

    Raises:
        ValueError: the data have more classes than the model outputs, or fewer whose outputs are unknown.
    """
    names = names_of_outputs(model)
    if names is not None and not are_numbers(data.classes) and set(data.classes) <= set(names):
        data = data.renumbered(names)
    return fitted_to(data, outputs)


def first_logits(model: nn.Module, data: ImageData) -> Tensor:
    """Logits of up to eight images, `(N, K)`, in evaluation mode.

    Raises:
        EvaluationError: the model fails on the images, or returns something else.
    """
    x = data.first(8)
    try:
        with frozen(model), torch.no_grad():
            logits = logits_of(model, x)
    except RuntimeError as error:
        raise EvaluationError(f"the model fails on images of shape {tuple(x.shape)}: {first_line(error)}") from None
    if logits.ndim != 2 or len(logits) != len(x):
        raise EvaluationError(
            f"the model returns {tuple(logits.shape)} for {len(x)} images: expected logits of shape "
            f"({len(x)}, classes)"
        )
    return logits
