"""The verdict on several runs in a sentence or two."""

from collections.abc import Mapping, Sequence

from robustly.evidence import Summary
from robustly.reports.formats import percent
from robustly.reports.run import RunEvidence
from robustly.reports.strength import ran_attacks
from robustly.reports.tables.comparison import differences
from robustly.reports.verdict import Verdict, attacks_words, examples_words, held, verdict
from robustly.statistics import Proportion

MOST_NAMED = 4
"""Most runs that the sentence names; of more, the first two and the last."""
_Tested = tuple[RunEvidence, Summary]


def comparison_verdict(runs: Sequence[RunEvidence]) -> Verdict:
    """The verdict on a comparison; runs under suspicion, or with other tests, are not ranked.

    Args:
        runs: at least one run, with distinct names.
    """
    tested: list[_Tested] = [(run, run.evaluation) for run in runs if run.evaluation is not None]
    single = {run.name: verdict(run) for run in runs}
    if not tested:
        return Verdict(f"None of the {len(runs)} runs is evaluated: their robust accuracy is unknown.", sound=False)
    doubts = _states(runs)
    apart = differences([one for _, one in tested])
    if len(tested) == 1:
        alone = single[tested[0][0].name]
        return Verdict(alone.sentence, (*doubts, *alone.doubts), alone.sound)
    if apart:
        worst = "; ".join(_claim(run, one) for run, one in tested[:MOST_NAMED])
        more = "" if len(tested) <= MOST_NAMED else f"; and {len(tested) - MOST_NAMED} more"
        doubts += _shared([single[run.name] for run, _ in tested], [run.name for run, _ in tested])
        words = f"The runs were not tested alike, so they are not ranked: {worst}{more}."
        return Verdict(words, tuple(doubts), sound=False)
    sound = [(run, one) for run, one in tested if single[run.name].sound]
    unsound = [run for run, _ in tested if not single[run.name].sound]
    doubts += [f"{run.name} is not ranked: {_reason(run)}." for run in unsound]
    doubts += _shared([single[run.name] for run, _ in sound], [run.name for run, _ in sound])
    if not sound:
        return Verdict("No run can be ranked: each of them is in doubt.", tuple(doubts), False)
    ranked = sorted(sound, key=lambda entry: -entry[1].metrics.worst_case.robust.hits)
    return Verdict(_ranking(ranked), (*_chance(ranked), *doubts))


def _claim(run: RunEvidence, evaluation: Summary) -> str:
    """The result of a run that is not ranked."""
    threat, worst = evaluation.threat.text, held(evaluation.metrics.worst_case.robust)
    if not ran_attacks(evaluation):
        return f"no attack ran on {run.name}"
    holds = "seems to hold" if evaluation.masking else "holds"
    return f"{_named(run)} {holds} {worst} under {threat}{_proof(evaluation)}"


def _states(runs: Sequence[RunEvidence]) -> list[str]:
    """Sentences on the runs that are not evaluated, and on those that are not audited."""
    groups = {
        "Not evaluated": [run.name for run in runs if run.evaluation is None],
        "Not audited": [run.name for run in runs if run.evaluation is not None and run.audit is None],
    }
    return [f"{words}: {_listed(names)}." for words, names in groups.items() if names]


def _ranking(ranked: Sequence[_Tested]) -> str:
    """The runs by their worst case, the best first."""
    (first, best), *others = ranked
    numbers = {len(ran_attacks(one)) for _, one in ranked}
    against = attacks_words(numbers.pop()) if len(numbers) == 1 else f"the suite {best.suite.name}"
    words = (
        f"{_named(first)} holds {held(best.metrics.worst_case.robust)} {examples_words(best)} against {against} "
        f"under {best.threat.text}{_proof(best)}"
    )
    shown = others if len(ranked) <= MOST_NAMED else [others[0], others[-1]]
    if len(ranked) > MOST_NAMED:
        (second, two), (last, lowest) = shown
        return (
            f"Of {len(ranked)} runs, {words}; the next, {_named(second)}, {_short(two)}; the last, {_named(last)}, "
            f"{_short(lowest)}."
        )
    return "; ".join([words, *(f"{_named(run)} {_short(one)}" for run, one in shown)]) + "."


def _short(evaluation: Summary) -> str:
    worst = evaluation.metrics.worst_case.robust
    return {0: "none", worst.count: "all"}.get(worst.hits, percent(worst.share)) + _proof(evaluation)


def _proof(evaluation: Summary) -> str:
    """The certified accuracy in brackets, if there is a certificate."""
    proved = evaluation.metrics.proved
    return "" if proved is None else f" ({percent(proved.share)} proved)"


def _chance(ranked: Sequence[_Tested]) -> list[str]:
    """A sentence if the intervals of the first two overlap."""
    if len(ranked) < 2:
        return []
    (first, best), (second, next_best) = ranked[:2]
    one, other = best.metrics.worst_case.robust, next_best.metrics.worst_case.robust
    if one.hits == other.hits:
        return [f"{first.name} and {second.name} are equal in this number."]
    if _overlap(one, other):
        return [f"The difference between {first.name} and {second.name} may be chance: their intervals overlap."]
    return []


def _overlap(one: Proportion, other: Proportion) -> bool:
    return one.low <= other.high and other.low <= one.high


def _shared(verdicts: Sequence[Verdict], names: Sequence[str]) -> list[str]:
    """The doubts about several runs: once if all share them, else with the names."""
    by_doubt: dict[str, list[str]] = {}
    for name, one in zip(names, verdicts, strict=True):
        for doubt in one.doubts:
            by_doubt.setdefault(doubt, []).append(name)
    return [
        doubt if len(of) == len(names) else f"{_listed(of)}: {doubt[0].lower()}{doubt[1:]}"
        for doubt, of in by_doubt.items()
    ]


def _named(run: RunEvidence) -> str:
    """The name of a run, with "(undefended)" if its training was without attacks and bounds."""
    return f"{run.name} (undefended)" if is_undefended(run.config) else run.name


def is_undefended(config: Mapping[str, object] | None) -> bool:
    """Return True if the settings are those of standard training: clean loss, and no part that defends."""
    method = None if config is None else config.get("method")
    if not isinstance(method, Mapping):
        return False
    loss = method.get("loss")
    plain = isinstance(loss, Mapping) and loss.get("name") == "clean"
    return plain and not any(method.get(part) for part in ("labels", "inner", "weights", "parameters"))


def _reason(run: RunEvidence) -> str:
    """The reason not to rank a run."""
    if run.evaluation is not None and run.evaluation.masking:
        return (
            "gradient masking is suspected (it seems to hold "
            f"{percent(run.evaluation.metrics.worst_case.robust.share)})"
        )
    if run.audit is not None and not run.audit.passed:
        return "its audit failed"
    if run.notes:
        return "its files contradict each other"
    if run.evaluation is not None and not ran_attacks(run.evaluation):
        return "no attack ran on it"
    return "the network has collapsed"


def _listed(parts: Sequence[str]) -> str:
    return "".join(parts) if len(parts) <= 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
