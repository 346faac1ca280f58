"""The frame of every attack: check the arguments, freeze the model, run the search, return its result."""

from collections.abc import Callable

from jaxtyping import Int64
from torch import Tensor, nn

from robustly.attacks.core.compiled import CompiledNetwork
from robustly.attacks.core.contract import (
    ANY_THREAT,
    AttackResult,
    Images,
    ModelMode,
    Needs,
    check_device,
    check_ids,
    check_needs,
    frozen,
    prepare,
    reads_are_free,
)
from robustly.attacks.core.graphs import PassGraphs
from robustly.attacks.core.model_access import half_precision_copy
from robustly.attacks.core.search import Precision, Search
from robustly.models.adapter import as_classifier
from robustly.objectives import Goal
from robustly.randomness import KeyedGenerator
from robustly.threats.contract import Threat


def run_search(
    run: Callable[[Search, KeyedGenerator], None],
    model: nn.Module,
    x: Images,
    y: Int64[Tensor, " n"] | Goal,
    *,
    threat: Threat,
    generator: KeyedGenerator,
    needs: Needs = ANY_THREAT,
    nearest: bool = False,
    by_margin: bool = False,
    mode: ModelMode = "eval",
    precision: Precision = "full",
    verdicts: bool = True,
    graphs: PassGraphs | None = None,
    condenses: bool = False,
) -> AttackResult:
    """Run an attack: check the arguments, freeze the model, skip misclassified examples, search.

    Args:
        run: the search. It is called after the clean pass if unbroken examples are left.
        model: as in `Attack`, like the four that follow. The search runs in the compiled passes of a
            `CompiledNetwork`, verdicts are those of the network in it.
        x: the clean inputs.
        y: their labels, or a goal.
        threat: the allowed perturbations.
        generator: keyed by example.
        needs: the threats that the attack is defined for.
        nearest: for minimum-norm attacks.
        by_margin: ranking of failing points; see `Search`.
        mode: mode of batch normalisation; see `frozen`.
        precision: "full", "ambient" (autocast as it is), or "bfloat16": the search runs in a bfloat16 copy of the
            model, verdicts in full precision.
        verdicts: False runs the search alone, without clean pass and records; see `Search`.
        graphs: captured passes, for Lp balls; None runs every pass anew.
        condenses: True leaves out parameters that change no input; see `Search`.

    Raises:
        AttackError: see `prepare`; a threat that the attack is not defined for; a model on another device.
    """
    check_needs(threat, needs)
    compiled = model if isinstance(model, CompiledNetwork) else None
    model = model if compiled is None else compiled.net
    if verdicts:  # training tries its networks once, before the first step
        model = as_classifier(model)
    x, goal = prepare(x, y, threat, check=verdicts or reads_are_free(x.device))
    check_ids(x, generator)
    check_device(model, x)
    with frozen(model, mode, precision != "ambient"):
        # other modes give outputs that depend on the whole batch, or change it: confirmed successes would be others
        half: nn.Module | None = compiled if mode == "eval" or not verdicts else None
        if precision == "bfloat16" and len(x):
            if compiled is not None and mode == "eval":
                half = compiled.half_precision(x)
            else:
                half = half_precision_copy(model, x)
        search = Search(
            model,
            x,
            goal,
            threat,
            nearest=nearest,
            by_margin=by_margin,
            half=half,
            verdicts=verdicts,
            condenses=condenses,
        )
        search.graphs = graphs
        if precision == "bfloat16":
            search.forwards[:1] += 1  # the copy was tried on the first image
        if len(x) and verdicts:
            search.begin()
        if search.model is not model and compiled is not None and half is compiled:
            search.half = None  # the network changes its input in place
        if len(search.unbroken):
            run(search, generator)
            if verdicts:
                search.confirm_best()
        return search.result()
