"""Export to ONNX, and the comparison of the file with the model."""

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustly.experiments.portable import PortableModel
from robustly.files import whole_file

TIE = 1e-3
"""Difference of logits below which another order of sums may change a prediction."""
_EXPORTER = "torch.onnx"


class ExportError(ValueError):
    """A model that cannot be exported, or a missing package."""


@dataclass(frozen=True)
class Comparison:
    """Outputs of an exported file beside those of the model.

    Args:
        count: number of compared images.
        same: number of equal predictions.
        ties: number of other predictions where the model's two largest logits differ by less than `TIE`.
        difference: largest difference of a logit.
    """

    count: int
    same: int
    ties: int
    difference: float


def check_onnx_packages() -> None:
    """Refuse an export without the packages of the exporter.

    Raises:
        ExportError: naming the command that installs them.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ExportError(f"--onnx needs the package {' and '.join(missing)}: pip install 'robustly[onnx]'")


def write_onnx(model: PortableModel, file: Path) -> None:
    """Write a model as ONNX, in one file; the number of images may vary.

    Input `images` `(batch, C, H, W)` float32 in [0, 1], output `logits` `(batch, K)`.

    Raises:
        ExportError: a package is missing, or the exporter cannot convert the network.
        OSError: the file cannot be written.
    """
    check_onnx_packages()
    example = torch.full((2, *model.description.shape), 0.5)
    with whole_file(file) as temporary, _quiet_exporter():
        try:
            _export(model.model, example, temporary)
        except OSError:
            raise
        except Exception as error:  # the exporter raises many kinds of errors
            reason = " ".join(str(error).split())[:200]
            raise ExportError(f"PyTorch cannot export this network to ONNX ({reason})") from error


def compare_onnx(model: PortableModel, file: Path, images: Tensor) -> Comparison | None:
    """Run an ONNX file on images `(N, C, H, W)` and compare its outputs; None without the package `onnxruntime`."""
    if find_spec("onnxruntime") is None:
        return None
    onnxruntime: Any = importlib.import_module("onnxruntime")
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    theirs = torch.cat(
        [
            torch.from_numpy(session.run(["logits"], {"images": part.numpy()})[0])
            for part in torch.split(images, 250)
        ]
    )
    own = model.logits(images)
    same = own.argmax(1) == theirs.argmax(1)
    largest = own.topk(2, dim=1).values
    ties = ~same & (largest[:, 0] - largest[:, 1] < TIE)
    return Comparison(len(images), int(same.sum()), int(ties.sum()), float((own - theirs).abs().max()))


def _export(model: nn.Module, example: Tensor, file: Path) -> None:
    torch.onnx.export(
        model,
        (example,),
        str(file),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        dynamo=True,
        verbose=False,
    )


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence the exporter's remarks on packages that are not needed."""
    logger = logging.getLogger(_EXPORTER)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
