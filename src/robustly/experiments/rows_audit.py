"""Audit of the data: test rows are those of the run, and those seen in training are counted as stated."""

from dataclasses import replace
from pathlib import Path

from robustly.data import DataConfig, ImageData, row_digests
from robustly.evaluation import Check
from robustly.evidence import Summary
from robustly.evidence.domains import stated_part
from robustly.experiments.configuration import RunConfig, build_config
from robustly.experiments.run_data import SeenRows, check_test_rows, kept_rows, other_test_rows, seen_rows


def rows_checks(folder: Path, config: RunConfig, summary: Summary, data: ImageData) -> tuple[Check, ...]:
    """Check the test rows against the record of the run, and count again those that were trained or selected on.

    Args:
        folder: the run.
        config: settings of the run, from `config.yaml`.
        summary: the stated summary.
        data: the test rows, loaded with the settings that the summary states.

    Raises:
        RunError: the settings are those of the run, but the data of the run have changed, so that no audit is
            possible; or the record is damaged.
    """
    part = stated_part(summary.data.split)
    if build_config({"data": summary.data.settings}).data == _own(config, summary):
        check_test_rows(folder, config, data, part)
    kept = kept_rows(folder, config)
    if kept is None:
        name = "the run has no record of its rows, so the images seen in training are unknown"
        other, found = "", SeenRows()
    else:
        name = "the test images are those that the run recorded at its start"
        rows = row_digests(data)
        other, found = other_test_rows(kept, rows, part), seen_rows(kept, rows)
    stated = SeenRows(summary.data.trained_on, summary.data.selected_on)
    pairs = {
        "trained on": (stated.trained_on, found.trained_on),
        "selected on": (stated.selected_on, found.selected_on),
    }
    wrong = [
        f"{_words(said)} {key}, counted {_words(counted)}"
        for key, (said, counted) in pairs.items()
        if said != counted and not (said is None and counted == 0)
    ]
    counts = f"test images that were trained on ({_words(stated.trained_on)}) or selected on"
    return (
        Check(name, other),
        Check(f"{counts} ({_words(stated.selected_on)})", f"stated {' and '.join(wrong)}" if wrong else ""),
    )


def _own(config: RunConfig, summary: Summary) -> DataConfig:
    """The run's settings of the data, with the number of test rows of an evaluation."""
    settings = summary.data.settings or {}
    limit = settings.get("test_limit")
    return replace(config.data, test_limit=limit if isinstance(limit, int) and limit > 0 else None)


def _words(number: int | None) -> str:
    return "unknown" if number is None else str(number)
