"""The threats that a network was trained on, as far as its run states them."""

from pathlib import Path

from robustly.experiments.configuration import RunConfig
from robustly.experiments.keys import UNTRAINED
from robustly.experiments.run_folder import CONFIG, open_run
from robustly.threats import Threat
from robustly.training.inner import SEVERAL

MOST_RUNS = 100
"""Most runs, each started from the weights of another, that are followed."""


def trained_on(config: RunConfig) -> tuple[Threat, ...] | None:
    """Threats of a run's training, and of the trainings before it whose weights it started from.

    Args:
        config: settings of the run, or of a folder for a model that was trained elsewhere.

    Returns:
        The threats, those of the last training first; none for training without an attack. None for weights whose
        training is not known.
    """
    found: dict[Threat, None] = {}
    known, here = False, config
    for _ in range(MOST_RUNS):
        if here.recipe != UNTRAINED:
            known = True
            found |= dict.fromkeys(_own(here))
        earlier = _run_of(here.model.weights)
        if earlier is None:
            break
        here = open_run(earlier)
    return tuple(found) if known else None


def _own(config: RunConfig) -> tuple[Threat, ...]:
    """Threats of the inner maximisation of a run."""
    inner = config.method.inner
    if inner is None:
        return ()
    return config.threats if type(inner) in SEVERAL else config.threats[:1]


def _run_of(weights: str | None) -> Path | None:
    """The run whose folder holds a file of weights; None without one."""
    if weights is None:
        return None
    folders = Path(weights).expanduser().absolute().parents[:2]
    return next((folder for folder in folders if (folder / CONFIG).is_file()), None)
