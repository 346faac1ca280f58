"""The numbers of an evaluation, computed from its per-example table alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from robustly.evaluation.evidence import CURVE
from robustly.statistics import Proportion

Table = Mapping[str, Tensor]


def metrics(
    table: Table,
    *,
    attacks: Sequence[str],
    certificates: Mapping[str, str],
    classes: Sequence[str],
    epsilon: float,
    curve: Sequence[float],
) -> dict[str, Any]:
    """Clean, per-attack, worst-case, certified, per-class and security-curve numbers, as plain values.

    Args:
        table: the evidence table.
        attacks: names of the attacks.
        certificates: names of the certificates, each with the classifier that it speaks of ("model", or another).
        classes: class names.
        epsilon: the evaluated radius.
        curve: radii of the security curve, ascending; empty without one.
    """
    of_model = [name for name, classifier in certificates.items() if classifier == "model"]
    correct = table["clean_prediction"] == table["label"]
    worst = ~table["worst_case.broken"]
    found: dict[str, Any] = {
        "clean": _proportion(correct, "correct"),
        "attacks": {name: _attack(table, name) for name in attacks},
        "worst_case": _proportion(worst, "robust") | _eight_bit(~table["worst_case.broken_8bit"]),
        "certified": _certified(table, of_model, epsilon),
        "certificates": [
            {"of": classifier} | (_certified(table, [name], epsilon) or {})
            for name, classifier in certificates.items()
        ],
        "per_class": _per_class(table["label"], correct, worst, classes),
        "security_curve": _curve(table, correct, curve, of_model),
        "invalid": int(torch.stack([table[f"{name}.invalid"] for name in attacks]).any(0).sum()) if attacks else 0,
    }
    return found


def contradictions(table: Table, attacks: Sequence[str], certificates: Mapping[str, str]) -> Tensor:
    """Rows that are certified at a radius at which an adversarial example of them is stored, `(N,)` bool."""
    nearest = torch.full((len(table["label"]),), torch.inf, dtype=torch.float64)
    for name in attacks:
        distance = table[f"{name}.distance"].double().nan_to_num(torch.inf)
        nearest = torch.minimum(nearest, distance)
    found = torch.zeros(len(nearest), dtype=torch.bool)
    for name, classifier in certificates.items():
        if classifier == "model":
            correct = table[f"certificate.{name}.prediction"] == table["label"]
            found |= correct & (table[f"certificate.{name}.radius"].double() * (1 - 1e-5) > nearest + 1e-6)
    return found


def _proportion(hits: Tensor, noun: str) -> dict[str, Any]:
    share = Proportion(int(hits.sum()), len(hits))
    return {
        noun: share.hits,
        "count": share.count,
        "accuracy": share.value,
        "interval": list(share.interval),
    }


def _eight_bit(hits: Tensor) -> dict[str, Any]:
    share = Proportion(int(hits.sum()), len(hits))
    return {"accuracy_8bit": share.value, "interval_8bit": list(share.interval)}


def _attack(table: Table, name: str) -> dict[str, Any]:
    tried = table[f"{name}.tried"]
    passes = {
        f"mean_{kind}": float(table[f"{name}.{kind}"].double().sum() / tried.sum().clamp_min(1))
        for kind in ("forwards", "backwards")
    }
    robust = _proportion(~table[f"{name}.broken"], "robust")
    return robust | _eight_bit(~table[f"{name}.broken_8bit"]) | passes | {"tried": int(tried.sum())}


def _certified(table: Table, certificates: Sequence[str], epsilon: float) -> dict[str, Any] | None:
    if not certificates:
        return None
    held = torch.zeros(len(table["label"]), dtype=torch.bool)
    for name in certificates:
        correct = table[f"certificate.{name}.prediction"] == table["label"]
        held |= correct & (table[f"certificate.{name}.radius"] >= epsilon)
    return {"name": " or ".join(certificates), "radius": epsilon} | _proportion(held, "robust")


def _per_class(label: Tensor, correct: Tensor, worst: Tensor, classes: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for index, name in enumerate(classes):
        of_class = label == index
        if not bool(of_class.any()):
            continue
        clean, robust = (Proportion(int((hits & of_class).sum()), int(of_class.sum())) for hits in (correct, worst))
        rows.append(
            {
                "class": name,
                "count": clean.count,
                "clean": clean.value,
                "clean_interval": list(clean.interval),
                "robust": robust.value,
                "robust_interval": list(robust.interval),
            }
        )
    return rows


def _curve(
    table: Table, correct: Tensor, radii: Sequence[float], certificates: Sequence[str]
) -> dict[str, Any] | None:
    if not radii:
        return None
    distance = table[f"{CURVE}.distance"]
    tried = ~distance.isnan()
    shares = [Proportion(int(correct[tried].sum()), int(tried.sum()))]
    shares += [Proportion(int((distance[tried] > radius).sum()), int(tried.sum())) for radius in radii]
    certified = None
    if certificates:
        held = torch.zeros((len(radii) + 1, len(correct)), dtype=torch.bool)
        for name in certificates:
            certain = table[f"certificate.{name}.prediction"] == table["label"]
            radius = table[f"certificate.{name}.radius"]
            held |= torch.stack([certain & (radius >= wanted) for wanted in [0.0, *radii]])
        certified = held.double().mean(1).tolist()
    return {
        "count": int(tried.sum()),
        "epsilon": [0.0, *radii],
        "accuracy": [share.value for share in shares],
        "low": [share.interval[0] for share in shares],
        "high": [share.interval[1] for share in shares],
        "certified": certified,
    }
