"""Audit of the data: test rows are those of the run, and those seen in training are counted as stated."""

from dataclasses import replace
from pathlib import Path

from robustly.data import DataConfig, ImageData, row_digests
from robustly.evaluation import Check
from robustly.evidence import Summary
from robustly.experiments.configuration import RunConfig
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
    if summary.data.settings == _plain(config, summary):
        check_test_rows(folder, config, data)
    kept = kept_rows(folder, config)
    if kept is None:
        name = "the run has no record of its rows, so the images seen in training are unknown"
        other, found = "", SeenRows()
    else:
        name = "the test images are those that the run recorded at its start"
        rows = row_digests(data)
        other, found = other_test_rows(kept, rows), seen_rows(kept, rows)
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


def _plain(config: RunConfig, summary: Summary) -> dict[str, object]:
    """The run's settings of the data, with the number of test rows of an evaluation."""
    settings = summary.data.settings or {}
    limit = settings.get("test_limit")
    data: DataConfig = replace(config.data, test_limit=limit if isinstance(limit, int) and limit > 0 else None)
    plain: dict[str, object] = replace(config, data=data).as_plain()["data"]
    return plain


def _words(number: int | None) -> str:
    return "unknown" if number is None else str(number)
