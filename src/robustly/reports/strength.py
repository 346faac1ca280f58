"""The strength of a test: kinds of attacks that ran, kinds that are missing, reasons to call it weak."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from robustly.evidence import Summary
from robustly.evidence.summary import AttackOutcome
from robustly.reports.formats import count

ASCENT, NEAREST, TARGETED = "gradient ascent", "search for the smallest change", "targeted attack"
BY_SCORES, BY_DECISIONS = "black-box search by scores", "black-box search by decisions"
TRANSFER, DRAWS, EXHAUSTIVE = "transfer from another model", "random draws", "exhaustive search"
OTHER, UNRECORDED = "attack of its user", "kind not recorded"
FAMILIES: Mapping[str, str] = {
    **dict.fromkeys(("PGD", "APGD", "TargetedAPGD", "PMA", "MIM", "VMI"), ASCENT),
    **dict.fromkeys(("SmoothPGD", "RoutePGD", "PatchSearch", "ExpectedPatch", "Composite"), ASCENT),
    **dict.fromkeys(("FAB", "DeepFool", "CarliniWagner", "DDN", "FMN", "EAD", "JSMA", "SigmaZero"), NEAREST),
    **dict.fromkeys(("Square", "SparseRS", "ParameterSearch"), BY_SCORES),
    **dict.fromkeys(("Boundary", "HopSkipJump"), BY_DECISIONS),
    **dict.fromkeys(("GridSearch", "ExhaustiveSearch"), EXHAUSTIVE),
    "RandomDraws": DRAWS,
    "Transfer": TRANSFER,
}
"""Family of each kind of attack, by the name that evidence records."""
_BY_SCORES_ESTIMATORS = ("NES", "SPSA")
FEW_STEPS = 20
"""With fewer steps in all, gradient ascent is a weak test: papers on adversarial training report at least 20."""


@dataclass(frozen=True)
class Strength:
    """The strength of a test.

    Args:
        families: families of the attacks that ran, with the titles of their attacks.
        partial: attacks that ran on a part of the unbroken examples, and their number of examples.
        missing: families that no attack of the test belongs to.
        weaknesses: reasons to call the test weak; empty for a test of usual strength.
    """

    families: tuple[tuple[str, tuple[str, ...]], ...]
    partial: tuple[str, ...]
    missing: tuple[str, ...]
    weaknesses: tuple[str, ...]

    @property
    def narrow(self) -> str:
        """The family if all attacks that ran are of one; else empty."""
        names = [name for name, _ in self.families]
        return names[0] if len(names) == 1 and names[0] not in (OTHER, UNRECORDED) else ""

    @property
    def attacks(self) -> int:
        """Number of attacks that ran."""
        return sum(len(titles) for _, titles in self.families)


def strength(evaluation: Summary) -> Strength:
    """The strength of the test behind an evaluation; attacks that failed or were not needed do not count."""
    ran = ran_attacks(evaluation)
    families: dict[str, list[str]] = {}
    for outcome in ran:
        families.setdefault(family(outcome.attack.settings), []).append(outcome.attack.title)
    targeted = [] if any(map(_targeted, ran)) else [TARGETED]
    nearest = [] if evaluation.threat.norm is None else [NEAREST]  # other threats have no such attack
    wanted = [ASCENT, *targeted, *nearest, BY_SCORES, BY_DECISIONS, TRANSFER]
    return Strength(
        tuple((name, tuple(titles)) for name, titles in families.items()),
        tuple(_parts(ran)),
        () if UNRECORDED in families else tuple(name for name in wanted if name not in families),
        tuple(_weaknesses(evaluation, ran, families)),
    )


def ran_attacks(evaluation: Summary) -> list[AttackOutcome]:
    """The attacks that gave numbers."""
    return [outcome for outcome in evaluation.outcomes if not outcome.state and outcome.numbers.tried > 0]


def family(settings: Mapping[str, object]) -> str:
    """The family of an attack with these settings, by its kind and the estimator of its gradients."""
    kind, estimator = settings.get("kind"), settings.get("estimator")
    if isinstance(estimator, Mapping) and estimator.get("kind") in _BY_SCORES_ESTIMATORS:
        return BY_SCORES
    if kind == "PGD" and settings.get("steps") == 0:
        return DRAWS
    return UNRECORDED if kind is None else FAMILIES.get(str(kind), OTHER)


@dataclass(frozen=True)
class StrengthRow:
    """One aspect of the strength of a test, for readers."""

    title: str
    words: str


def strength_words(evaluation: Summary) -> tuple[StrengthRow, ...]:
    """The strength of the test behind an evaluation and its limits, for readers."""
    return strength_rows(strength(evaluation), certified=evaluation.metrics.certified is not None)


def strength_rows(found: Strength, certified: bool) -> tuple[StrengthRow, ...]:
    """The strength of a test and its limits, for readers.

    Args:
        found: the strength.
        certified: whether a certificate gives a lower bound.
    """
    rows = []
    if not found.attacks:
        rows.append(StrengthRow("Attacks that ran", "None."))
    for name, titles in found.families:
        rows.append(StrengthRow(name.capitalize(), f"{'; '.join(titles)}."))
    if found.partial:
        rows.append(StrengthRow("On a part of the examples", f"{'; '.join(found.partial)}."))
    missing = f"{'; '.join(found.missing)}. " if found.missing else ""
    if {BY_SCORES, BY_DECISIONS} <= set(found.missing) and DRAWS not in dict(found.families) and found.attacks:
        missing += "Without a search that needs no gradients, masked gradients may stay undetected. "
    if OTHER not in dict(found.families):
        missing += "No attack written for this model is recorded; if it has a defence, one may break more."
    if missing:
        rows.append(StrengthRow("Missing", missing[0].upper() + missing[1:]))
    meaning = "Attacks give an upper bound only: a further attack can lower the accuracy and never raise it."
    meaning += "" if certified else " There is no certificate, so there is no lower bound."
    rows.append(StrengthRow("Meaning", meaning))
    return tuple(rows)


def _targeted(outcome: AttackOutcome) -> bool:
    settings = outcome.attack.settings
    targets = settings.get("targets")
    return settings.get("kind") == "TargetedAPGD" or (isinstance(targets, int) and targets > 0)


def _parts(ran: Sequence[AttackOutcome]) -> list[str]:
    """Attacks whose plan leaves examples out, and on how many they ran."""
    found = []
    for outcome in ran:
        plan = outcome.attack.plan
        if plan.closest < 1 or plan.sample is not None or plan.sample_share < 1:
            found.append(f"{outcome.attack.title} on {count(outcome.numbers.tried)}")
    return found


def _weaknesses(
    evaluation: Summary, ran: Sequence[AttackOutcome], families: Mapping[str, Sequence[str]]
) -> list[str]:
    if not ran:
        return [] if evaluation.metrics.certified is not None else ["no attack ran"]
    found = []
    steps = [_steps(outcome) for outcome in ran]
    known = [number for number in steps if number is not None]
    if set(families) <= {ASCENT, DRAWS} and len(known) == len(steps) and max(known) < FEW_STEPS:
        most = max(known)
        found.append(f"no attack took more than {most} gradient step{'' if most == 1 else 's'} in all")
    if set(families) <= {BY_SCORES, BY_DECISIONS, TRANSFER, DRAWS}:
        found.append("no attack used gradients of the model")
    if evaluation.threat.norm is None and set(families) == {ASCENT}:
        found.append(
            "no random draws ran, which often break more than gradients under threats that are not Lp balls"
        )
    most = max(outcome.numbers.tried for outcome in ran)
    if most < evaluation.metrics.clean.hits:
        found.append(
            f"no attack ran on more than {count(most)} of the {count(evaluation.metrics.clean.hits)} correctly "
            "classified examples"
        )
    if evaluation.seen_attacks is not None and all(outcome.seen == "training" for outcome in ran):
        found.append("the model was trained with every kind of attack that ran")
    return found


def _steps(outcome: AttackOutcome) -> int | None:
    """Steps of an attack over all its starts and targets; None if its settings do not have them."""
    numbers = [outcome.attack.settings.get(key, 1) for key in ("restarts", "targets")]
    steps = outcome.attack.settings.get("steps")
    if not isinstance(steps, int) or not all(isinstance(number, int) for number in numbers):
        return None
    total = steps
    for number in numbers:
        total *= max(int(str(number)), 1)
    return total
