"""Audit of domains: an evaluation is of those of its run, and the written accuracies by domain follow from it."""

from pathlib import Path

from robustly.data import DataConfig
from robustly.evaluation import Check
from robustly.evidence import Summary
from robustly.evidence.domains import domains_problem, stated_part


def domain_checks(kept: Path, own: DataConfig, stated: DataConfig, summary: Summary) -> tuple[Check, ...]:
    """Check the domains of an evaluation; nothing for runs without domains.

    Args:
        kept: folder of the evaluation.
        own: settings of the run's data.
        stated: those that the evaluation states.
        summary: the stated summary.
    """
    if own.domains is None and stated.domains is None:
        return ()
    mine, theirs = (([one.name for one in data.named_domains], data.leave_out) for data in (own, stated))
    other = "" if mine == theirs else f"stated {_words(*theirs)}, the run has {_words(*mine)}"
    named = Check("the domains and the one that is left out are those of the run", other)
    if stated_part(summary.data.split) == "source":
        return (named,)
    problem = domains_problem(kept)
    return named, Check("accuracies by domain are those of the evaluations on target and sources", problem)


def _words(names: list[str], left_out: str | int | None) -> str:
    return f"{', '.join(names) or 'none'} with {left_out} left out"
