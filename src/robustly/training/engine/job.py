"""The ingredients of a training run: method, networks, data, threats and settings."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from robustly.data import Augmentation, Extra, ImageData
from robustly.models.adapter import unwrapped
from robustly.threats import MadeFromData, Threat
from robustly.threats.contract import has_no_gradient
from robustly.training.cost import step_cost
from robustly.training.engine.epochs_alone import check_model_pretrain, check_pretrain
from robustly.training.engine.optimisation import OptimizerConfig, ScheduleConfig
from robustly.training.method import Method, MethodError
from robustly.training.parts import CONVENTIONAL_NETWORKS


@dataclass(frozen=True)
class TrainingConfig:
    """Length, batches and validation of a run.

    Args:
        epochs: passes over the training images, at least 1.
        batch_size: images per step, over all processes.
        validation_batch_size: images of a validation pass.
        validation_steps: steps of the validation attack (PGD, steps of epsilon / 4), at least 1.
        select_by: accuracy on the validation images that selects the best epoch: "robust" or "clean"; the other one
            breaks ties. An epoch that predicts one class for all of them is never selected over one that does not.
        patience: epochs without improvement after which training stops; None for no limit.
        epsilon_ramp: epochs during which the training attack's epsilon grows linearly from 0.
        epsilon_ramp_by: unit of growth: "step", or "epoch" (constant within an epoch, full size in the last epoch
            of the ramp).
        stop_after_drop: fall of robust validation accuracy from one epoch to the next after which training stops
            (catastrophic overfitting; 0.2 in Wong et al., ICLR 2020); None for no limit.
        channels_last: whether images have the channels-last layout, which is faster for convolutions. Networks that
            do not work in it are trained in the contiguous one.
        head_epochs: epochs at the start in which the head alone is trained, at most `epochs`. The rest of the model
            is in evaluation mode then: neither its weights nor its batch-norm statistics change.
        head: name of the layer that is the head, for `head_epochs` and `optimizer.layer_decay`; None for the last
            linear layer.
        measure_train: training images, from the first and without augmentation, whose clean accuracy in evaluation
            mode is measured after every epoch, at least 0; all if there are fewer.
        accumulate: parts of a batch that pass through the networks one after the other, at least 1; their gradients
            are summed for one optimiser step, so that a large batch needs less memory. Batch normalisation and
            dropout see each part alone. "auto" finds the fewest parts whose memory fits, before the first step. A
            step that runs out of memory is repeated in twice as many parts, and later ones have as many.
        checkpoint_every: steps after which the state is saved within an epoch too, at least 1, so that a killed run
            continues from there with the same result; None saves after every epoch only.
        recompute_activations: whether passes keep the inputs of each network's blocks only, and compute the other
            activations again for the backward pass (activation checkpointing): less memory, a forward pass more for
            each backward pass, the same weights. See `robustly.training.engine.recomputation`.
        sync_batch_norm: whether batch normalisation in training mode uses the statistics of the batch of all
            processes, so that several processes train what one process trains; with one process it has no effect.

    Raises:
        ValueError: a setting out of range, or settings that contradict each other.
    """

    epochs: int = 10
    batch_size: int = 128
    validation_batch_size: int = 500
    validation_steps: int = 10
    select_by: Literal["robust", "clean"] = "robust"
    patience: int | None = None
    epsilon_ramp: float = 0.0
    epsilon_ramp_by: Literal["step", "epoch"] = "step"
    stop_after_drop: float | None = None
    channels_last: bool = True
    head_epochs: int = 0
    head: str | None = None
    measure_train: int = 0
    accumulate: int | Literal["auto"] = 1
    checkpoint_every: int | None = None
    recompute_activations: bool = False
    sync_batch_norm: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "validation_batch_size", "validation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be at least 1, got {self.patience}")
        if self.stop_after_drop is not None and not 0 < self.stop_after_drop < 1:
            raise ValueError(f"stop_after_drop must lie between 0 and 1, got {self.stop_after_drop}")
        if self.stop_after_drop is not None and self.select_by != "robust":
            raise ValueError(
                "stop_after_drop needs select_by 'robust': clean accuracy may select the epoch of the fall"
            )
        if not 0 <= self.head_epochs <= self.epochs:
            raise ValueError(f"head_epochs must lie between 0 and epochs ({self.epochs}), got {self.head_epochs}")
        if self.measure_train < 0:
            raise ValueError(f"measure_train must be at least 0, got {self.measure_train}")
        if self.accumulate != "auto" and not 1 <= self.accumulate <= self.batch_size:
            raise ValueError(
                f"accumulate must lie between 1 and batch_size ({self.batch_size}), got {self.accumulate}"
            )
        if self.checkpoint_every is not None and self.checkpoint_every < 1:
            raise ValueError(f"checkpoint_every must be at least 1 step, got {self.checkpoint_every}")
        if not self.epsilon_ramp >= 0:
            raise ValueError(f"epsilon_ramp must be at least 0, got {self.epsilon_ramp}")
        if self.epsilon_ramp == 0 and self.epsilon_ramp_by != "step":
            raise ValueError("epsilon_ramp_by has no effect without a ramp: set epsilon_ramp to its epochs")

    @property
    def parts(self) -> int:
        """Parts of a batch at the start: 1 for "auto"."""
        return 1 if self.accumulate == "auto" else self.accumulate


@dataclass(frozen=True)
class AuxiliaryNetwork:
    """A network beside the model.

    Args:
        module: the network.
        frozen: whether it is not trained (a teacher).
        optimizer: settings of a separate optimiser; None trains it with the model's.
        pretrain: epochs in which the run trains it alone before its own first epoch, at least 0; see
            `robustly.training.engine.pretraining`.
        has_weights: whether it was trained beforehand. The accuracy of such a guide is checked before the run.

    Raises:
        MethodError: a frozen network with an optimiser or with epochs before the run; fewer than 0 epochs.
    """

    module: nn.Module
    frozen: bool = False
    optimizer: OptimizerConfig | None = None
    pretrain: int = 0
    has_weights: bool = False

    def __post_init__(self) -> None:
        if self.frozen and self.optimizer is not None:
            raise MethodError("a frozen network has no optimizer: leave it out, or set frozen to false")
        check_pretrain(self.pretrain, self.frozen)


@dataclass(frozen=True)
class Job:
    """The ingredients of a training run.

    Args:
        method: the five parts.
        model: the network to train.
        train: training images.
        validation: held-out images for model selection.
        threats: threat models, at least one; validation uses the first.
        optimizer: optimiser of the model, and of all networks without their own.
        schedule: learning-rate schedule.
        training: length, batches and validation.
        augmentation: random changes of the training images.
        seed: seed of every random number of the run.
        networks: the networks beside the model that the method uses, by name.
        extra: more training images, mixed into every batch.
        about_weights: texts for the metadata of the files of weights, such as the settings of the model.
        pretrain: epochs in which the run trains the model alone on clean images before its own first epoch, at
            least 0; they may be more than those of the run. See `robustly.training.engine.pretraining`.

    Raises:
        MethodError: networks are missing or unused, the run is too short for a part or for the epochs before it,
            a part is not defined for the threats or the network, or epochs before the run have no effect.
        ThreatError: a threat that is not defined for such images, such as a mask of another shape.
        ValueError: there is no threat model, images lie outside the box of one, or the share of extra images leaves
            no image of one kind.
    """

    method: Method
    model: nn.Module
    train: ImageData
    validation: ImageData
    threats: tuple[Threat, ...]
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    training: TrainingConfig
    augmentation: Augmentation
    seed: int = 0
    networks: Mapping[str, AuxiliaryNetwork] = field(default_factory=dict)
    extra: Extra | None = None
    about_weights: Mapping[str, str] = field(default_factory=dict)
    pretrain: int = 0

    def __post_init__(self) -> None:
        if not self.threats:
            raise ValueError("a training run needs at least one threat model")
        for threat in self.threats:
            if has_no_gradient(threat):
                raise ValueError(
                    f"training and its validation move along gradients, which {threat} does not have: train "
                    "under another threat, and evaluate under this one"
                )
            threat.around(self.train.images[:0].float())
            _check_box(threat, self.train)
            if isinstance(threat, MadeFromData):
                threat.check_data(self.train.digest)
        if self.training.head and not self.training.head_epochs and self.optimizer.layer_decay == 1:
            raise ValueError("training.head has no effect without training.head_epochs or optimizer.layer_decay")
        check_networks(self.method, {name: network.frozen for name, network in self.networks.items()})
        if self.training.accumulate != 1:
            self.method.check_accumulation()
        self.method.check_epochs(self.training.epochs)
        self.method.check_threats(self.threats)
        self.method.check_classes(self.train.num_classes)
        bare = unwrapped(self.model)
        self.method.check_model(bare if isinstance(bare, nn.Module) else self.model, self.threats)
        for name, network in self.networks.items():
            check_pretrain(network.pretrain, network.frozen, self.training.epochs, network_key(name))
        check_model_pretrain(self.pretrain, self.method, self.training.head_epochs)
        if self.method.weights is not None:  # refuses weights for a term that the loss does not have
            frozen = [name for name, network in self.networks.items() if network.frozen]
            step_cost(self.method, self.training.epochs, frozen, self.threats)
        ramp, epochs = self.training.epsilon_ramp, self.training.epochs
        if ramp > epochs:
            warnings.warn(
                f"epsilon grows over {ramp:g} epochs and the run has {epochs}: training never "
                "reaches all of it, set training.epsilon_ramp",
                stacklevel=2,
            )
        if self.extra is not None:
            self.extra.share_of(self.training.batch_size)

    def check_processes(self, count: int, sharded: bool = False) -> None:
        """Refuse what does not work with several processes.

        Args:
            count: number of processes.
            sharded: whether each of them holds a share of the weights (FSDP).

        Raises:
            MethodError: the method is Free-AT, whose perturbations belong to positions in the batch of one process;
                `head_epochs` is not 0, because data parallelism fixes at its start which weights are trained; a
                part does not work with weights in shards; with `sync_batch_norm`, an attack in training mode that
                takes different numbers of passes in different processes; or "auto" parts with one of these.
        """
        waits = "training.sync_batch_norm" if self.training.sync_batch_norm else ""
        waits = "runtime.strategy fsdp" if sharded else waits
        if count > 1 and waits and self.training.accumulate == "auto":
            raise MethodError(
                "training.accumulate auto tries steps that may fail in one process, and with "
                f"{waits} the others would wait for it: set a number of parts"
            )
        if sharded:
            self.method.check_sharding()
        if count > 1 and self.training.sync_batch_norm:
            self.method.check_synchronised_norms()
        if self.method.shares_backward and count > 1:
            raise MethodError("Free-AT keeps a perturbation for each position in the batch: use one process")
        if self.training.head_epochs and count > 1:
            raise MethodError("training.head_epochs changes which weights have gradients: use one process")

    @property
    def threat(self) -> Threat:
        """The first threat model."""
        return self.threats[0]

    @property
    def epochs_alone(self) -> dict[str, int]:
        """Epochs before the run by the network that they train, in their order; the model is "model"."""
        found = {"model": self.pretrain, **{name: network.pretrain for name, network in self.networks.items()}}
        return {name: epochs for name, epochs in found.items() if epochs}

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch."""
        return -(-len(self.train) // self.training.batch_size)

    def images_of_step(self, index: int) -> int:
        """Images of a step of an epoch, over all processes."""
        batch_size = self.training.batch_size
        if self.extra is not None:
            return batch_size
        return min(batch_size, len(self.train) - index * batch_size)

    def threats_at(self, time: float) -> tuple[Threat, ...]:
        """The threat models of the training attack at a time in epochs, during and after the epsilon ramp."""
        ramp = self.training.epsilon_ramp
        if self.training.epsilon_ramp_by == "epoch":
            time = math.floor(time) + 1
        return self.threats if time >= ramp else tuple(threat.scaled(time / ramp) for threat in self.threats)


def _check_box(threat: Threat, images: ImageData) -> None:
    """Refuse images outside the box of a threat; steps on a GPU do not check this, as it would wait for the device.

    Raises:
        ValueError: pixels below or above the box.
    """
    low, high = threat.box
    if low <= 0 and high >= 1:  # as all images are within [0, 1]
        return
    least, most = (int(value) / 255 for value in images.images.aminmax())
    if least < low or most > high:
        raise ValueError(f"images must lie in [{low:g}, {high:g}], the box of {threat}, got [{least:g}, {most:g}]")


def check_networks(method: Method, frozen: Mapping[str, bool]) -> None:
    """Refuse missing and unused networks beside the model.

    Args:
        method: the five parts.
        frozen: whether a network is frozen, by its name.

    Raises:
        MethodError: a network is missing, unused, or of another kind than its conventional name.
    """
    for name in method.networks:
        if name not in frozen:
            raise MethodError(
                f"the method uses the network {name!r}, the run has none: set the key {network_key(name)!r}"
            )
    for name, is_frozen in frozen.items():
        if name not in method.networks:
            raise MethodError(
                f"the run has the network {name!r} that the method does not use: set the key {network_key(name)!r} "
                "to null"
            )
        check_kind(name, is_frozen)


def check_kind(name: str, frozen: bool) -> None:
    """Refuse a name that networks beside the model cannot have.

    Raises:
        MethodError: a name that is not an identifier, "model", or a conventional name of the other kind.
    """
    if not name.isidentifier() or name == "model":
        raise MethodError(
            f"a network beside the model needs a name of letters, digits and _ other than 'model', got {name!r}"
        )
    kind = "frozen" if frozen else "trained"
    if CONVENTIONAL_NETWORKS.get(name, kind) != kind:
        raise MethodError(f"{name!r} is the name of a {CONVENTIONAL_NETWORKS[name]} network, this one is {kind}")


def network_key(name: str) -> str:
    """Configuration key of a network beside the model."""
    return name if name in CONVENTIONAL_NETWORKS else f"networks.{name}"
