"""The identity of an evaluation: everything that its evidence depends on."""

import json

from torch import nn

from robustly.data import ImageData
from robustly.documents import parse_json
from robustly.evaluation.suites.suite import Suite, settings
from robustly.evaluation.target import Mode
from robustly.evidence.provenance import software_versions
from robustly.models import weights_hash
from robustly.randomness import derive_seed
from robustly.threats import Threat


def evaluation_identity(
    model: nn.Module,
    data: ImageData,
    threat: Threat,
    suite: Suite,
    *,
    mode: Mode,
    seed: int,
    batch_size: int | None,
    curve_count: int | None,
) -> str:
    """Everything that the evidence of `evaluate` with these arguments depends on, as JSON text."""
    plans = [suite.plan(name) for name in suite.attacks]
    parts = [settings(part) for part in (*suite.attacks.values(), *suite.certificates.values())]
    return json.dumps(
        {
            "weights": weights_hash(model),
            "data": data.digest(),
            "threat": str(threat),
            "mode": mode,
            "seed": seed,
            "suite": suite.name,
            "suite's attacks": f"{derive_seed(repr(parts), repr(plans)):016x}",
            "batch size": batch_size,
            "curve_count": curve_count,
            "device": data.device.type,
            "version of robustly": software_versions()["robustly"],
        },
        sort_keys=True,
    )


def differences(one: str, other: str) -> list[str]:
    """Names of the fields in which two identities differ; none if one of them is not JSON text of an object."""
    try:
        here, there = parse_json(one, "identity"), parse_json(other, "identity")
        return [name for name in here if here[name] != there.get(name)]
    except (ValueError, AttributeError, TypeError):
        return []
