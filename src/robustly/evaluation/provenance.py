"""What was tested on what with what, in plain values: the part of a summary that is no result."""

import platform
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from robustly.evaluation.evidence import SCHEMA
from robustly.evaluation.suites.suite import Suite, settings
from robustly.evaluation.target import EvaluationTarget, Mode
from robustly.models import weights_hash


def describe(target: EvaluationTarget, suite: Suite, mode: Mode) -> dict[str, Any]:
    """The description of an evaluation, as `summary.json` holds it."""
    threat, data = target.threat, target.data
    assert not isinstance(threat.epsilon, Tensor)  # refused at the door
    return {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "run": "",
        "model": {
            "name": type(target.model).__name__,
            "parameters": sum(parameter.numel() for parameter in target.model.parameters()),
            "weights_sha256": weights_hash(target.model),
            "checkpoint": None,
        },
        "data": {
            "source": data.source,
            "split": None,
            "count": len(data),
            "sha256": data.digest(),
            "classes": list(data.classes),
            "note": None,
        },
        "threat": {
            "text": str(threat),
            "norm": threat.norm,
            "epsilon": float(threat.epsilon),
            "epsilon_text": threat.epsilon_text,
            "box": list(threat.box),
            "words": threat.words(),
        },
        "suite": {
            "name": suite.name,
            "mode": mode,
            "seed": target.seed,
            "batch_size": target.batch_size,
            "attacks": [
                {
                    "name": name,
                    "title": suite.title(name),
                    "settings": settings(attack),
                    "plan": asdict(suite.plan(name)),
                }
                for name, attack in suite.attacks.items()
            ],
            "certificates": [
                {
                    "name": name,
                    "title": suite.title(name),
                    "certifies": certificate.certifies,
                    "settings": settings(certificate),
                }
                for name, certificate in suite.certificates.items()
            ],
            "curve": suite.curve,
        },
        "versions": {
            "robustly": version("robustly"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "device": str(data.images.device),
    }
