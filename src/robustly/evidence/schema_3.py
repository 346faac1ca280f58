"""Conversion of evidence of schema 3 to the current schema."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustly.evidence.schema import RESERVED

OLD_RULE = (
    "The 8-bit numbers follow the rule of evidence before schema 4: the first success of each attack was rounded "
    "towards the clean image, and no other 8-bit image was searched for. They overstate the accuracy against an "
    "attacker who saves files: evaluate again for the present rule."
)


def summary_of_schema_3(values: Mapping[str, Any]) -> dict[str, Any]:
    """The summary with a warning that its 8-bit numbers have an older meaning, and no passes spent on them.

    Raises:
        KeyError: a field is missing.
    """
    attacks = {name: {**entry, "mean_passes_8bit": 0.0} for name, entry in values["attacks"].items()}
    return {**values, "attacks": attacks, "warnings": [*values["warnings"], OLD_RULE]}


def columns_of_schema_3(columns: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The columns of a table, with zero passes spent on images of 8 bits."""
    found = dict(columns)
    for name, values in columns.items():
        owner, _, column = name.partition(".")
        if column == "broken_8bit" and owner not in RESERVED:
            found[f"{owner}.passes_8bit"] = np.zeros(len(values), dtype=np.int64)
    return found
