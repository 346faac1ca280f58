"""`robustly certify`."""

from functools import partial
from pathlib import Path

from robustly.certification.certificates import BoundCertificate
from robustly.certification.problem import Method
from robustly.cli.evaluate import run_evaluation
from robustly.evaluation.suites.certified import with_certificate


def run_certification(
    place: Path | None,
    overrides: list[str],
    *,
    method: Method,
    seconds: float | None,
    halvings: int,
    trust_code: bool,
    overwrite: bool,
    label: str,
    keep: bool,
) -> int:
    """Attack and certify a run and print the interval; returns the exit code.

    Args:
        place: the run, or a model that was trained elsewhere; see `given_run`.
        overrides: settings.
        method: stages of the proofs; see `BoundCertificate`.
        seconds: time for the branch and bound of all images together; None for no limit.
        halvings: steps of the bisection that finds certified radii; 0 for none.
        trust_code: True if models that only a file names may be imported.
        overwrite: True to replace an earlier result.
        label: name of the folder of the result.
        keep: True to return without an error if there is a result already.

    Raises:
        ValueError: wrong settings, weights or data, or an operation that cannot be bounded.
        OSError: files that cannot be read or written.
    """
    extended = partial(with_certificate, certificate=BoundCertificate(method, halvings=halvings, seconds=seconds))
    return run_evaluation(place, overrides, trust_code, overwrite, label, keep, extended)
