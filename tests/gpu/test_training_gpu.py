"""Training on a CUDA device: memory that lacks, images on the disk; skipped without one."""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from robustly.data import Augmentation, Batch, ImageData, batches
from robustly.data.prefetching import prefetched
from robustly.runtime import Runtime, RuntimeConfig
from robustly.threats.lp import ThreatModel
from robustly.training import (
    AdversarialLoss,
    Job,
    Method,
    OptimizerConfig,
    PGDInner,
    ScheduleConfig,
    TrainingConfig,
    train,
)
from robustly.training.engine.checkpoint import load_state
from robustly.training.inner.pgd import training_pgd

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


class Wide(nn.Module):
    """A network whose activations fill about 17 MiB for an image of 32 x 32 pixels, in training."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 1024, 3, padding=1), nn.Conv2d(1024, 16, 1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.nn.functional.gelu(self.first(x)).square()
        logits: Tensor = self.head(self.second(hidden).mean((2, 3)))
        return logits


def images(count: int) -> ImageData:
    drawn = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=drawn)
    labels = torch.arange(count) % 4
    return ImageData(pixels, labels, torch.arange(count), tuple("abcd"), "random")


def job(accumulate: object, train_images: ImageData) -> Job:
    return Job(
        method=Method(inner=PGDInner(steps=1), loss=AdversarialLoss()),
        model=Wide(),
        train=train_images,
        validation=images(8),
        threats=(ThreatModel("linf", 0.03),),
        optimizer=OptimizerConfig(name="sgd", learning_rate=0.01),
        schedule=ScheduleConfig(),
        training=TrainingConfig(
            epochs=1,
            batch_size=256,
            validation_steps=1,
            validation_batch_size=8,
            accumulate=accumulate,  # type: ignore[arg-type]
        ),
        augmentation=Augmentation(flip=True),
    )


@pytest.mark.parametrize("accumulate", [1, "auto"])
def test_a_batch_that_does_not_fit_passes_in_parts(accumulate: object, tmp_path: Path) -> None:
    torch.cuda.empty_cache()
    share = 2 * 2**30 / torch.cuda.get_device_properties(0).total_memory  # 2 GiB; the batch needs more
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        train(job(accumulate, images(512)), Runtime(RuntimeConfig(device="cuda")), tmp_path, config_digest="")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    parts = load_state(tmp_path / "checkpoints/last.pt", "").parts
    assert parts is not None
    assert parts > 1
    other = tmp_path / "set"
    other.mkdir()
    train(job(parts, images(512)), Runtime(RuntimeConfig(device="cuda")), other, config_digest="")
    first, second = load_file(tmp_path / "model.safetensors"), load_file(other / "model.safetensors")
    assert all(torch.allclose(value, second[name], atol=1e-5) for name, value in first.items())


def test_batches_from_the_disk_are_those_of_memory() -> None:
    inside = images(200).to("cuda")
    outside = replace(images(200), on_disk=True).to("cuda")
    assert outside.images.device.type == "cpu"
    chosen = Augmentation(pad_crop=4, flip=True)
    wanted = batches(inside, 64, seed=1, epoch=0, augmentation=chosen)
    found = prefetched(
        batches(outside, 64, seed=1, epoch=0, augmentation=chosen), torch.device("cuda", 0), Batch.tensors
    )
    for one, other in zip(wanted, found, strict=True):
        assert all(torch.equal(*pair) for pair in zip(one.tensors(), other.tensors(), strict=True))


def test_the_attack_of_training_waits_for_nothing() -> None:
    data, model = images(16).to("cuda"), Wide().to("cuda").eval()
    batch = next(batches(data, 16, seed=1, epoch=0))
    attack, threat = training_pgd(3), ThreatModel("linf", 0.03)
    attack(model, batch.x, batch.y, threat=threat, generator=batch.generator)  # the first pass of a model may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = attack(model, batch.x, batch.y, threat=threat, generator=batch.generator)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.x_adv.shape == batch.x.shape


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_captured_passes_train_the_same(precision: str, tmp_path: Path) -> None:
    found = {}
    for graphs in (False, True):
        folder = tmp_path / str(graphs)
        folder.mkdir()
        small = replace(job(1, images(80)), training=TrainingConfig(epochs=2, batch_size=32, validation_steps=1))
        runtime = Runtime(RuntimeConfig(device="cuda", graphs=graphs, precision=precision))  # type: ignore[arg-type]
        with warnings.catch_warnings(action="error", category=UserWarning):
            train(small, runtime, folder, config_digest="")
        found[graphs] = load_file(folder / "model.safetensors")
    assert all(torch.allclose(value, found[True][name], atol=1e-3) for name, value in found[False].items())
