"""The weights of a run after its last finished epoch, from `checkpoints/last.pt`."""

from pathlib import Path

from torch import Tensor, nn

from robustly.experiments.configuration import RunConfig
from robustly.models.adapter import unwrapped
from robustly.output_text import first_line
from robustly.training.engine.checkpoint import CheckpointError, load_state
from robustly.training.engine.loop import LAST
from robustly.training.engine.validation import averaged_state


def last_weights(folder: Path, config: RunConfig) -> dict[str, Tensor]:
    """State dict that a run would release after its last finished epoch: averaged if its method averages weights.

    Args:
        folder: the run.
        config: its settings, as `config.yaml` holds them.

    Raises:
        CheckpointError: there is no state, it has no finished epoch, or it is damaged or of another run.
    """
    file = folder / LAST
    if not file.is_file():
        raise CheckpointError(
            f"{folder} has no {LAST}, the state after the last epoch of a run that was trained here: leave "
            "--checkpoint out"
        )
    state = load_state(file, config.digest())
    if not state.epoch:
        raise CheckpointError(f"{folder} has no finished epoch yet: continue it with --resume {folder}")
    average = averaged_state(config.method, state.memory)
    return state.networks["model"] if average is None else average


def put_weights(model: nn.Module, weights: dict[str, Tensor], file: Path) -> None:
    """Copy a state dict of training into a model.

    Args:
        model: the model.
        weights: names and values of the network inside wrappers, which training saves.
        file: its file, for the message.

    Raises:
        CheckpointError: names or shapes are others.
    """
    bare = unwrapped(model)
    try:
        (bare if isinstance(bare, nn.Module) else model).load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{file} does not fit the model ({first_line(error)})") from None
