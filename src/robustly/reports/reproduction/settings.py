"""Settings of the runs beside those of the paper."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from robustly.reports.formats import count, setting
from robustly.reports.tables.evaluations import EvaluatedRun

MOST_VALUES = 6
"""Largest number of different values that are named."""
_KEYS = {
    "data": ("data", "source"),
    "network": ("model", "name"),
    "width": ("model", "width"),
    "guide": ("guide", "name"),
    "threat": ("threat",),
    "epochs": ("training", "epochs"),
    "batch_size": ("training", "batch_size"),
    "steps": ("method", "inner", "steps"),
    "attack_mode": ("method", "inner", "mode"),
}
SETTINGS = {
    "data": "Data",
    "network": "Network",
    "width": "Width of the network",
    "guide": "Guide",
    "threat": "Threat in training",
    "epochs": "Epochs",
    "batch_size": "Batch size",
    "steps": "Steps of the training attack",
    "attack_mode": "Mode of the network in the training attack",
    "tested": "Threat in the test",
    "images": "Test images",
    "aa_images": "Test images of AutoAttack",
}
"""Titles of settings by key."""


@dataclass(frozen=True)
class Setting:
    """One setting: its title, its value in the paper (empty if unknown) and in the runs."""

    title: str
    paper: str
    here: str


def settings_beside(runs: Iterable[EvaluatedRun], paper: Mapping[str, str]) -> tuple[Setting, ...]:
    """Settings of evaluated runs, with those of the paper.

    Args:
        runs: the runs.
        paper: settings of the paper in words, by the keys of `SETTINGS`.
    """
    values: dict[str, dict[str, None]] = {key: {} for key in SETTINGS}
    for run in runs:
        for key, path in _KEYS.items():
            value = _value(run.config, path)
            if value is not None:
                values[key][setting(value)] = None
        for one in run.evaluations:
            data, suite = one.evaluation.data, one.evaluation.suite
            values["tested"][one.evaluation.threat.text] = None
            values["aa_images" if suite.name == "aa_standard" else "images"][count(data.count)] = None
    return tuple(
        Setting(title, paper.get(key, ""), _words(list(values[key])))
        for key, title in SETTINGS.items()
        if values[key] or key in paper
    )


def _value(config: Mapping[str, object] | None, path: tuple[str, ...]) -> object:
    value: object = config
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _words(values: list[str]) -> str:
    more = f" and {len(values) - MOST_VALUES} more" if len(values) > MOST_VALUES else ""
    return ", ".join(sorted(values, key=lambda text: (len(text), text))[:MOST_VALUES]) + more
