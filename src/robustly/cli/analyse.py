"""`robustly analyse`."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from torch import Tensor, nn

from robustly.analysis.input_gradients import GradientStatistics, gradient_statistics, summarised
from robustly.analysis.landscapes import input_landscapes, weight_landscape
from robustly.cli.subject import first_threat, keep_run, load_subject, run_of_command
from robustly.cli.terminal import PlainConsole
from robustly.cli.together import leads, shared_among_processes
from robustly.data import ImageData
from robustly.evaluation.parts import Crew
from robustly.evaluation.recording import stored_threat
from robustly.evaluation.shards import divided
from robustly.evidence import read_summary
from robustly.evidence.partial_unions import union_of_folders
from robustly.evidence.records import to_json
from robustly.evidence.schema import SUMMARY
from robustly.evidence.storage import read_threat_arrays
from robustly.experiments.configuration import RunConfig, build_config
from robustly.experiments.locks import repair_evaluations
from robustly.experiments.overrides import pairs_of
from robustly.experiments.run_folder import EVALUATION, RunError
from robustly.files import write_json
from robustly.models import weights_hash
from robustly.randomness import KeyedGenerator, derive_seed
from robustly.threats.lp import ThreatModel

ANALYSIS, SCHEMA = "analysis.json", 2
PICTURES, BATCH = 4, 128


def run_analysis(place: Path | None, count: int, trust_code: bool, overrides: Sequence[str] = ()) -> int:
    """Measure gradients and loss landscapes of a run, and the union over its evaluations; returns the exit code.

    Args:
        place: the run, or a model that was trained elsewhere; see `given_run`.
        count: number of images for the gradients, from the first.
        trust_code: whether models that only a file names may be imported.
        overrides: settings. An evaluated run is analysed on the images and under the threat of its evaluation.

    Raises:
        ValueError: the folder has no run, or weights, data or the first evaluation cannot be read.
        OSError: the file cannot be written.
    """
    if count < 1:
        raise ValueError(f"--count must be at least 1, got {count}")
    run = run_of_command(place, list(overrides), takes_shards=True)
    folder = run.folder
    if leads():
        repair_evaluations(folder)
    config, _ = _evaluated(folder, first_threat(run, "analyse"), run.overrides)
    measured = shared_among_processes(_measured, (place, count, trust_code, tuple(overrides)), config.runtime)
    if measured is None:
        return 0
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **measured,
        **_union(folder),
    }
    keep_run(run)
    write_json(folder / ANALYSIS, content)
    console = PlainConsole()
    for line in _summary_lines(content):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    console.print(
        f"analysis: {folder / ANALYSIS}\nnext: robustly report {quote(str(folder))}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
    return 0


def _measured(
    place: Path | None, count: int, trust_code: bool, overrides: Sequence[str], crew: Crew
) -> dict[str, Any]:
    """Gradients and landscapes, as plain values."""
    run = run_of_command(place, list(overrides), takes_shards=True)
    config, threat = _evaluated(run.folder, first_threat(run, "analyse"), run.overrides)
    subject = load_subject(run, trust_code, config)
    model, data = divided(subject.model, crew, subject.device), subject.data
    sample = data.select(torch.arange(min(count, len(data))))
    found = gradient_statistics(model, sample.floats(), sample.labels, threat, crew=crew)
    return {
        "model": {"weights_sha256": weights_hash(model)},
        "data": {"source": data.source, "count": len(sample), "classes": list(data.classes)},
        "threat": {"text": str(threat), "norm": threat.norm, "epsilon_text": threat.epsilon_text},
        "gradients": summarised(found, threat),
        "landscapes": _landscapes(model, sample, threat, found, config.seed, crew),
    }


def _evaluated(folder: Path, config: RunConfig, overrides: Sequence[str]) -> tuple[RunConfig, ThreatModel]:
    """Settings and threat of the run's evaluation; of the run itself if it is not evaluated."""
    if not (folder / EVALUATION / SUMMARY).is_file():
        data, threat = config.data, config.threat
    else:
        summary = read_summary(folder / EVALUATION)
        if summary.data.settings is None:
            raise RunError(f"{folder / EVALUATION} does not state the settings of its data: evaluate the run again")
        data = build_config({"data": summary.data.settings}).data
        threat = stored_threat(summary.threat, read_threat_arrays(folder / EVALUATION))
        if {"threat", "threats"} & dict(pairs_of(overrides)).keys() and str(threat) != str(config.threat):
            raise RunError(
                f"{folder} is evaluated under {threat}, and analysed under the same threat: leave out --threat"
            )
    if not isinstance(threat, ThreatModel):
        raise RunError(f"analyse is defined for Lp threats, the threat of {folder} is {threat}")
    return replace(config, data=data), threat


def _landscapes(
    model: nn.Module, sample: ImageData, threat: ThreatModel, found: GradientStatistics, seed: int, crew: Crew
) -> dict[str, Any]:
    rows = _shown(found)
    seed = derive_seed(seed, "analysis")
    generator = KeyedGenerator(seed, sample.ids[rows])
    surfaces = input_landscapes(model, sample.floats(rows), sample.labels[rows], threat, generator, crew=crew)
    batch = torch.arange(min(BATCH, len(sample)), device=sample.device)
    weights = weight_landscape(model, sample.floats(batch), sample.labels[batch], seed=seed, crew=crew)
    return {
        "seed": seed,
        "inputs": [
            {"id": int(sample.ids[row]), "label": sample.classes[int(sample.labels[row])], **surface.plain()}
            for row, surface in zip(rows.tolist(), surfaces, strict=True)
        ],
        "weights": {"images": len(batch), **weights.plain()},
    }


def _shown(found: GradientStatistics) -> Tensor:
    """Rows of a few correctly classified images, from the nearest to the boundary to the farthest."""
    rows = found.correct.nonzero()[:, 0]
    if len(rows) == 0:
        rows = torch.arange(len(found.correct), device=found.correct.device)
    order = rows[found.radius[rows].argsort(stable=True)]
    places = torch.linspace(0.1, 0.9, PICTURES, device=order.device) * (len(order) - 1)
    return order[torch.unique(places.round().long())]


def _union(folder: Path) -> dict[str, Any]:
    """The union over the evaluations of a run that fit together, None without two threats; and those left out."""
    places = [folder / EVALUATION, *sorted(folder.glob(f"{EVALUATION}_*"))]
    complete = [path for path in places if (path / SUMMARY).is_file()]
    if len(complete) < 2:
        return {"union": None, "left_out": []}
    union, left_out = union_of_folders(complete)
    return {
        "union": None if union is None else to_json(union),
        "left_out": [to_json(one) for one in left_out],
    }


def _summary_lines(content: dict[str, Any]) -> list[str]:
    gradients, surfaces = content["gradients"], content["landscapes"]
    radius = gradients["radius"]
    lines = [f"gradients of {gradients['count']} images: median l1 {gradients['measures']['l1']['median']:.4g}"]
    if radius["median"] is not None:
        share = 100 * radius["beyond_epsilon"] / gradients["count"]
        lines.append(
            f"first-order radius: median {radius['median']:.4g}; beyond epsilon for {share:.1f} % of images "
            "(an estimate, not a robust accuracy)"
        )
    lines.append(f"loss over the weights: mean |second difference| {surfaces['weights']['roughness']:.4g}")
    if content["union"] is not None:
        union, names = content["union"]["union"], [one["text"] for one in content["union"]["threats"]]
        lines.append(f"robust to all of {', '.join(names)}: {100 * union['accuracy']:.1f} %")
    lines += [f"! {one['evaluation']} is left out of the union: {one['reason']}" for one in content["left_out"]]
    return lines
