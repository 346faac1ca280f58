"""Models with code of their own, run only where that is allowed: `package.module:factory`, `torchscript:FILE`."""

import importlib
import inspect
from pathlib import Path

import torch
from torch import nn

from robustly.memory import check_archive
from robustly.model_names import TORCHSCRIPT
from robustly.models.divided import DividedModel
from robustly.output_text import first_line


def build_user_model(name: str, classes: int | None, allow_code: bool) -> nn.Module:
    """Import a module, call its factory, and return the model.

    Args:
        name: `package.module:factory`; the module must be importable.
        classes: passed as `classes=` if the factory has an argument of this name and the number is known.
        allow_code: True allows the import.

    Raises:
        ValueError: if code is not allowed, if the module or the factory cannot be found or fails, or if it
            returns something other than a `torch.nn.Module`.
    """
    if not allow_code:
        raise ValueError(
            f"the model {name!r} names code to import and run, which is not allowed here: "
            "allow it (--trust-code; allow_code=True in Python) only for code that you trust"
        )
    module_name, _, factory_name = name.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), factory_name]):
        raise ValueError(f"the model {name!r} must have the form package.module:factory")
    # the user's code may raise any exception; all become one message
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ValueError(
            f"the model {name!r}: importing {module_name!r} failed with {type(error).__name__}: {error}"
        ) from error
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise ValueError(f"the model {name!r}: {module_name!r} has no function {factory_name!r}")
    try:
        model = factory(classes=classes) if classes is not None and _takes_classes(factory) else factory()
    except Exception as error:
        raise ValueError(f"the model {name!r}: the factory failed with {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"the model {name!r}: the factory returned {type(model).__name__}, not a torch.nn.Module")
    if isinstance(model, DividedModel):
        raise ValueError(f"the model {name!r}: the factory returned a DividedModel, which states its own hash")
    return model


def load_torchscript(name: str, allow_code: bool) -> nn.Module:
    """Load a model of `torch.jit.save`, named `torchscript:FILE`, on the CPU.

    Args:
        name: the file behind `torchscript:`.
        allow_code: True allows it: the file holds code, which PyTorch's interpreter runs.

    Raises:
        ValueError: if code is not allowed, or the file is damaged.
        FileNotFoundError: if there is no such file.
    """
    file = Path(name.removeprefix(TORCHSCRIPT)).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such file")
    if not allow_code:
        raise ValueError(
            f"{file} holds a model with its code, which is not allowed here: allow it (--trust-code; "
            "allow_code=True in Python) only for code that you trust"
        )
    check_archive(file)
    try:
        model: nn.Module = torch.jit.load(str(file), map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:
        raise ValueError(f"{file} cannot be loaded as TorchScript: {first_line(error)}") from None
    return model


def _takes_classes(factory: object) -> bool:
    try:
        return callable(factory) and "classes" in inspect.signature(factory).parameters
    except ValueError:  # some callables written in C have no signature
        return False
