"""Settings that shorten a recipe: fewer epochs and attack steps, with all else at the same share of the run."""

from collections.abc import Mapping
from typing import Any

from robustly.experiments.keys import NETWORKS, Settings

_BEGINNINGS = ("begin", "burn_in", "warm_up", "start", "boundaries")
"""Settings of parts that are epochs at which something begins."""


def shortened(recipe: Settings, epochs: int, steps: int | None = None) -> dict[str, str]:
    """Settings that shorten a run, as texts by dotted key.

    An epoch at which a part begins something stands at the same share of the run, rounded: after one epoch at the
    earliest, and before the last. Weight perturbations begin after one epoch at the earliest too: from the first
    step on, AT-AWP's gamma of 0.01 keeps a short run at chance. The schedule stays as it is.

    Args:
        recipe: settings of the recipe.
        epochs: epochs of the shortened run, at least 1.
        steps: most steps of the training attack, then of epsilon / 2 or more; None for those of the recipe.
    """
    method, training = _mapping(recipe.get("method")), _mapping(recipe.get("training"))
    share = epochs / training.get("epochs", epochs)
    found = {"training.epochs": str(epochs)}
    if training.get("epsilon_ramp"):
        found["training.epsilon_ramp"] = f"{share * training['epsilon_ramp']:g}"
    inner, chain = _mapping(method.get("inner")), _mapping(method.get("parameters"))
    if steps is not None and inner.get("steps", 1) > steps:
        found["method.inner.steps"] = str(steps)
        if "step_size" in inner:
            found["method.inner.step_size"] = "null"
        found["method.inner.relative_step_size"] = f"{2.5 / steps:g}"
        if any(tau > steps for tau in inner.get("taus", ())):  # FAT: steps after the first misclassification
            found["method.inner.taus"] = str([min(tau, steps) for tau in inner["taus"]])
    slots = {
        "labels": method.get("labels"),
        "inner": inner,
        "loss": method.get("loss"),
        "weights": method.get("weights"),
    }
    slots |= {f"parameters.{name}": part for name, part in chain.items()}
    for slot, part in slots.items():
        for key in _BEGINNINGS:
            begins = _mapping(part).get(key)
            if isinstance(begins, int) and begins and not isinstance(begins, bool):
                found[f"method.{slot}.{key}"] = str(min(max(1, round(share * begins)), epochs - 1))
            elif isinstance(begins, list):
                whole = [round(share * one) for one in begins]
                distinct = len(set(whole)) == len(whole)
                found[f"method.{slot}.{key}"] = str(
                    whole if distinct else [round(share * one, 2) for one in begins]
                )
    if _mapping(chain.get("awp")).get("warm_up") == 0:
        found["method.parameters.awp.warm_up"] = str(min(1, epochs - 1))
    for name in ("model", *NETWORKS):
        pretrain = _mapping(recipe.get(name)).get("pretrain")
        if pretrain:
            found[f"{name}.pretrain"] = str(max(1, round(share * pretrain)))
    return found


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
