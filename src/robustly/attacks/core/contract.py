"""Contract of attacks: arguments, result, threats that an attack supports, and the state of the model."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustly.models.modes import modes_kept
from robustly.objectives import ClassificationGoal, Goal
from robustly.randomness import KeyedGenerator
from robustly.threats.any_order import AnyOrderSet
from robustly.threats.balls import L0Ball, L1Ball, L2Ball, LinfBall, LpBall
from robustly.threats.chain_set import BoxChainSet
from robustly.threats.contract import EditSet, Smooth, Threat, ThreatSet, has_no_gradient
from robustly.threats.corruption import CorruptionSet
from robustly.threats.parameter_box import ParameterBox
from robustly.threats.patch import PatchSet
from robustly.threats.precision import at_least_float32

ModelMode = Literal["eval", "train", "train_nostat"]
Images = Float[Tensor, "n ..."]
_ROUNDING = 1e-5
"""Excess over the box, as a share of its width, that resizing and arithmetic leave; such values are clipped."""


class AttackError(ValueError):
    """Invalid input of an attack; the message names what is allowed."""


@dataclass(frozen=True)
class Needs:
    """The threat sets that an attack is defined for.

    Args:
        sets: classes of sets. `ThreatSet` stands for every set with gradient steps, `EditSet` for every set of
            discrete edits.
        but_not: exceptions.
    """

    sets: tuple[type, ...]
    but_not: tuple[type, ...] = ()

    def accept(self, threat: Threat) -> bool:
        """Return True where the attack is defined for the threat."""
        return self._accept(threat.set_type)

    @property
    def norms(self) -> tuple[str, ...]:
        """Norms of the Lp balls among the sets."""
        return tuple(norm for norm, ball in _BALLS.items() if self._accept(ball))

    def _accept(self, kind: type) -> bool:
        general = EditSet if hasattr(kind, "candidates") else ThreatSet
        concrete = tuple(one for one in self.sets if one not in (ThreatSet, EditSet))
        return not issubclass(kind, self.but_not) and (general in self.sets or issubclass(kind, concrete))

    def words(self) -> str:
        """Names of the sets: "linf, l2, l1", "any Lp ball", "any threat but l0"."""
        names = {
            **{ThreatSet: "any threat", EditSet: "any set of edits", LpBall: "any Lp ball"},
            ParameterBox: "threats of a few bounded numbers (rotation, shift)",
            BoxChainSet: "chains of them",
            Smooth: "any threat with a roughness",
            PatchSet: "patches",
            AnyOrderSet: "chains in any order (joined by '&')",
            CorruptionSet: "corruptions",
        }
        listed = ", ".join(names.get(one) or _name(one) for one in self.sets)
        return listed + (f" but {', '.join(map(_name, self.but_not))}" if self.but_not else "")

    def refusal(self, threat: Threat) -> str:
        """End of the sentence that refuses a threat: "defined for linf, the threat is rotation:30"."""
        words, why = self.words(), ""
        if has_no_gradient(threat):
            words = words.replace("any threat", "any threat with gradients")
            why = ", which has no gradient: use exhaustive"
        return f"defined for {words}, the threat is {threat}{why}"


def _name(kind: type) -> str:
    return kind.norm if issubclass(kind, LpBall) else kind.__name__


ANY_THREAT = Needs((ThreatSet,))
ANY_BUT_L0 = Needs((ThreatSet,), but_not=(L0Ball,))
"""For attacks whose step size has the unit of the radius: under l0 the two units differ."""
ANY_BALL = Needs((LpBall,))
_BALLS: dict[str, type[LpBall]] = {ball.norm: ball for ball in (LinfBall, L2Ball, L1Ball, L0Ball)}


def lp_balls(*norms: str) -> Needs:
    """Requirement of the Lp balls of some norms."""
    return Needs(tuple(_BALLS[norm] for norm in norms))


@dataclass(frozen=True)
class AttackResult:
    """Outcome of an attack for each of N examples.

    Args:
        x_adv: inputs inside the threat set: an adversarial example where `broken`, otherwise the attack's failure
            point (the original, or the point of highest objective).
        broken: True where `x_adv` reaches the goal. Examples that are misclassified without attack count as broken
            at distance 0.
        distance: size of the perturbation of the nearest adversarial example found, in the threat's unit; infinity
            where none was found. For broken examples it is at most the threat's extent. Minimum-norm attacks put
            adversarial examples outside the threat set into `beyond`.
        forwards: forward passes spent on the example.
        backwards: input-gradient passes spent on the example.
        correct_iterates: number of iterates that the model classified correctly (kappa of GAIRAT, Zhang et al.
            2021). Samples that only estimate a gradient do not count.
        invalid: True where the model returned NaN or infinite values at any point.
        beyond: for minimum-norm attacks, the nearest adversarial example found for each input that is outside the
            threat set (other rows have no meaning); None for attacks that stay inside.
        margin: highest margin of the goal at any point of the search, `(N,)`: for classification
            max_{j != y} z_j - z_y. None where the attack does not compute it.
        zero_gradients: number of iterates at which the gradient was exactly zero, `(N,)`; None for attacks without
            gradients.
        theta: the threat's parameters of `x_adv`, `(N, ...)`; None for Lp balls, whose parameters are the input.
    """

    x_adv: Images
    broken: Bool[Tensor, " n"]
    distance: Float[Tensor, " n"]
    forwards: Int64[Tensor, " n"]
    backwards: Int64[Tensor, " n"]
    correct_iterates: Int64[Tensor, " n"]
    invalid: Bool[Tensor, " n"]
    beyond: Images | None = None
    margin: Float[Tensor, " n"] | None = None
    zero_gradients: Int64[Tensor, " n"] | None = None
    theta: Float[Tensor, "n ..."] | None = None


@runtime_checkable
class Attack(Protocol):
    """A search for adversarial examples.

    It leaves the model unchanged (train or eval mode of every module, `requires_grad` and `.grad` of every
    parameter, buffers) and has no state. Its result for an example depends on (model, x, y, threat, seed, example
    id) and not on the other examples of the batch.
    """

    @property
    def needs(self) -> Needs:
        """Threats that the attack is defined for; it rejects all others."""
        ...

    @property
    def minimum_norm(self) -> bool:
        """True for attacks that minimise the size of the perturbation, whatever the threat's extent.

        One run of such an attack gives the whole security curve.
        """
        ...

    def __call__(
        self,
        model: nn.Module,
        x: Images,
        y: Int64[Tensor, " n"] | Goal,
        *,
        threat: Threat,
        generator: KeyedGenerator,
    ) -> AttackResult:
        """Attack a batch.

        Args:
            model: any module from inputs to the outputs that the goal is defined for: logits `(N, K)` for labels.
            x: inputs `(N, ...)` inside the threat's box. For inputs in half precision the results are in float32:
                rounded to half precision they would be outside the threat set.
            y: true labels `(N,)`, or a `Goal` (such as a `ClassificationGoal` with target classes or reference
                logits).
            threat: the allowed perturbations.
            generator: random numbers, keyed by the examples' ids.

        Raises:
            AttackError: shapes that do not fit, inputs outside the box, labels that are not classes, a threat that
                the attack is not defined for.
        """
        ...


@contextmanager
def frozen(model: nn.Module, mode: ModelMode = "eval", full_precision: bool = True) -> Iterator[None]:
    """Freeze a model during an attack and restore it afterwards, also after an exception.

    Args:
        model: the model under attack. Its parameters require no gradient inside.
        mode: "eval"; "train" (modes unchanged: in training mode, batch statistics that also update the running
            ones); or "train_nostat" (batch statistics, running ones not updated).
        full_precision: True switches autocast and TF32 off.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    tracked = [(norm, norm.track_running_stats) for norm in norms]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = next((p.device.type for p in model.parameters()), "cpu")
    autocast = torch.autocast(device, enabled=not full_precision and torch.is_autocast_enabled(device))
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with modes_kept(model):
        try:
            if full_precision:  # the 10-bit mantissas of TF32 give other verdicts than the CPU that audits them
                torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
            for parameter in trainable:
                parameter.requires_grad_(False)
            if mode == "eval":
                model.eval()
            elif mode == "train_nostat":
                model.eval()
                for norm in norms:
                    norm.train()
                    norm.track_running_stats = False
            with torch.inference_mode(False), torch.enable_grad(), autocast:
                yield
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
            for parameter in trainable:
                parameter.requires_grad_(True)
            for norm, was_tracked in tracked:
                norm.track_running_stats = was_tracked


def reads_are_free(device: torch.device) -> bool:
    """Return True where reading a value does not wait for queued work: on the CPU."""
    return device.type == "cpu"


def prepare(x: Images, y: Int64[Tensor, " n"] | Goal, threat: Threat, *, check: bool = True) -> tuple[Images, Goal]:
    """Check a batch before an attack, and copy its images out of inference mode.

    Values that rounding has left just outside the box are clipped to it. Inputs in half precision become float32.

    Args:
        x: inputs `(N, ...)`.
        y: labels or a goal.
        threat: the threat, whose box is checked.
        check: False clips values outside the box without reading whether there are any, as that would wait for
            the device.

    Raises:
        AttackError: images that are not floats or lie outside the box; labels that do not fit the images.
    """
    goal = ClassificationGoal(y) if isinstance(y, Tensor) else y
    if not x.is_floating_point():
        raise AttackError(f"images must be floats in {list(threat.box)}, got {x.dtype}: divide uint8 by 255")
    if isinstance(goal, ClassificationGoal):
        _check_labels(x, goal)
    low, high = threat.box
    least, most = torch.stack(x.aminmax()).tolist() if x.numel() and check else (low, high)  # one read of both
    excess = max(low - least, most - high)
    if not excess <= _ROUNDING * (high - low):
        raise AttackError(
            f"images must lie in [{low:g}, {high:g}], got [{least:g}, {most:g}]: normalise in the model "
            "(robustly.wrap(model, mean=, std=)), not in the data"
        )
    with torch.inference_mode(False):
        x = at_least_float32(x.detach())
        return (x.clamp(low, high) if excess > 0 or not check else x.clone()), goal


def _check_labels(x: Images, goal: ClassificationGoal) -> None:
    if goal.y.shape != x.shape[:1] or goal.y.dtype != torch.int64:
        raise AttackError(f"labels must be int64 of shape ({len(x)},), got {goal.y.dtype} of {tuple(goal.y.shape)}")
    if goal.target is None:
        return
    if goal.target.shape != goal.y.shape or goal.target.dtype != torch.int64:
        raise AttackError(
            f"target classes must be int64 of shape ({len(x)},), got {goal.target.dtype} of "
            f"{tuple(goal.target.shape)}"
        )
    if bool((goal.target == goal.y).any()):
        raise AttackError("a target class equals the true label: targets must be other classes")


def check_output(output: Tensor, goal: Goal) -> Tensor:
    """Return the model's first output if it fits the goal.

    Raises:
        AttackError: an output that is not a tensor, or that `goal.check` rejects.
    """
    if not isinstance(output, Tensor):
        raise AttackError(f"the model must return a tensor, got {type(output).__name__}")
    try:
        goal.check(output)
    except ValueError as error:
        raise AttackError(str(error)) from None
    return output


def check_needs(threat: Threat, needs: Needs) -> None:
    """Reject a threat that an attack is not defined for.

    Raises:
        AttackError: the threat's sets are not among `needs`.
    """
    if not needs.accept(threat):
        raise AttackError(f"this attack is {needs.refusal(threat)}")


def check_ids(x: Images, generator: KeyedGenerator) -> None:
    """Reject a generator whose ids do not fit the images.

    Raises:
        AttackError: the number of ids differs from the number of images.
    """
    if len(generator.ids) != len(x):
        raise AttackError(
            f"every image needs one id: the generator has {len(generator.ids)} ids for {len(x)} images"
        )


def check_device(model: nn.Module, x: Images) -> None:
    """Reject images on another device than the model.

    Raises:
        AttackError: the devices differ; the message names both.
    """
    parameter = next(model.parameters(), None)
    if parameter is not None and parameter.device != x.device:
        raise AttackError(f"the model is on {parameter.device}, the images are on {x.device}: move one of them")
