"""RobustBench's `benchmark` and `clean_accuracy`."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustly.compat.autoattack import AutoAttack, Version
from robustly.compat.goals import verdict_logits
from robustly.compat.robustbench.cifar import check_count, images_for_tests, transformed
from robustly.compat.robustbench.loading import RobustBenchError, checked_dataset, checked_threat
from robustly.compat.robustbench.model_info import epsilon_text, info_file, percent, write_info
from robustly.models import as_classifier
from robustly.threats.exact_size import parse_epsilon

_EXAMPLES = 2


def benchmark(
    model: object,
    n_examples: int | None = 10_000,
    dataset: str = "cifar10",
    threat_model: str = "Linf",
    to_disk: bool = False,
    model_name: str | None = None,
    data_dir: str | Path = "./data",
    corruptions_data_dir: str | Path | None = None,
    device: str | torch.device | None = None,
    batch_size: int = 32,
    eps: float | str | None = None,
    log_path: str | Path | None = None,
    preprocessing: Callable[[Any], Tensor] | None = None,
    aa_state_path: str | Path | None = None,
    *,
    x: Float[Tensor, "n ..."] | None = None,
    y: Int64[Tensor, " n"] | None = None,
    version: Version = "standard",
    seed: int | None = None,
    verbose: bool = False,
) -> tuple[float, float]:
    """Clean and robust accuracy under AutoAttack.

    The arguments up to `aa_state_path` are RobustBench's, with its names, order and defaults.

    Args:
        model: any model that `robustly.evaluate` takes; images in [0, 1] to logits, with its normalisation inside.
        n_examples: number of test images, from the first; None is all.
        dataset: "cifar10" or "cifar100".
        threat_model: "Linf" or "L2".
        to_disk: True writes the accuracies to `model_info/{dataset}/{threat_model}/{model_name}.json`.
        model_name: name of the model in that file.
        data_dir: folder of the data, as for `load_cifar10`.
        corruptions_data_dir: not supported.
        device: device that the model is moved to; None does not move it.
        batch_size: images per batch; the verdict does not depend on it.
        eps: the radius, in units of the images: 8/255, "8/255", 0.5.
        log_path: text file to which the accuracies after each attack are appended; they are printed, too.
        preprocessing: from a PIL image to a tensor; None gives floats in [0, 1].
        aa_state_path: file of the progress; an evaluation that was stopped is resumed from it.
        x: images in [0, 1] instead of those in `data_dir`.
        y: their true labels.
        version: of AutoAttack.
        seed: of the random numbers; None is 0.
        verbose: True prints the accuracy after each attack.

    Returns:
        Clean and robust accuracy, as shares.

    Raises:
        RobustBenchError: no epsilon; another data set or threat model; only one of x and y; no name with to_disk.
        ValueError: an argument that `AutoAttack`, `load_cifar10` or `robustly.models.as_classifier` rejects.
        FileNotFoundError: there are no data.
    """
    if isinstance(n_examples, Tensor):
        raise RobustBenchError("give images in memory by name: benchmark(model, x=images, y=labels, eps=8 / 255)")
    data, threat = checked_dataset(dataset), checked_threat(threat_model)
    if threat == "corruptions" or corruptions_data_dir is not None:
        raise RobustBenchError(
            "common corruptions are not evaluated yet: threat_model is Linf or L2, corruptions_data_dir None"
        )
    if eps is None:
        raise RobustBenchError("eps must be given: 8/255 for Linf and 0.5 for L2 are usual on CIFAR")
    if isinstance(model, list | tuple) or isinstance(device, list | tuple):
        raise RobustBenchError("benchmark takes one model and one device: call it once for each")
    if batch_size < 1:
        raise RobustBenchError(f"batch_size must be at least 1, got {batch_size}")
    if to_disk and model_name is None:
        raise RobustBenchError("to_disk=True writes a file named after the model: give model_name")
    file = info_file(Path("model_info"), data, threat, model_name) if to_disk and model_name is not None else None
    check_count(n_examples)
    epsilon, spoken = float(parse_epsilon(eps)), verbose or log_path is not None
    images, labels = _examples(x, y, data, n_examples, data_dir, preprocessing)
    classifier = as_classifier(model)
    classifier = classifier if device is None else classifier.to(device)
    place = next((one.device for one in classifier.parameters()), torch.device("cpu"))
    classifier = as_classifier(classifier, images[:_EXAMPLES].to(place))
    _check_labels(classifier, images[:_EXAMPLES].to(place), labels)
    adversary = AutoAttack(
        classifier, threat, epsilon, seed, spoken, version=version, device=device, log_path=log_path
    )
    state, _ = adversary.evaluated(images, labels, batch_size, aa_state_path)
    if file is not None:
        write_info(
            file,
            {
                "dataset": data,
                "eps": epsilon_text(epsilon),
                "clean_acc": percent(state.clean_accuracy),
                "autoattack_acc": percent(state.robust_accuracy),
            },
        )
    return state.clean_accuracy, state.robust_accuracy


def clean_accuracy(
    model: object,
    x: Float[Tensor, "n ..."],
    y: Int64[Tensor, " n"],
    batch_size: int = 100,
    device: str | torch.device | None = None,
) -> float:
    """Share of images that a model classifies correctly, in evaluation mode.

    Args:
        model: any model that `robustly.evaluate` takes.
        x: images in [0, 1].
        y: true labels.
        batch_size: images per batch.
        device: device to which the images are moved; None is that of the images.

    Raises:
        RobustBenchError: images and labels of different lengths, or none.
        AdapterError: the model is not a classifier of such images.
    """
    images, labels = _in_memory(x, y)
    place = images.device if device is None else torch.device(device)
    classifier = as_classifier(model, images[:_EXAMPLES].to(place))
    correct = 0
    for start in range(0, len(images), batch_size):
        logits = verdict_logits(classifier, images[start : start + batch_size].to(place))
        correct += int((logits.argmax(1).cpu() == labels[start : start + batch_size].cpu()).sum())
    return correct / len(images)


def _examples(
    x: Tensor | None,
    y: Tensor | None,
    dataset: str,
    count: int | None,
    folder: str | Path,
    preprocessing: Callable[[Any], Tensor] | None,
) -> tuple[Tensor, Tensor]:
    if x is not None or y is not None:
        if x is None or y is None:
            raise RobustBenchError("images in memory need their labels: give both x and y")
        images, labels = _in_memory(x, y)
        return images[:count], labels[:count]
    if dataset == "imagenet":
        raise RobustBenchError("images of ImageNet are not read here: give them as x and y")
    pixels, labels, remark = images_for_tests(dataset, count, folder)
    if remark:
        warnings.warn(remark, stacklevel=3)
    return transformed(pixels, preprocessing), labels


def _in_memory(x: object, y: object) -> tuple[Tensor, Tensor]:
    images, labels = torch.as_tensor(x), torch.as_tensor(y)
    images = images / 255 if images.dtype == torch.uint8 else images
    if len(images) == 0 or len(images) != len(labels):
        raise RobustBenchError(f"x and y need one label for each image, got {len(images)} and {len(labels)}")
    if labels.is_floating_point() or labels.ndim != 1:
        raise RobustBenchError(f"labels are class numbers (N,), got {labels.dtype} of shape {tuple(labels.shape)}")
    lowest, highest = (float(value) for value in images.aminmax())
    if not (lowest >= 0 and highest <= 1):
        raise RobustBenchError(
            f"pixels lie in [{lowest:g}, {highest:g}], not in [0, 1]: divide by 255, or leave the normalisation to "
            "the model"
        )
    return images, labels.to(torch.int64)


def _check_labels(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    outputs = verdict_logits(model, images).shape[1]
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= outputs:
        wrong = lowest if lowest < 0 else highest
        raise RobustBenchError(f"there is a label {wrong}, but the model has {outputs} outputs")
