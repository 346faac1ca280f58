"""Networks of timm and Hugging Face by name, `timm:NAME` and `hf:FOLDER`, and the images that they expect."""

import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from robustly.documents import DocumentError, read_json
from robustly.model_names import HUGGING_FACE, TIMM
from robustly.models.checkpoints import read_weights
from robustly.output_text import typed_line

_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")

T = TypeVar("T")


class PublishedError(ValueError):
    """A published network that cannot be found, loaded, or given its images."""


@dataclass(frozen=True)
class Expected:
    """Images that a published network expects.

    Args:
        channels: number of channels.
        side: height and width in pixels; None if they differ or are not stated.
        mean: per-channel mean of the input normalisation, on the [0, 1] scale; None if it is not stated.
        std: per-channel standard deviation, likewise.
    """

    channels: int | None = None
    side: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def expected_images(name: str) -> Expected:
    """Images that a published network expects, from its configuration; no weights are loaded.

    timm's `pretrained_cfg` and Hugging Face's `preprocessor_config.json` state them.

    Raises:
        PublishedError: there is no such network, or its library is not installed.
    """
    if name.startswith(TIMM):
        return _expected_by_timm(_configuration_of_timm(name.removeprefix(TIMM)))
    where, library = _place(name), _transformers()
    stated = _processor(where)
    config = _tried(name, lambda: library.AutoConfig.from_pretrained(where, trust_remote_code=False))
    channels, size = getattr(config, "num_channels", None), getattr(config, "image_size", None)
    found = Expected(channels if isinstance(channels, int) else None, size if isinstance(size, int) else None)
    if stated is None:
        return found
    mean, std = _normalisation(stated, found.channels or 3)
    return Expected(found.channels, _side(stated) or found.side, mean, std)


def build_published(name: str, classes: int | None, weights: str | None, key: str | None) -> nn.Module:
    """A published network, on the CPU: with its published weights, or new if a file of weights follows.

    Code of a network's repository is never run, and pickled weights are never loaded.

    Args:
        name: `timm:NAME`, `hf:FOLDER` or `hf:HUB_NAME`.
        classes: number of logits of a new timm network whose weights do not show it.
        weights: the file of weights that will be loaded, or None for the published ones.
        key: as for `read_weights`.

    Raises:
        PublishedError: there is no such network, its library is not installed, or its weights lack some of its
            parameters.
        WeightsError: the file of weights cannot be read.
    """
    if name.startswith(TIMM):
        return _build_timm(name, classes, weights, key)
    where = _place(name)
    library = _transformers()
    automatic = library.AutoModelForImageClassification
    if weights is not None:
        config = _tried(name, lambda: library.AutoConfig.from_pretrained(where, trust_remote_code=False))
        new: nn.Module = _tried(name, lambda: automatic.from_config(config, trust_remote_code=False))
        return new.float()
    with _quiet(library):
        model, info = _tried(
            name,
            lambda: automatic.from_pretrained(
                where, trust_remote_code=False, use_safetensors=True, output_loading_info=True
            ),
        )
    missing = sorted(str(one) for one in (*info.get("missing_keys", ()), *info.get("mismatched_keys", ())))
    if missing:
        raise PublishedError(
            f"the model {name!r} has no weights for {', '.join(missing[:3])}: it is not trained to classify images"
        )
    loaded: nn.Module = model.float()
    return loaded


def _build_timm(name: str, classes: int | None, weights: str | None, key: str | None) -> nn.Module:
    short = name.removeprefix(TIMM)
    library = _timm()
    if weights is None:
        published: nn.Module = _tried(name, lambda: library.create_model(short, pretrained=True))
        return published
    number = _outputs_in(read_weights(weights, key), _configuration_of_timm(short)) or classes
    chosen = {} if number is None else {"num_classes": number}
    new: nn.Module = _tried(name, lambda: library.create_model(short, pretrained=False, **chosen))
    return new


def _outputs_in(weights: Mapping[str, Tensor], configuration: Mapping[str, Any]) -> int | None:
    """Number of outputs of the last layer in a file, which timm's configuration names."""
    last = configuration.get("classifier")
    names = [last] if isinstance(last, str) else list(last or ())
    for name in names:
        for given, value in weights.items():
            if given == f"{name}.weight" or given.endswith(f".{name}.weight"):
                return len(value)
    return None


def _configuration_of_timm(name: str) -> Mapping[str, Any]:
    library = _timm()
    found = _tried(f"{TIMM}{name}", lambda: library.get_pretrained_cfg(name))
    if found is None:
        model = _tried(f"{TIMM}{name}", lambda: library.create_model(name, pretrained=False))
        found = getattr(model, "pretrained_cfg", {})
    return found if isinstance(found, Mapping) else dict(vars(found))


def _expected_by_timm(stated: Mapping[str, Any]) -> Expected:
    size = stated.get("input_size") or (None, None, None)
    mean, std = stated.get("mean"), stated.get("std")
    if mean is None or std is None:
        return Expected(size[0], size[1] if size[1] == size[2] else None)
    numbers = (tuple(float(one) for one in mean), tuple(float(one) for one in std))
    return Expected(size[0], size[1] if size[1] == size[2] else None, *numbers)


def _place(name: str) -> str:
    """Folder or hub name of a network of Hugging Face."""
    where = name.removeprefix(HUGGING_FACE)
    folder = Path(where).expanduser()
    if where and folder.is_dir():
        if not (folder / "config.json").is_file():
            raise PublishedError(f"{folder} is not a folder of a Hugging Face model: it has no config.json")
        return str(folder)
    if not _HUB_NAME.fullmatch(where):
        raise PublishedError(f"{where!r} is neither a folder nor the name of a model on the Hugging Face hub")
    return where


def _processor(where: str) -> Mapping[str, Any] | None:
    """Configuration of the image processor; None without one."""
    for name in _PROCESSORS:
        file = Path(where) / name
        if not Path(where).is_dir():
            found = _from_hub(where, name)
            if found is None:
                continue
            file = found
        if file.is_file():
            try:
                content = read_json(file)
            except DocumentError as error:
                raise PublishedError(str(error)) from None
            inner = content.get("image_processor", content) if isinstance(content, Mapping) else None
            if not isinstance(inner, Mapping):
                raise PublishedError(f"{file}: does not hold settings by name")
            return inner
    return None


def _from_hub(where: str, name: str) -> Path | None:
    hub = _library("huggingface_hub", "hf")
    try:
        return Path(hub.hf_hub_download(where, name))
    except hub.errors.EntryNotFoundError:
        return None
    except Exception as error:
        raise PublishedError(f"the model 'hf:{where}' cannot be loaded: {typed_line(error)}") from None


def _side(stated: Mapping[str, Any]) -> int | None:
    """Side of the square images behind the processor's resizing and cropping."""
    size = stated.get("crop_size") if stated.get("do_center_crop") else None
    size = stated.get("size") if size is None else size
    if isinstance(size, Mapping):
        sides = {size.get("height"), size.get("width")} if "height" in size else {size.get("shortest_edge")}
        size = sides.pop() if len(sides) == 1 else None
    return size if isinstance(size, int) and size > 0 else None


def _normalisation(stated: Mapping[str, Any], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation on the [0, 1] scale of a processor's rescaling and normalisation."""
    scale = 255 * float(stated.get("rescale_factor", 1 / 255)) if stated.get("do_rescale", True) else 255.0
    offset = 1.0 if stated.get("rescale_offset") else 0.0
    is_normalised = stated.get("do_normalize", True) and stated.get("image_mean") is not None
    mean = stated["image_mean"] if is_normalised else [0.0] * channels
    std = stated["image_std"] if is_normalised else [1.0] * channels
    means = [mean] * channels if isinstance(mean, int | float) else list(mean)
    stds = [std] * channels if isinstance(std, int | float) else list(std)
    return (
        tuple(round((float(one) + offset) / scale, 9) for one in means),
        tuple(round(float(one) / scale, 9) for one in stds),
    )


def _timm() -> Any:
    return _library("timm", "timm")


def _transformers() -> Any:
    return _library("transformers", "hf")


def _library(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:  # a library whose own libraries do not fit raises other kinds than ImportError
        raise PublishedError(
            f"{name} cannot be imported ({typed_line(error)}): pip install 'robustly[{extra}]'"
        ) from None


def _tried(name: str, load: Callable[[], T]) -> T:
    """The result of a call of another library, whose errors of any kind become one sentence."""
    try:
        return load()
    except PublishedError:
        raise
    except Exception as error:
        raise PublishedError(f"the model {name!r} cannot be loaded: {typed_line(error)}") from None


@contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Without the progress bars and remarks of transformers."""
    logging = library.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
