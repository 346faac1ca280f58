"""`robustly certify`."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from robustly.certification.certificates import BoundCertificate
from robustly.certification.problem import Method
from robustly.cli.arguments import READS_WEIGHTS, in_shards
from robustly.cli.evaluate import run_evaluation
from robustly.cli.evaluate_several import SeveralOptions, evaluate_several
from robustly.cli.several_runs import all_runs, are_several, one_run
from robustly.evaluation.suites.certified import with_certificate
from robustly.experiments.overrides import pairs_of


def run_certification(
    places: Sequence[Path],
    overrides: list[str],
    *,
    method: Method,
    seconds: float | None,
    halvings: int,
    trust_code: bool,
    overwrite: bool,
    label: str,
    keep: bool,
    on: str | None = None,
) -> int:
    """Attack and certify a run and print the interval; returns the exit code.

    Args:
        places: the run, or a model that was trained elsewhere, see `given_run`; with a cluster also several.
        overrides: settings.
        method: stages of the proofs; see `BoundCertificate`.
        seconds: time for the branch and bound of all images together; None for no limit.
        halvings: steps of the bisection that finds certified radii; 0 for none.
        trust_code: True if models that only a file names may be imported.
        overwrite: True to replace an earlier result.
        label: name of the folder of the result.
        keep: True to return without an error if there is a result already.
        on: Ray cluster that shares the work; see `check_on`.

    Raises:
        ValueError: wrong settings, weights or data, or an operation that cannot be bounded.
        OSError: files that cannot be read or written.
    """
    in_shards(pairs_of(overrides), f"certify {READS_WEIGHTS}")
    extended = partial(with_certificate, certificate=BoundCertificate(method, halvings=halvings, seconds=seconds))
    if are_several(places, on) and on is not None:
        several = SeveralOptions(tuple(overrides), on, trust_code, overwrite, label, keep, extended)
        return evaluate_several(all_runs(places), several)
    return run_evaluation(one_run(places), overrides, trust_code, overwrite, label, keep, extended, on=on)
