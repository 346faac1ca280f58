"""Adaptive attacks: gradients through non-differentiable stages, through randomness, and around detectors.

A defence must be evaluated with attacks written against it (Tramer, Carlini, Brendel and Madry, NeurIPS 2020).
Each class here is an `nn.Module` that wraps a defended model, so that every attack of this package runs on it
unchanged; `docs/adaptive.md` has the checklist and worked examples.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from robustly.attacks.core.contract import AttackError, Images
from robustly.objectives import ClassificationGoal
from robustly.randomness import derive_seed

Stage = Callable[[Tensor], Tensor]


class BPDA(nn.Module):
    """Stage without useful gradient: exact in the forward pass, a substitute in the backward pass.

    Backward pass differentiable approximation (Athalye, Carlini and Wagner, ICML 2018, sec. 4.1). The identity is
    the substitute for stages whose output is close to their input: quantisation, JPEG, denoising.

    Args:
        stage: function of the defence, from images to images or features.
        backward: "identity", or a differentiable function of the same input whose gradient is used instead.

    Raises:
        AttackError: a string other than "identity"; at a call, a substitute whose output has another shape than
            that of the stage.
    """

    def __init__(self, stage: Stage, backward: str | Stage = "identity") -> None:
        if isinstance(backward, str) and backward != "identity":
            raise AttackError(f"backward must be 'identity' or a differentiable function, got {backward!r}")
        super().__init__()
        self.stage = stage
        self.substitute: Stage = nn.Identity() if isinstance(backward, str) else backward

    def forward(self, x: Images) -> Float[Tensor, "n ..."]:
        """Output of the stage, bit for bit, with the gradient of the substitute."""
        with torch.no_grad():
            exact = self.stage(x)
        near = self.substitute(x)
        if near.shape != exact.shape:
            raise AttackError(
                f"the substitute has shape {tuple(near.shape)}, the stage {tuple(exact.shape)}: they must be equal"
            )
        return exact + (near - near.detach())  # the bracket is exactly zero


class ExpectationOverTransformation(nn.Module):
    """A randomised model with its logits averaged over draws of its randomness.

    Expectation over transformation (Athalye, Engstrom, Ilyas and Kwok, ICML 2018): the gradient of the average is
    the average of the gradients. The draws are the same at every call and for every example. The wrapped model is
    therefore a function of each image alone, whatever the rest of the batch, so that attacks, confirmations and
    audits of it agree. Its verdict is that of the averaged logits; `accuracy_over_draws` measures the model on
    single draws.

    PyTorch's random numbers are seeded inside and restored afterwards. Randomness from other sources (NumPy,
    `random`) is not controlled.

    Args:
        model: the randomised model. Its randomness must not be switched off by evaluation mode.
        draws: number of draws, at least 1 (AutoAttack's "rand" version uses 20).
        seed: of the draws.
        vectorised: True evaluates all examples of a batch at once (`torch.func.vmap`). False evaluates them one by
            one, with the same result, for models that vmap does not support: branches on the values of an image.

    Raises:
        AttackError: fewer than one draw.
    """

    def __init__(self, model: nn.Module, draws: int = 20, seed: int = 0, vectorised: bool = True) -> None:
        if draws < 1:
            raise AttackError(f"draws must be at least 1, got {draws}")
        super().__init__()
        self.model, self.draws, self.seed, self.vectorised = model, draws, seed, vectorised

    def forward(self, x: Images) -> Float[Tensor, "n k"]:
        """Mean logits."""
        parts = []
        with forked_randomness(x.device):
            for draw in range(self.draws):
                parts.append(self._draw(x, derive_seed(self.seed, "draw", draw)))
        return torch.stack(parts).mean(0)

    def _draw(self, x: Images, seed: int) -> Float[Tensor, "n k"]:
        if len(x) == 0:
            nothing: Tensor = self.model(x)
            return nothing
        if self.vectorised:
            reseed(seed, x.device)
            logits: Tensor = torch.func.vmap(lambda image: self.model(image[None])[0], randomness="same")(x)
            return logits
        rows = []
        for row in range(len(x)):
            reseed(seed, x.device)
            rows.append(self.model(x[row : row + 1]))
        return torch.cat(rows)


class Detected(nn.Module):
    """A classifier and a detector of adversarial examples as one model with K + 1 classes, the last: "detected".

    With s the detector's score and t its threshold, logit K is max z + (s - t)(max z - min z): the prediction is
    the classifier's where s <= t and K where s > t. This is the combined model of Carlini and Wagner ("Adversarial
    examples are not easily detected", AISec 2017: (Z_D + 1) max Z_F), with logits counted from the lowest, so that
    it also holds where all of them are negative. The factor max z - min z is a constant to the gradient. Attack the
    model with `UndetectedGoal(y)` and the objective `undetected_margin`.

    Args:
        model: from images to logits `(N, K)`.
        detector: from images to scores `(N,)` or `(N, 1)`, larger is more suspicious; differentiable, or wrapped.
        threshold: scores above it are detected.
    """

    def __init__(self, model: nn.Module, detector: nn.Module, threshold: float) -> None:
        super().__init__()
        self.model, self.detector, self.threshold = model, detector, threshold

    def forward(self, x: Images) -> Float[Tensor, "n k1"]:
        """Logits `(N, K + 1)`."""
        logits = self.model(x)
        score = self.detector(x).reshape(len(logits)).to(logits)
        highest = logits.amax(1)
        # detached: its gradient would reward lowering all logits while s > t, where ascents stop making progress
        spread = (highest - logits.amin(1)).clamp_min(1e-6).detach()
        return torch.cat([logits, (highest + (score - self.threshold) * spread)[:, None]], dim=1)


@dataclass(frozen=True)
class UndetectedGoal(ClassificationGoal):
    """Misclassified, and not predicted as the last class, which means "detected"."""

    def reached(self, logits: Float[Tensor, "n k"]) -> Bool[Tensor, " n"]:
        """True where the prediction is a wrong class (the target, if there is one) other than the last."""
        return super().reached(logits) & (logits.argmax(1) != logits.shape[1] - 1)


def undetected_margin(logits: Float[Tensor, "n k"], goal: ClassificationGoal) -> Float[Tensor, " n"]:
    """max_{j not y, K} z_j - max(z_y, z_K) for logits whose last class K is "detected"; targeted: z_t - the same.

    Positive exactly where an untargeted `UndetectedGoal` is reached; targeted: where z_t is larger than the logits
    of the label and of "detected".

    Raises:
        AttackError: fewer than two classes beside the last.
    """
    if logits.shape[1] < 3:
        raise AttackError(
            f"two classes are required beside the last one for 'detected', got {logits.shape[1]} logits"
        )
    at_y = logits.gather(1, goal.y[:, None])[:, 0]
    held = torch.maximum(at_y, logits[:, -1])
    if goal.target is not None:
        return logits.gather(1, goal.target[:, None])[:, 0] - held
    others = logits.scatter(1, goal.y[:, None], torch.finfo(logits.dtype).min)
    return others[:, :-1].amax(1) - held


def accuracy_over_draws(
    model: nn.Module, x: Images, y: Int64[Tensor, " n"], draws: int = 10, seed: int = 1
) -> Float[Tensor, " n"]:
    """Share of the draws of a randomised model in which each image is classified correctly.

    A single draw is random; report the mean. The draws are independent of those of an
    `ExpectationOverTransformation` with another seed, to which the attack has adapted.
    """
    correct = torch.zeros(len(x), device=x.device)
    with forked_randomness(x.device), torch.no_grad():
        for draw in range(draws):
            reseed(derive_seed(seed, "draw", draw), x.device)
            correct += model(x).argmax(1) == y
    return correct / draws


@contextmanager
def forked_randomness(device: torch.device) -> Iterator[None]:
    """Restore the states of PyTorch's random generators at exit."""
    gpu = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpu, device_type="cuda"):
        yield


def reseed(seed: int, device: torch.device) -> None:
    """Seed PyTorch's generators of the CPU and of one device only."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
