"""Values that the host reads in a training step: one, the loss, at its end.

Tensors on the device "meta" have no values: reading one raises an error (see tests/attacks/test_waiting.py).
"""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn
from training_tools import make_job, make_step, small_digits

from host_reads import Reads
from robustly.data import Augmentation
from robustly.runtime import Runtime, RuntimeConfig
from robustly.threats.lp import ThreatModel
from robustly.training import (
    AdversarialLoss,
    CleanLoss,
    DynatLoss,
    ExponentialAverage,
    GuideLabels,
    MartLoss,
    Method,
    Moment,
    NoisyFGSMInner,
    OptimizerConfig,
    PGDInner,
    WeightPerturbation,
)
from robustly.training.engine.metrics import Totals
from robustly.training.engine.stepping import Stepper
from robustly.training.losses.consistency import TradesLoss
from robustly.training.method import outer_loss

AWP = WeightPerturbation(gamma=0.01)
METHODS: dict[str, Method] = {
    "clean": Method(loss=CleanLoss()),
    "pgd": Method(inner=PGDInner(steps=3), loss=AdversarialLoss(), parameters=(AWP, ExponentialAverage())),
    "train mode": Method(inner=PGDInner(steps=2, mode="train"), loss=AdversarialLoss()),
    "trades": Method(
        inner=PGDInner(objective="kl", steps=2, start="gaussian"), loss=TradesLoss(), parameters=(AWP,)
    ),
    "mart": Method(inner=PGDInner(steps=2), loss=MartLoss()),
    "n-fgsm": Method(inner=NoisyFGSMInner(), loss=AdversarialLoss()),
    "dynat": Method(labels=GuideLabels(), inner=PGDInner(objective="kl", steps=2), loss=DynatLoss()),
}


def net(device: str) -> nn.Module:
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1), nn.Flatten(), nn.Linear(144, 5)]
    return nn.Sequential(*layers).to(device).train()


@pytest.mark.parametrize("name", METHODS)
def test_the_passes_of_a_step_read_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the batch to the optimiser's step and the averages after it."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    method, model = METHODS[name], net("meta")
    x, y = torch.rand(6, 3, 8, 8, device="meta"), torch.zeros(6, dtype=torch.int64, device="meta")
    step = make_step(
        x,
        y,
        model,
        threat=ThreatModel("linf", 0.1),
        inner=method.inner,
        label_source=method.labels,
        moment=Moment(5, 1, 4, 20),
        own=method.own_quantities,
        slot_of=method.slot_of,
        guide=net("meta") if "guide" in method.networks else None,
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        loss, terms = outer_loss(method, step)
        loss.backward()
        method.after_backward(step)
        optimizer.step()
        method.after_step(step)
        totals = Totals(x.device)
        totals.add_step(step, loss.detach(), terms)
        step = make_step(  # the same networks and memory, a new batch
            x.clone(),
            y,
            model,
            inner=method.inner,
            label_source=method.labels,
            moment=Moment(5, 2, 4, 20),
            own=method.own_quantities,
            slot_of=method.slot_of,
            guide=net("meta") if "guide" in method.networks else None,
            memory=step._memory,
        )


@pytest.mark.parametrize("parts", [1, 3])
def test_a_whole_step_of_the_loop_reads_one_value(parts: int, tmp_path: Path) -> None:
    """Batch, augmentation, passes and optimiser; the loss alone is read, once, whatever the parts."""
    splits = small_digits(100)
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
    job = make_job(
        splits,
        Method(loss=CleanLoss(), parameters=(ExponentialAverage(),)),
        model,
        training={"accumulate": parts},
        augmentation=Augmentation(pad_crop=2, flip=True),
        optimizer=OptimizerConfig(clip_norm=1.0),
    )
    runtime = Runtime(RuntimeConfig(device="cpu"))
    stepper = Stepper(job, runtime)
    with stepper.prepared():
        stepper.begin_epoch(0)
        batches, totals = stepper.batches(0), Totals(runtime.device)
        stepper.step(next(batches), Moment(0, 0, 4, 2), 0, totals)
        with Reads() as counted:
            batch = next(batches)
            stepper.step(batch, Moment(0, 1, 4, 2), 0, totals)
    assert counted.found == ["aten::_local_scalar_dense"]


def test_images_outside_the_box_are_refused_before_the_first_step() -> None:
    splits = small_digits(20)
    with pytest.raises(ValueError, match=r"images must lie in \[0, 0\.5\], the box of .*, got \[0, 1\]"):
        make_job(splits, Method(), threat=ThreatModel("linf", 0.1, box=(0.0, 0.5)))
    make_job(splits, Method(), threat=ThreatModel("linf", 0.1, box=(-1.0, 1.0)))
