"""Conversion of evidence of schema 4 to the current schema."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustly.evidence.schema import CERTIFICATE


def summary_of_schema_4(values: Mapping[str, Any]) -> dict[str, Any]:
    """The summary with certificates whose stages and reasons are not recorded, and without the interval.

    Raises:
        KeyError: a field is missing.
    """
    certificates = [{**entry, "stages": {}, "reasons": {}} for entry in values["certificates"]]
    return {**values, "certificates": certificates, "interval": None}


def columns_of_schema_4(columns: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The columns of a table; stage, reason, work and time of certificates are not recorded."""
    found = dict(columns)
    for name, values in columns.items():
        prefix, _, column = name.rpartition(".")
        if column == "verdict" and prefix.startswith(f"{CERTIFICATE}."):
            count = len(values)
            found[f"{prefix}.stage"] = found[f"{prefix}.reason"] = np.full(count, "")
            found[f"{prefix}.work"] = np.zeros(count, dtype=np.int64)
            found[f"{prefix}.seconds"] = np.full(count, np.nan)
    return found
