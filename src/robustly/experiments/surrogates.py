"""Surrogates of transfer attacks: networks of other runs, or other weights of the evaluated network."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from robustly.data import ImageData
from robustly.evaluation.suites.composed import with_surrogates
from robustly.evaluation.suites.suite import Suite
from robustly.experiments.configuration import RunConfig
from robustly.experiments.run_folder import CONFIG, RunError, Trusts, build_network, load_trained, open_run
from robustly.models.layout import in_fastest_layout
from robustly.randomness import derive_seed


def load_surrogates(
    suite: Suite, config: RunConfig, data: ImageData, trusts: Trusts, device: torch.device
) -> Suite:
    """The suite with the surrogates of its transfer attacks.

    Args:
        suite: the suite; one without surrogates that are only named is returned as it is.
        config: settings of the evaluated network: a file of weights is loaded into a network like it.
        data: the images.
        trusts: whether a model named `package.module:factory` may be imported.
        device: device of the evaluated network.

    Raises:
        RunError: a surrogate that does not exist or does not fit the images; the message names the stage.
    """

    def load(stage: str, source: str) -> nn.Module:
        path = Path(source)
        try:
            if (path / CONFIG).is_file():
                model = load_trained(path, open_run(path), data, trusts)[0]
            elif path.is_file():
                own = replace(config.model, weights=source)
                model = build_network(own, data, derive_seed(config.seed, "surrogate"), trusts).eval()
            else:
                raise RunError("it is neither a run folder nor a file of weights")
        except (ValueError, OSError) as error:
            raise RunError(f"stages.{stage}.surrogate {source}: {error}") from None
        return in_fastest_layout(model.to(device), data.first(2).to(device))

    return with_surrogates(suite, load)
