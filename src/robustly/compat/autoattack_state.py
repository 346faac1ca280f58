"""The state file of an AutoAttack evaluation, in the layout of the autoattack package."""

import ast
import json
import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from robustly.files import write_text

SAVE_TIMEOUT = 60  # seconds; a constant of the layout without effect here: every batch is saved


@dataclass
class EvaluationState:
    """Progress of an evaluation, as AutoAttack and RobustBench store it in `state_path`.

    The fields of the JSON object are `_attacks_to_run`, `_run_attacks` (lists of names), `_robust_flags` (one
    boolean per example), `_clean_accuracy` (a share), `path`, `_last_saved` (ISO time) and `_SAVE_TIMEOUT`. The
    package itself writes `_attacks_to_run` as the text of a Python set, which is read here, too.

    Args:
        attacks_to_run: names, such as "apgd-ce".
        run_attacks: names of the finished attacks.
        robust_flags: True where the example is unbroken, `(N,)`; None before the clean pass.
        clean_accuracy: share of examples that are correct without attack; NaN before the clean pass.
    """

    attacks_to_run: set[str]
    run_attacks: set[str]
    robust_flags: Bool[Tensor, " n"] | None = None
    clean_accuracy: float = math.nan

    @property
    def robust_accuracy(self) -> float:
        """Share of unbroken examples.

        Raises:
            ValueError: the evaluation has not begun.
        """
        if self.robust_flags is None:
            raise ValueError("no examples have been evaluated yet: run the evaluation first")
        return float(self.robust_flags.double().mean())

    def to_disk(self, path: Path) -> None:
        """Write the file atomically."""
        content = {
            "_attacks_to_run": sorted(self.attacks_to_run),
            "path": str(path),
            "_run_attacks": sorted(self.run_attacks),
            "_robust_flags": None if self.robust_flags is None else self.robust_flags.tolist(),
            "_last_saved": str(datetime.now()),  # noqa: DTZ005, RUF100 (the layout has local time without zone)
            "_SAVE_TIMEOUT": SAVE_TIMEOUT,
            "_clean_accuracy": self.clean_accuracy,
        }
        write_text(path, json.dumps(content))

    @staticmethod
    def from_disk(path: Path) -> "EvaluationState":
        """Read the file of this class or of the autoattack package.

        Raises:
            ValueError: the file has other content.
            OSError: the file cannot be read.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            flags = content["_robust_flags"]
            return EvaluationState(
                _names(content["_attacks_to_run"]),
                _names(content["_run_attacks"]),
                None if flags is None else torch.tensor(flags, dtype=torch.bool),
                float(content["_clean_accuracy"]),
            )
        except (KeyError, TypeError, ValueError, SyntaxError) as error:
            raise ValueError(f"{path} is not a state of an AutoAttack evaluation: {error!r}") from error


def _names(value: Any) -> set[str]:
    if value == "set()":
        return set()
    return {str(name) for name in (ast.literal_eval(value) if isinstance(value, str) else value)}
