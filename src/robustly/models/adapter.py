"""Any classifier as a module from images in [0, 1] to logits `(N, K)`."""

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robustly.models.adapted import Adapted, FunctionModel, Images
from robustly.models.divided import DividedModel
from robustly.models.hidden import hidden_modules, modules_of_function
from robustly.models.modes import modes_kept
from robustly.models.outputs import OutputError, is_single_logit, logits_in
from robustly.output_text import first_line


class AdapterError(ValueError):
    """A model that cannot be evaluated as it is; the message gives the reason and the remedy."""


def as_classifier(model: object, images: Images | None = None) -> nn.Module:
    """A module from images in [0, 1] to logits `(N, K)`, K >= 2; a model that is one already is returned itself.

    Compiled and parallel wrappers are removed. Plain functions, modules hidden in lists, programs of TorchScript
    and `torch.export`, and outputs other than a tensor get an `Adapted` around them. With images, the model is run
    on them in evaluation mode, which also finds a single logit, an input changed in place, and reentrant
    checkpoints.

    Args:
        model: a module, or a function from images to logits.
        images: a few images in [0, 1], on the model's device.

    Raises:
        AdapterError: it is neither, fails on the images, or returns no logits; the message gives the reason.
    """
    bare = unwrapped(model)
    if isinstance(bare, DividedModel):  # its network has been adapted before
        return bare
    hidden: dict[str, nn.Module] = {}
    if not isinstance(bare, nn.Module):
        if not callable(bare) or isinstance(bare, type):
            raise AdapterError(f"the model must be a torch.nn.Module or a function, got {kind_of(bare)}")
        used = modules_of_function(bare)
        if not used:
            warnings.warn(
                "the model is a function in which no torch.nn.Module was found, so its weights are not part of the "
                "evidence: pass a module to evaluate one that others can check",
                stacklevel=2,
            )
        bare = FunctionModel(bare, used)
    elif not isinstance(bare, torch.jit.ScriptModule | Adapted):
        hidden = hidden_modules(bare)
    fixed = _has_fixed_mode(bare)
    adapted = Adapted(bare, hidden=hidden, fixed_mode=fixed) if hidden or fixed else bare
    return adapted if images is None else _fitted(adapted, images)


def unwrapped(model: object) -> object:
    """The network inside the wrappers of `torch.compile`, DataParallel and AveragedModel."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(model, _PARALLEL):
            model = model.module
        else:
            return model


def model_name(model: nn.Module) -> str:
    """Name of a model in evidence: that of its class, or of the function, without wrappers."""
    bare = unwrapped(model)
    bare = unwrapped(bare.network) if isinstance(bare, DividedModel) else bare
    while isinstance(bare, Adapted):
        bare = unwrapped(bare.inner)
    if isinstance(bare, FunctionModel):
        return str(getattr(bare.function, "__name__", kind_of(bare.function)))
    return kind_of(bare)


_PARALLEL = (
    nn.DataParallel,
    nn.parallel.DistributedDataParallel,
    torch.optim.swa_utils.AveragedModel,
)


def _fitted(model: nn.Module, images: Images) -> nn.Module:
    """The model, adapted to what a trial on a few images shows."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise AdapterError(
            "the model's weights were made in torch.inference_mode, so nothing can be differentiated through them: "
            "make the model outside of it, or pass copy.deepcopy(model)"
        )
    with modes_kept(model):
        model.eval()
        try:
            for parameter in trainable:
                parameter.requires_grad_(False)
            return _tried(model, images)
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)


def _tried(model: nn.Module, images: Images) -> nn.Module:
    before = {name: value.clone() for name, value in model.named_buffers()}
    try:
        with torch.inference_mode(False), torch.no_grad():
            given = _in_dtype_of(model, images).clone()
            version = given._version
            output = model(given)
            logits = logits_in(output)
    except OutputError as error:
        raise AdapterError(str(error)) from None
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise AdapterError(
            f"the model fails on images of shape {tuple(images.shape)}: {first_line(error)}"
        ) from None
    if not logits.is_floating_point():
        hint = ": return the numbers of all classes, without argmax" if logits.ndim == 1 else ""
        raise AdapterError(f"the model returns {logits.dtype}, not logits of floating-point numbers{hint}")
    _warn_of_changes(before, model)
    copies_input, single_logit = given._version != version, is_single_logit(logits, len(images))
    fitted = model
    if copies_input or single_logit or not isinstance(output, Tensor):
        fitted = changed(model, copies_input=copies_input, single_logit=single_logit)
    if _refuses_input_gradients(fitted, images):
        fitted = changed(fitted, backward_only=True)
    return fitted


def _warn_of_changes(before: Mapping[str, Tensor], model: nn.Module) -> None:
    """Warn if a pass in evaluation mode has changed buffers."""
    changed_ones = [
        name
        for name, value in model.named_buffers()
        if name in before and not (value.shape == before[name].shape and torch.equal(value, before[name]))
    ]
    if changed_ones:
        warnings.warn(
            f"the model changes {', '.join(changed_ones[:3])} in evaluation mode, so its outputs may depend on "
            "earlier images, and an audit will find other weights: switch off what updates it",
            stacklevel=6,
        )


def changed(model: nn.Module, **changes: Any) -> Adapted:
    """An `Adapted` like the given model, with other settings."""
    if not isinstance(model, Adapted):
        return Adapted(model, **changes)
    twin = copy.copy(model)
    twin._modules = dict(model._modules)
    for name, value in changes.items():
        setattr(twin, name, value or getattr(model, name))
    return twin


def _refuses_input_gradients(model: nn.Module, images: Images) -> bool:
    """True if the model has checkpoints of the reentrant kind, which have no gradient to the input alone."""
    here = _in_dtype_of(model, images).detach().clone().requires_grad_()
    try:
        with torch.inference_mode(False), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            total = logits_in(model(here)).sum()
            if total.requires_grad:
                torch.autograd.grad(total, here, allow_unused=True)
    except Exception as error:  # other errors concern gradients only, and are reported by the diagnostics
        return "use_reentrant" in str(error)
    return False


def _has_fixed_mode(model: nn.Module) -> bool:
    """True for models with a part whose mode is fixed: programs of `torch.export` and `torch.jit.freeze`."""
    if isinstance(model, Adapted):
        return False
    for module in model.modules():
        if not hasattr(module, "training"):
            return True
        own = vars(module).get("eval")  # programs of torch.export replace the methods of the object
        if own is not None and module.training is not None:
            was_training = module.training
            try:
                own()
            except NotImplementedError:
                return True
            finally:
                module.training = was_training
    return False


def _in_dtype_of(model: nn.Module, images: Images) -> Images:
    parameter = next(model.parameters(), None)
    return images.to(parameter.dtype) if parameter is not None and parameter.dtype.is_floating_point else images


def kind_of(value: object) -> str:
    """Name of a value's class, or of the class itself."""
    return value.__name__ if isinstance(value, type) else type(value).__name__
