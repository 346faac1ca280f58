"""Worst case over several threat models: robust only if robust to every one of them."""

from collections.abc import Sequence
from typing import Any

import torch

from robustly.evaluation.evidence import Evidence, EvidenceError
from robustly.statistics import Proportion


def union_of_threats(evidences: Sequence[Evidence]) -> dict[str, Any]:
    """Robust accuracy under each of several threats, under their union, and on average.

    Each threat is evaluated on all examples, not on the unbroken ones of another, so that each number is valid by
    itself. The union counts the examples that are unbroken under all (Croce and Hein, "Adversarial robustness
    against multiple and single l_p-threat models via quick fine-tuning of robust classifiers", ICML 2022). The
    average is not a worst case. Its interval is that of a share of as many examples, at least as wide as its own.

    Args:
        evidences: at least two evaluations of one model on one data set, each under another threat.

    Returns:
        `threats` (one entry each, in the order given), `union` and `average`, with Wilson intervals, plain.

    Raises:
        EvidenceError: fewer than two; another model, other images or labels; the same threat twice.
    """
    if len(evidences) < 2:
        raise EvidenceError(f"a union needs at least two evaluations, got {len(evidences)}")
    first = evidences[0]
    for other in evidences[1:]:
        _check_same(first, other)
    names = [str(one.summary["threat"]["text"]) for one in evidences]
    if len(set(names)) < len(names):
        raise EvidenceError(f"a union takes one evaluation for each threat, got {', '.join(names)}")
    masks = torch.stack([~one.table["worst_case.broken"].bool() for one in evidences])
    shares = [int(held.sum()) for held in masks]
    count = masks.shape[1]
    mean = sum(shares) / len(shares)
    return {
        "count": count,
        "clean": _plain(int((first.table["clean_prediction"] == first.table["label"]).sum()), count),
        "threats": [
            {
                **{key: one.summary["threat"].get(key) for key in ("text", "norm", "epsilon_text", "words")},
                "suite": one.summary["suite"]["name"],
                "masking": list(one.summary.get("masking") or []),
                **_plain(held, count),
            }
            for one, held in zip(evidences, shares, strict=True)
        ],
        "union": _plain(int(masks.all(0).sum()), count),
        "average": {"accuracy": mean / count, "interval": list(Proportion(round(mean), count).interval)},
    }


def _check_same(first: Evidence, other: Evidence) -> None:
    mine, theirs = str(first.summary["threat"]["text"]), str(other.summary["threat"]["text"])
    for what, a, b in (
        ("models", first.summary["model"]["weights_sha256"], other.summary["model"]["weights_sha256"]),
        ("images", first.summary["data"]["sha256"], other.summary["data"]["sha256"]),
    ):
        if a != b:
            raise EvidenceError(
                f"the evaluations under {mine} and {theirs} are of different {what}: their union is not defined"
            )
    for column in ("id", "label"):
        if not torch.equal(first.table[column], other.table[column]):
            raise EvidenceError(
                f"the evaluations under {mine} and {theirs} differ in the examples' {column}s: "
                "their union is not defined"
            )


def _plain(held: int, count: int) -> dict[str, Any]:
    share = Proportion(held, count)
    return {"robust": held, "count": count, "accuracy": share.value, "interval": list(share.interval)}
