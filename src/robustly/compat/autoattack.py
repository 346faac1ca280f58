"""AutoAttack by the names of the autoattack package (github.com/fra31/auto-attack)."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn

from robustly.attacks import APGD, Attack, TargetedAPGD
from robustly.attacks.fab import FAB
from robustly.attacks.square import Square
from robustly.compat.autoattack_state import EvaluationState
from robustly.compat.goals import verdict_logits
from robustly.evaluation.suites.autoattack import autoattack
from robustly.models import as_classifier
from robustly.objectives import difference_of_logits_ratio
from robustly.randomness import KeyedGenerator, derive_seed
from robustly.threats.lp import ThreatModel

Version = Literal["standard", "plus", "rand", "custom"]
NORMS = {"Linf": "linf", "L2": "l2", "L1": "l1"}
SQUARE_HELPS = 0.002  # share of examples; a larger share broken by Square alone indicates masked gradients


class AutoAttack:
    """AutoAttack with the arguments and methods of the autoattack package.

    Images are in [0, 1]; the model returns logits. The attacks and their order are those of
    `evaluation.suites.autoattack`, in full precision. Random numbers are keyed by an example's place in `x_orig`:
    verdicts depend neither on `bs` nor on where a run was resumed. The attribute `attacks` holds the attacks by
    name; they can be replaced there.

    Args:
        model: from images in [0, 1] to logits; it is left unchanged.
        norm: "Linf", "L2" or "L1".
        eps: the radius.
        seed: of the random numbers; None is 0, not the time of day.
        verbose: True prints accuracies.
        attacks_to_run: with version "custom", names in their order: apgd-ce, apgd-dlr, fab, square, apgd-t, fab-t.
        version: "standard", "plus", "rand" or "custom".
        device: device of the images; None is that of the model.
        log_path: a text file to which the printed lines are appended.

    Raises:
        ValueError: an unknown norm, version or attack; attacks without "custom"; an invalid epsilon.
    """

    def __init__(
        self,
        model: nn.Module,
        norm: str = "Linf",
        eps: float = 0.3,
        seed: int | None = None,
        verbose: bool = True,
        attacks_to_run: Sequence[str] = (),
        version: Version = "standard",
        *,
        device: str | torch.device | None = None,
        log_path: str | Path | None = None,
    ) -> None:
        if norm not in NORMS:
            raise ValueError(f"AutoAttack's norms are {', '.join(NORMS)}, got {norm!r}")
        if version not in get_args(Version):
            raise ValueError(f"AutoAttack's versions are {', '.join(get_args(Version))}, got {version!r}")
        if attacks_to_run and version != "custom":
            raise ValueError("attacks_to_run requires version='custom': the other versions have fixed attacks")
        self.model, self.norm, self.epsilon, self.seed, self.verbose = (
            as_classifier(model),
            norm,
            eps,
            seed,
            verbose,
        )
        self.version, self.log_path = version, None if log_path is None else Path(log_path)
        self.threat = ThreatModel(NORMS[norm], eps)
        parameter = next(self.model.parameters(), None)
        own = torch.device("cpu") if parameter is None else parameter.device
        self.device = own if device is None else torch.device(device)
        self.attacks: dict[str, Attack] = dict(_attacks(version, NORMS[norm]))
        self.attacks_to_run = list(attacks_to_run) if version == "custom" else list(self.attacks)

    def run_standard_evaluation(
        self,
        x_orig: Tensor,
        y_orig: Int64[Tensor, " n"],
        bs: int = 250,
        return_labels: bool = False,
        state_path: str | Path | None = None,
    ) -> Tensor | tuple[Tensor, Int64[Tensor, " n"]]:
        """Run the attacks in turn, each on the unbroken examples.

        Args:
            x_orig: images `(N, ...)` in [0, 1].
            y_orig: true labels.
            bs: images per batch.
            return_labels: True also returns the model's predictions.
            state_path: file of the progress, written after every batch in the package's layout. If it exists, the
                evaluation is resumed from it. The file does not hold images: examples that were broken before are
                returned as the original images.

        Returns:
            Images `(N, ...)`: adversarial ones of examples that were broken, else the originals; and predictions.

        Raises:
            ValueError: an unknown attack; a state of other attacks or another number of examples.
        """
        _, x_adv = self.evaluated(x_orig, y_orig, bs, state_path)
        return (x_adv, self._predictions(x_adv, bs).to(y_orig)) if return_labels else x_adv

    def run_standard_evaluation_individual(
        self, x_orig: Tensor, y_orig: Int64[Tensor, " n"], bs: int = 250, return_labels: bool = False
    ) -> dict[str, Tensor | tuple[Tensor, Int64[Tensor, " n"]]]:
        """Run every attack by itself on all images; see `run_standard_evaluation`."""
        found, everything = {}, self.attacks_to_run
        try:
            for name in everything:
                self.attacks_to_run = [name]
                found[name] = self.run_standard_evaluation(x_orig, y_orig, bs, return_labels)
        finally:
            self.attacks_to_run = everything
        return found

    def evaluated(
        self, x_orig: Tensor, y_orig: Int64[Tensor, " n"], bs: int = 250, state_path: str | Path | None = None
    ) -> tuple[EvaluationState, Tensor]:
        """Final state of `run_standard_evaluation`, and its images."""
        unknown = [name for name in self.attacks_to_run if name not in self.attacks]
        if unknown or not self.attacks_to_run:
            raise ValueError(
                f"attacks_to_run must name some of {', '.join(self.attacks)}, got {', '.join(unknown) or 'none'}"
            )
        path = None if state_path is None else Path(state_path)
        state, x_adv = self._state(path, len(x_orig)), x_orig.detach().clone()
        begun = time.perf_counter()
        if state.robust_flags is None:
            state.robust_flags = (self._predictions(x_orig, bs) == y_orig.to(self.device)).cpu()
            state.clean_accuracy = state.robust_accuracy
            self._save(state, path)
        self._print(f"initial accuracy: {state.clean_accuracy:.2%}")
        self._check(x_orig[:bs])
        flags = state.robust_flags
        for name in [name for name in self.attacks_to_run if name not in state.run_attacks]:
            before = state.robust_accuracy
            for rows in _chunks(flags.nonzero()[:, 0], bs):
                adversarial, images = self._attacked(name, x_orig, y_orig, rows)
                flags[rows[adversarial]] = False
                x_adv[rows[adversarial]] = images[adversarial].to(x_adv)
                self._save(state, path)
            state.run_attacks.add(name)
            self._save(state, path)
            seconds = time.perf_counter() - begun
            self._print(
                f"robust accuracy after {name.upper()}: {state.robust_accuracy:.2%} (total time {seconds:.1f} s)"
            )
            if name == "square" and before - state.robust_accuracy > SQUARE_HELPS:
                self._print(
                    "Warning: Square broke examples that gradients did not: robust accuracy is an upper bound, "
                    "write an adaptive attack"
                )
        farthest = self.threat.distance(x_adv, x_orig).max() if len(x_orig) else torch.zeros(())
        self._print(f"max {self.norm} perturbation: {float(farthest):.5f}")
        self._print(f"robust accuracy: {state.robust_accuracy:.2%}")
        return state, x_adv

    def clean_accuracy(self, x_orig: Tensor, y_orig: Int64[Tensor, " n"], bs: int = 250) -> float:
        """Share of images that the model classifies correctly."""
        return float((self._predictions(x_orig, bs) == y_orig.to(self.device)).double().mean())

    def _attacked(
        self, name: str, x_orig: Tensor, y_orig: Tensor, rows: Int64[Tensor, " m"]
    ) -> tuple[Bool[Tensor, " m"], Tensor]:
        x, y = x_orig[rows].to(self.device), y_orig[rows].to(self.device)
        seed = derive_seed(self.seed or 0, "evaluation", name.replace("-", "_"))  # as `evaluate` draws them
        generator = KeyedGenerator(seed, rows.to(self.device))
        found = self.attacks[name](self.model, x, y, threat=self.threat, generator=generator)
        confirmed = verdict_logits(self.model, found.x_adv).argmax(1) != y
        return (found.broken & (confirmed | found.invalid)).cpu(), found.x_adv

    def _predictions(self, x: Tensor, bs: int) -> Int64[Tensor, " n"]:
        parts = [verdict_logits(self.model, part.to(self.device)).argmax(1) for part in _chunks(x, bs)]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64, device=self.device)

    def _state(self, path: Path | None, count: int) -> EvaluationState:
        if path is None or not path.exists():
            return EvaluationState(set(self.attacks_to_run), set())
        state = EvaluationState.from_disk(path)
        if state.attacks_to_run != set(self.attacks_to_run):
            raise ValueError(f"{path} is the state of {', '.join(sorted(state.attacks_to_run))}: other attacks")
        if state.robust_flags is not None and len(state.robust_flags) != count:
            raise ValueError(f"{path} is the state of {len(state.robust_flags)} examples, there are {count}")
        self._print(f"resumed from {path}: only adversarial examples of this run are returned")
        return state

    def _check(self, x: Tensor) -> None:
        """Warn, as the package, of randomness, and of probabilities instead of logits."""
        if len(x) == 0:
            return
        first, second = (verdict_logits(self.model, x.to(self.device)) for _ in range(2))
        if self.version != "rand" and bool((first - second).abs().max() > 1e-4 * first.abs().max().clamp_min(1.0)):
            self._print("Warning: the model's outputs for equal images differ: use version='rand'")
        if bool(((first > -1e-5) & (first < 1 + 1e-5)).all() and ((first.sum(1) - 1).abs() < 1e-5).all()):
            self._print("Warning: the model seems to return probabilities: remove the final softmax")

    def _save(self, state: EvaluationState, path: Path | None) -> None:
        if path is not None:
            state.to_disk(path)

    def _print(self, line: str) -> None:
        if self.verbose:
            sys.stdout.write(line + "\n")
            if self.log_path is not None:
                with self.log_path.open("a", encoding="utf-8") as log:
                    log.write(line + "\n")


def _chunks(values: Tensor, size: int) -> list[Tensor]:
    return [values[first : first + size] for first in range(0, len(values), size)]


def _attacks(version: Version, norm: str) -> Mapping[str, Attack]:
    """Attacks by the package's names; "custom" has all of them, with the package's own defaults."""
    if version != "custom":
        suite = autoattack(version, norm, precision="full")
        return {name.replace("_", "-"): attack for name, attack in suite.attacks.items()}
    sparse = norm == "l1"
    return {
        "apgd-ce": APGD(restarts=5, large_epsilon=sparse),
        "apgd-dlr": APGD(restarts=5, objective=difference_of_logits_ratio, large_epsilon=sparse),
        "fab": FAB(restarts=5, stop_inside=True),
        "square": Square(queries=5000),
        "apgd-t": TargetedAPGD(targets=5 if sparse else 9, large_epsilon=sparse),
        "fab-t": FAB(targets=9, stop_inside=True),
    }
