"""Attacks of a suite that a network has seen: those of the kind that it was trained, or its epoch selected, with.

Two attacks are of one kind if they have the same search, the same objective and the same kind of threat. Steps,
step size, start, restarts and epsilon may differ. The search of all inner maximisations and of the validation is
projected gradient ascent with steepest steps (FGSM and PGD); APGD, MIM and others with momentum are other searches.
Composite training (GAT) on a chain in any order has seen the composite attack.
Training under several threats has seen the attacks under each of them.
"""

from collections.abc import Mapping
from pathlib import Path

from robustly.attacks import Attack
from robustly.attacks.composite import Composite
from robustly.attacks.pgd import PGD
from robustly.evaluation import Check, Suite
from robustly.evidence import Summary
from robustly.evidence.provenance import Seen
from robustly.evidence.schema import RULES_SINCE
from robustly.experiments.configuration import RunConfig
from robustly.objectives import OBJECTIVES, cross_entropy
from robustly.training import (
    CompositeInner,
    CurriculumInner,
    FreeInner,
    FriendlyInner,
    InnerMaximiser,
    MixedInner,
    NoisyFGSMInner,
    PGDInner,
)
from robustly.training.engine.loop import BEST, FINAL
from robustly.training.inner import SEVERAL

SELECTION = "cross_entropy"
"""Objective of the attack on the validation images, on which the best epoch is selected."""
COMPOSITE = "composite"
"""Name of the composite attack by cross-entropy, which is another search than that of all others."""
_CROSS_ENTROPY = (CurriculumInner, FreeInner, NoisyFGSMInner)


def seen_attacks(
    folder: Path, config: RunConfig, kind: str, suite: Suite, *, last_epoch: bool = False
) -> dict[str, Seen] | None:
    """Attacks of a suite that the network of a run has seen; None if the network was trained elsewhere.

    Args:
        folder: the run.
        config: its settings.
        kind: kind of the threat of the evaluation, such as "linf".
        suite: the suite.
        last_epoch: whether the weights are those after the last epoch, which no attack selects; only the end of a
            run with patience or a largest drop depends on one.

    Returns:
        By name of the attack "training", or "selection" for those that only the selection of the epoch has used.
    """
    if not any((folder / name).is_file() for name in (BEST, FINAL)):
        return None
    stops = config.training.patience is not None or config.training.stop_after_drop is not None
    marks = seen_in_run(config, kind, suite.attacks)
    return {name: seen for name, seen in marks.items() if seen == "training" or stops or not last_epoch}


def seen_in_run(config: RunConfig, kind: str, attacks: Mapping[str, Attack]) -> dict[str, Seen]:
    """Attacks of the kinds that a run with these settings uses; see `seen_attacks`."""
    used: dict[str, Seen] = {SELECTION: "selection"} if kind == config.threat.kind else {}
    trained = inner_objective(config.method.inner, config.threat.kind)
    threats = config.threats if type(config.method.inner) in SEVERAL else config.threats[:1]
    if trained is not None and kind in [threat.kind for threat in threats]:
        used[trained] = "training"
    objectives = {name: ascent_objective(attack) for name, attack in attacks.items()}
    return {name: used[objective] for name, objective in objectives.items() if objective in used}


def inner_objective(inner: InnerMaximiser | None, kind: str = "linf") -> str | None:
    """Name of the objective of an inner maximisation, or `COMPOSITE`.

    None if no attack of a suite has it (AdaAD, GKL, RSLAD).

    Args:
        inner: the inner maximisation.
        kind: kind of the threat of the training.
    """
    if isinstance(inner, CompositeInner):
        return COMPOSITE if kind == "any_order" else "cross_entropy"
    if isinstance(inner, PGDInner):
        return inner.objective if inner.reference == "clean" else None
    if isinstance(inner, FriendlyInner):
        return inner.objective
    if isinstance(inner, MixedInner):  # one that is partly by cross-entropy counts as that
        always_kl = inner.kl == 1 and inner.kl_end in (None, 1) and inner.kl_on == "all"
        return "kl" if always_kl else "cross_entropy"
    return "cross_entropy" if isinstance(inner, (*_CROSS_ENTROPY, *SEVERAL)) else None


def ascent_objective(attack: Attack) -> str | None:
    """Name of the objective of an attack by steepest ascent, or `COMPOSITE`; None for any other."""
    if isinstance(attack, Composite):
        return COMPOSITE if attack.objective is cross_entropy else None
    if not isinstance(attack, PGD) or attack.update != "steepest" or attack.estimator is not None:
        return None
    return next((name for name, objective in OBJECTIVES.items() if objective is attack.objective), None)


def seen_attacks_check(folder: Path, config: RunConfig, summary: Summary, suite: Suite | None) -> Check:
    """Check the attacks that are marked as seen.

    Evidence without marks states that they are unknown. That holds for a network that was trained elsewhere, and
    for evidence of schemas before 4.
    """
    stated, name = summary.seen_attacks, "the attacks marked as seen in training"
    expected = (
        None
        if suite is None
        else seen_attacks(folder, config, summary.threat.kind, suite, last_epoch=summary.model.is_last_epoch)
    )
    if suite is None or (stated is None and (expected is None or summary.schema < RULES_SINCE)):
        return Check("no attack is marked as seen in training")
    if stated is None:
        return Check(name, "they are stated to be unknown, but the run has trained the network")
    expected = expected or {}
    wrong = [one for one in dict.fromkeys([*stated, *expected]) if stated.get(one) != expected.get(one)]
    return Check(name, f"wrong: {', '.join(wrong)}" if wrong else "")
