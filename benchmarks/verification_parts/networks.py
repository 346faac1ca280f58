"""Networks and images of the shared verification data."""

import json
import os
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from robustly.models.layers import Normalize


@dataclass(frozen=True)
class Pictured:
    """A classifier of images in [0, 1] and the images on which it is verified.

    Args:
        model: network with its normalisation, in evaluation mode.
        x: images `(N, C, H, W)`, float32.
        y: labels `(N,)`.
        epsilon: radius of the l-inf ball in pixel units.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    epsilon: float


def shared_folder() -> Path:
    """The folder `verify` of the shared data."""
    shared = os.environ.get("ROBUSTLY_SHARED_DATA")
    if not shared or not (Path(shared) / "verify").is_dir():
        sys.exit("set ROBUSTLY_SHARED_DATA to a folder with verify/: see its README for the sets")
    return Path(shared) / "verify"


@lru_cache
def eran(name: str) -> Pictured:
    """A network of the folder `eran`, built from the metadata of its file, and its images."""
    folder = shared_folder() / "eran"
    with safe_open(folder / f"{name}.safetensors", "pt") as file:
        meta, weights = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    arch = json.loads(meta["arch"])
    network = nn.Sequential(*(_layer(one) for one in (arch["layers"] if isinstance(arch, dict) else arch)))
    network.load_state_dict(weights)
    images = "cifar100" if name.startswith("cifar") else "mnist1000"
    pixels = torch.from_numpy(np.load(folder / f"{images}_X_u8.npy")).float() / 255
    x = pixels if pixels.dim() == 4 else pixels.view(-1, 1, 28, 28)
    y = torch.from_numpy(np.load(folder / f"{images}_y.npy")).long()
    mean, std = (json.loads(meta.get(key) or "[]") or [neutral] for key, neutral in (("mean", 0.0), ("std", 1.0)))
    flat = [] if isinstance(network[0], nn.Conv2d | nn.Flatten) else [nn.Flatten()]
    return Pictured(nn.Sequential(Normalize(mean, std), *flat, *network).eval(), x, y, _number(meta["eps_pixel"]))


def _number(text: str) -> float:
    """A number or a fraction, perhaps with a remark behind it."""
    top, _, bottom = text.split(maxsplit=1)[0].partition("/")
    return float(top) / float(bottom or 1)


def _layer(one: list) -> nn.Module:
    kind, *numbers = one
    layers = {"conv": nn.Conv2d, "linear": nn.Linear, "relu": nn.ReLU, "sigmoid": nn.Sigmoid, "flatten": nn.Flatten}
    return layers[kind](*numbers)
