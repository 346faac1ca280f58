"""Groups of runs that differ only in the seed, and the names of their rows."""

import json
from collections.abc import Mapping, Sequence

from robustly.reports.formats import setting
from robustly.reports.run import distinct_names
from robustly.reports.tables.evaluations import EvaluatedRun

MOST_SETTINGS = 3
"""Largest number of settings in the name of a row."""


def seed_groups(runs: Sequence[EvaluatedRun]) -> list[list[int]]:
    """Groups of indices of runs that differ only in the seed, in the order of the runs.

    Settings of the evaluation are ignored. A second run with the same seed starts another group.
    """
    groups: dict[str, list[int]] = {}
    for i, run in enumerate(runs):
        if run.config is None:
            groups[f"run {i}"] = [i]
            continue
        settings = json.dumps([_relevant(run.config), run.last_epoch], sort_keys=True, default=str)
        seeds = [(settings, nth) for nth in range(i + 1)]
        for key in map(repr, seeds):
            group = groups.setdefault(key, [])
            if all(seed_of(runs[other]) != seed_of(run) for other in group):
                group.append(i)
                break
    return list(groups.values())


def seed_of(run: EvaluatedRun) -> int | None:
    """The seed of a run."""
    seed = None if run.config is None else run.config.get("seed")
    return seed if isinstance(seed, int) else None


def group_names(groups: Sequence[Sequence[EvaluatedRun]]) -> list[str]:
    """Names of rows: of one run its name, of several the recipe and the settings that differ."""
    names = []
    own: dict[int, str] = {}
    for last_epoch in (False, True):
        singles = [group[0] for group in groups if len(group) == 1 and group[0].last_epoch is last_epoch]
        found = distinct_names([(run.name, run.path) for run in singles])
        own |= dict(zip(map(id, singles), found, strict=True))
    several = [group[0] for group in groups if len(group) > 1]
    for group in groups:
        first = group[0]
        epoch = " (last epoch)" if first.last_epoch else ""
        if len(group) == 1:
            names.append(own[id(first)] + epoch)
            continue
        alike = [other for other in several if other.recipe == first.recipe]
        names.append(", ".join([first.recipe or first.name, *_apart(first, alike)]) + epoch)
    return [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]


def _apart(run: EvaluatedRun, alike: Sequence[EvaluatedRun]) -> list[str]:
    """The settings in which a run differs from others of its recipe."""
    flat = [_flat(_relevant(other.config or {})) for other in alike]
    own = _flat(_relevant(run.config or {}))
    keys = [key for key in own if any(other.get(key) != own[key] for other in flat)]
    return [f"{key} {setting(own[key])}" for key in keys[:MOST_SETTINGS]]


def _relevant(config: Mapping[str, object]) -> dict[str, object]:
    """The settings that trained weights depend on, without the seed."""
    kept = {key: value for key, value in config.items() if key not in ("seed", "evaluation", "runtime")}
    runtime = config.get("runtime")
    return {**kept, "precision": runtime.get("precision") if isinstance(runtime, Mapping) else None}


def _flat(settings: Mapping[str, object], where: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{where}{key}.")
        else:
            found[f"{where}{key}"] = value
    return found
