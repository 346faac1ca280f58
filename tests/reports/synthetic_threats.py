"""Further evaluations of a synthetic run, under other threats."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from synthetic_run import Synthetic, write_synthetic_run

from robustly.evidence import read_evidence, write_evidence
from robustly.evidence.provenance import ThreatRecord

FEW = {
    "rotation:30": ("degrees", 0.7),
    "shift:3": ("pixels", 0.5),
    "hue:0.5+linf:4/255": ("times each part's limit", 0.6),
}
LONG = {
    f"hue:0.{i}+saturation:0.{i}+brightness:0.{i}+affine:rotation=1{i},shift=3+linf:{i}/255": (
        "times each part's limit",
        0.05 + 0.08 * i,
    )
    for i in range(1, 12)
}
"""With the threat of the run itself, twelve threats with long names."""


def record(text: str, unit: str) -> ThreatRecord:
    """The record of a threat; that of a chain is stated in shares of its limits."""
    kind, _, size = text.partition(":")
    chained = "+" in text
    limit, limit_text = (1.0, "1") if chained else (float(size), size)
    words = f"Changes of kind {text}, by at most {limit_text} {unit}."
    return ThreatRecord(text, "chain" if chained else kind, words, (0.0, 1.0), limit, limit_text, unit)


def add_threats(run: Path, options: Synthetic, threats: dict[str, tuple[str, float]], curves: bool = True) -> None:
    """Write `evaluation_A`, `evaluation_B`, ... into a run: the same images and weights under other threats.

    Args:
        run: folder of the run.
        options: its properties.
        threats: unit and approximate accuracy by the text of each threat.
        curves: whether they have security curves, in the units of their threats.
    """
    for number, (text, (unit, robust)) in enumerate(threats.items()):
        threat = record(text, unit)
        with TemporaryDirectory() as folder:
            other = write_synthetic_run(
                Path(folder), replace(options, robust=robust, seed=options.seed + number + 1, training=False)
            )
            evidence = read_evidence(other / "evaluation")
        summary, curve = evidence.summary, evidence.summary.metrics.security_curve
        assert curve is not None
        sizes = [size / summary.threat.limit * threat.limit for size in curve.epsilon]
        scaled = replace(curve, epsilon=tuple(sizes), epsilon_text=tuple(f"{size:.3g}" for size in sizes))
        metrics = replace(summary.metrics, security_curve=scaled if curves else None)
        summary = replace(summary, threat=threat, metrics=metrics)
        write_evidence(replace(evidence, summary=summary), run / f"evaluation_{chr(ord('a') + number)}")


def several(folder: Path, options: Synthetic, threats: Sequence[str] | dict[str, tuple[str, float]] = FEW) -> Path:
    """A synthetic run that was evaluated under several threats."""
    run = write_synthetic_run(folder, options)
    add_threats(run, options, dict(threats) if isinstance(threats, dict) else {one: FEW[one] for one in threats})
    return run
