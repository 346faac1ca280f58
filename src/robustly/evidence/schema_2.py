"""Conversion of evidence of schema 2 to the current schema."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustly.evidence.provenance import size_unit
from robustly.evidence.schema import CERTIFICATE, Verdict


def summary_of_schema_2(values: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the fields of a summary; no field is lost.

    The failure probability of certificates is None, because schema 2 does not have it.

    Raises:
        KeyError: a field is missing.
    """
    threat, curve = values["threat"], values["security_curve"]
    attacks = {name: dict(entry) for name, entry in values["attacks"].items()}
    seconds = {name: entry.pop("seconds", None) for name, entry in attacks.items()}
    return {
        **values,
        "attacks": attacks,
        "seconds": seconds,
        "threat": {
            "text": threat["text"],
            "kind": threat["norm"],
            "words": threat["words"],
            "box": threat["box"],
            "limit": threat["epsilon"],
            "limit_text": threat["epsilon_text"],
            "unit": size_unit(threat["norm"]),
            "norm": threat["norm"],
        },
        "certificates": [_certificate(entry) for entry in values["certificates"]],
        "security_curve": None if curve is None else {key: curve[key] for key in curve if key != "attack"},
    }


def columns_of_schema_2(columns: Mapping[str, NDArray[Any]], values: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Convert the columns of a table; verdicts are derived from the radii.

    Args:
        columns: columns of schema 2, with `certificate.NAME.radius` and `.prediction` of each certificate.
        values: the fields of the summary.

    Raises:
        KeyError: a column or field is missing.
    """
    found = dict(columns)
    for entry in values["suite"]["certificates"]:
        prefix = f"{CERTIFICATE}.{entry['name']}."
        radius = found.pop(f"{prefix}radius")
        verified = (radius >= values["threat"]["epsilon"]) & (found[f"{prefix}prediction"] == found["label"])
        found[f"{prefix}verdict"] = np.where(verified, Verdict.VERIFIED, Verdict.UNKNOWN).astype(np.int8)
        found[f"{prefix}radius"] = radius.astype(np.float64)
        found[f"{prefix}lower_bound"] = np.full(len(radius), np.nan)
    return found


def _certificate(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a certificate's numbers; rows that are not verified become unknown."""
    rest = {word.word: 0 for word in Verdict}
    verdicts = rest | {"verified": entry["robust"], "unknown": entry["count"] - entry["robust"]}
    renamed = {key: value for key, value in entry.items() if key != "of"}
    return renamed | {"certifies": entry["of"], "failure_probability": None, "verdicts": verdicts}
