"""`robustly export`."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from robustly.cli.arguments import Trust
from robustly.cli.targets import check_new_file
from robustly.cli.terminal import PlainConsole
from robustly.evidence import EvidenceError, Summary
from robustly.evidence.storage import read_images
from robustly.experiments.export import write_hugging_face, write_safetensors
from robustly.experiments.onnx_export import check_onnx_packages, compare_onnx, write_onnx
from robustly.experiments.portable import HF_CONFIG, PortableModel, first_summary, open_portable
from robustly.experiments.run_folder import EVALUATION, RunError

COMPARED = 500
"""Most images on which an ONNX file is compared with its model."""


def run_export(path: Path, targets: Mapping[str, Path], overwrite: bool, trust_code: bool) -> int:
    """Write the model of a run in other formats; 1 if the ONNX file predicts otherwise than the model, else 0.

    Args:
        path: a run, or an exported file or folder.
        targets: files and folders to write by format: "onnx", "hf", "safetensors".
        overwrite: whether files that exist may be replaced.
        trust_code: whether models that only a file names may be imported.

    Raises:
        ValueError: no target, a target that exists or has another ending, no model, or a missing package.
        OSError: a file cannot be written.
    """
    if not targets:
        raise RunError("name what to write: --onnx FILE, --hf FOLDER, --safetensors FILE or --robustbench FILE")
    for kind, target in targets.items():
        _check_target(kind, target, overwrite)
    if "onnx" in targets:
        check_onnx_packages()
    console = PlainConsole()
    model = open_portable(path, Trust(everything=trust_code).allows)
    summary = first_summary(path)
    if summary is not None and summary.model.weights_sha256 != model.description.weights_sha256:
        console.print("! the evaluation of this run is of other weights and is left out", highlight=False)
        summary = None
    code = 0
    for kind, target in targets.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        if kind == "safetensors":
            write_safetensors(model, target)
        elif kind == "hf":
            write_hugging_face(model, target, path.resolve().stem, summary)
        else:
            code = _export_onnx(console, model, target, path, summary)
        console.print(f"{kind}: {target}", soft_wrap=True, markup=False, highlight=False)
    return code


def _check_target(kind: str, target: Path, overwrite: bool) -> None:
    if kind == "hf":  # a folder
        is_ours = (target / HF_CONFIG).is_file()
        if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not (overwrite and is_ours))):
            hint = ": --overwrite replaces it" if is_ours else ", and is not an exported model: name a new folder"
            raise RunError(f"{target} exists already{hint}")
        return
    check_new_file(kind, target, f".{kind}", overwrite)


def _export_onnx(
    console: PlainConsole, model: PortableModel, target: Path, run: Path, summary: Summary | None
) -> int:
    """Write the ONNX file and print the comparison with the model."""
    write_onnx(model, target)
    images, words = _images(model, run, summary)
    found = compare_onnx(model, target, images)
    if found is None:
        console.print("not compared with the model: pip install onnxruntime", highlight=False)
        return 0
    ties = f" ({found.ties} of the others are ties of two classes)" if found.ties else ""
    console.print(
        f"{found.same} of {found.count} {words} have the same prediction, logits differ by at most "
        f"{found.difference:.2g}{ties}",
        highlight=False,
        soft_wrap=True,
    )
    return 0 if found.same + found.ties == found.count else 1


def _images(model: PortableModel, run: Path, summary: Summary | None) -> tuple[Tensor, str]:
    """The adversarial images of the run's evaluation, or random ones, and words for them."""
    shape = model.description.shape
    if summary is not None:
        try:
            stored = read_images(run / EVALUATION)
        except EvidenceError:
            stored = None
        if stored is not None:
            parts = [torch.from_numpy(one.images) for one in stored.attacks.values() if len(one)]
            fitting = [part for part in parts if tuple(part.shape[1:]) == shape]
            if fitting:
                return torch.cat(fitting)[:COMPARED].float(), "adversarial images"
    generator = torch.Generator().manual_seed(0)
    return torch.rand(64, *shape, generator=generator), "random images"
