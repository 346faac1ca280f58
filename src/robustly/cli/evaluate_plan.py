"""The evaluations that one `robustly evaluate` makes: one for each threat, in folders of their own."""

from dataclasses import dataclass, replace
from pathlib import Path

from robustly.evaluation.curve import has_own_sizes
from robustly.evidence.domain_names import Part
from robustly.evidence.domains import SOURCE_END, source_folder
from robustly.experiments.configuration import RunConfig
from robustly.experiments.given_models import GivenRun
from robustly.experiments.run_folder import Checkpoint, RunError, evaluation_folder, open_run
from robustly.threats import short_names


@dataclass(frozen=True)
class PlannedEvaluation:
    """An evaluation under one threat.

    Args:
        config: settings with this threat alone.
        target: folder of the evidence.
        part: with domains, those whose test images are used.
    """

    config: RunConfig
    target: Path
    part: Part = "target"


def planned_evaluations(run: GivenRun, label: str | None) -> list[PlannedEvaluation]:
    """The evaluations under all threats of the settings.

    With one threat, and under the threat that the run validates with, the folder is that of the label. Others are
    named after their threat, `evaluation_l2` or `evaluation_LABEL_l2`. With domains there is a second one for each,
    on the domains that were trained on, in a folder whose name ends in `_source`.

    Args:
        run: the run.
        label: name of the evaluation if the run has several; None for none.

    Returns:
        Evaluations in the order of the work. The folder without the name of a threat comes last, so that all are
        there if it is.

    Raises:
        RunError: a label that is not made of letters, digits and `_`; with domains, one that ends in `source`;
            sizes of the security curve that are in the unit of one threat, for several kinds of threats.
    """
    config = run.config
    if config.data.domains is not None and f"_{label}".endswith(SOURCE_END):
        raise RunError(f"--as {label}: names that end in source are those of evaluations on the source domains")
    curve = config.evaluation.curve
    if len({threat.kind for threat in config.threats}) > 1 and has_own_sizes(curve):
        raise RunError(
            f"curve: {curve!r} is in the unit of one threat, and the threats are {config.threats_text}: give "
            "shares of the size of each, such as '50%, 100%, 150%', or 'on' for the usual ones"
        )
    own = config.threat if run.is_new else open_run(run.folder).threat
    base = evaluation_folder(run.folder, label)
    plans = []
    for number, name in enumerate(short_names(config.threats)):
        threat = config.threats[number]
        is_base = len(config.threats) == 1 or threat == own
        named = name if label is None else f"{label}_{name}"
        target = base if is_base else evaluation_folder(run.folder, named)
        plans.append(PlannedEvaluation(config.for_threat(number), target))
    plans.sort(key=lambda plan: plan.target == base)
    if config.data.domains is None:
        return plans
    return [*(replace(plan, target=source_folder(plan.target), part="source") for plan in plans), *plans]


def refuse_unfit(plan: PlannedEvaluation, kept_threat: str, kept_is_last: bool, checkpoint: Checkpoint) -> None:
    """Refuse to keep an earlier evaluation of another threat or other weights.

    Args:
        plan: the evaluation.
        kept_threat: text of the threat of the earlier one in its folder.
        kept_is_last: True if that one is of the weights after the last epoch.
        checkpoint: the weights to evaluate.

    Raises:
        RunError: it is of another threat or other weights.
    """
    if kept_threat != str(plan.config.threat):
        raise RunError(
            f"{plan.target} is under {kept_threat}, not {plan.config.threat}: --as NAME gives another name"
        )
    if kept_is_last != (checkpoint == "last"):
        which = "after the last epoch" if kept_is_last else "that the run selected"
        raise RunError(f"{plan.target} is of the weights {which}: --as NAME gives another name")
