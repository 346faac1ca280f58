"""Epochs of a network alone before the run (`model.pretrain`, `guide.pretrain`): their limits and names."""

from robustly.training.losses.cross_entropy import CleanLoss
from robustly.training.method import Method, MethodError


def check_pretrain(pretrain: int, frozen: bool, epochs: int | None = None, key: str = "") -> None:
    """Refuse a number of epochs in which a network beside the model cannot be trained before the run.

    Args:
        pretrain: the epochs.
        frozen: whether the network is not trained.
        epochs: epochs of the run; None if not known yet.
        key: configuration key of the network, for the message.

    Raises:
        MethodError: fewer than 0 epochs, more than the run has, or any for a frozen network.
    """
    name = f"{key}.pretrain" if key else "pretrain"
    if pretrain < 0:
        raise MethodError(f"{name} must be at least 0 epochs, got {pretrain}")
    if pretrain and frozen:
        raise MethodError(f"{name}: a frozen network is not trained by the run: leave it out")
    if epochs is not None and pretrain > epochs:
        raise MethodError(
            f"{name} is {pretrain} epochs, longer than the run itself: use at most training.epochs ({epochs})"
        )


def check_model_pretrain(pretrain: int, method: Method, head_epochs: int) -> None:
    """Refuse a number of epochs in which the model cannot be trained on clean images before the run.

    They may be more than those of the run, because clean epochs cost a small part of adversarial ones.

    Args:
        pretrain: the epochs.
        method: the five parts.
        head_epochs: epochs of the run in which the head alone is trained.

    Raises:
        MethodError: fewer than 0 epochs, any before clean training, or any before epochs of the head alone.
    """
    check_pretrain(pretrain, False, key="model")
    if pretrain and method.inner is None and isinstance(method.loss, CleanLoss):
        raise MethodError("model.pretrain: the run itself is clean training, use training.epochs for more of it")
    if pretrain and head_epochs:
        raise MethodError(
            "model.pretrain trains all of the model, training.head_epochs then its head alone: use one of them"
        )


def metrics_file(name: str) -> str:
    """Name of the table of a network's epochs before the run, such as `guide_pretraining.csv`."""
    return f"{name}_pretraining.csv"


def words_alone(name: str) -> str:
    """Words for a network in its epochs before the run, such as "guide alone"."""
    return "model on clean images" if name == "model" else f"{name} alone"
