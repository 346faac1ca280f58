"""A model's entry for RobustBench (github.com/RobustBench/robustbench), from images in memory."""

from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustly.compat.autoattack import AutoAttack, Version

THREATS = ("Linf", "L2")


def benchmark(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    y: Int64[Tensor, " n"],
    *,
    n_examples: int = 10_000,
    threat_model: str = "Linf",
    eps: float | None = None,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    version: Version = "standard",
    seed: int | None = None,
    verbose: bool = False,
    aa_state_path: str | Path | None = None,
) -> tuple[float, float]:
    """Clean and robust accuracy under AutoAttack.

    As RobustBench's function of that name, except that the data are arguments instead of being loaded.

    Args:
        model: as RobustBench loads it: from images in [0, 1] to logits, with its normalisation inside.
        x: images in [0, 1].
        y: true labels.
        n_examples: number of examples, from the first.
        threat_model: "Linf" or "L2".
        eps: the radius, in units of the images: 8/255, 0.5.
        batch_size: images per batch; the verdict does not depend on it.
        device: device that the model is moved to; None does not move it.
        version: of AutoAttack.
        seed: of the random numbers; None is 0.
        verbose: True prints the accuracy after each attack.
        aa_state_path: file of the progress; a finished file is an entry's evidence.

    Returns:
        Clean and robust accuracy, as shares.

    Raises:
        ValueError: no epsilon; another threat model; an argument that `AutoAttack` rejects.
    """
    if threat_model not in THREATS:
        raise ValueError(f"threat_model must be one of {', '.join(THREATS)}, got {threat_model!r}")
    if eps is None:
        raise ValueError("eps must be given: 8/255 for Linf and 0.5 for L2 are usual on CIFAR-10")
    if device is not None:
        model = model.to(device)
    x, y = x[:n_examples], y[:n_examples]
    adversary = AutoAttack(model, threat_model, eps, seed, verbose, version=version, device=device)
    state, _ = adversary.evaluated(x, y, batch_size, aa_state_path)
    return state.clean_accuracy, state.robust_accuracy
