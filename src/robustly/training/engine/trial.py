"""Trial of a network before training: one forward and backward pass in both modes, and what they show."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustly.models.hidden import hidden_modules
from robustly.models.layout import contiguous, put_in_layout
from robustly.models.lazy import create_parameters, has_lazy_parameters
from robustly.models.modes import modes_kept
from robustly.models.outputs import OutputError, logits_in
from robustly.output_text import first_line
from robustly.training.modes import frozen_parts, train_mode

IMAGES = 4
"""Images of a trial."""


class TrialError(ValueError):
    """A network that cannot be trained as it is; the message names the reason and the remedy."""


@dataclass(frozen=True)
class Fit:
    """Conditions under which a network can be trained.

    Args:
        layout: memory layout of its weights and images.
        copies_input: whether it receives a copy of the images, because it changes them in place.
        takes_first: whether its output in training mode holds more than the logits; the first tensor is the logits.
        smallest_batch: 2 if its batch normalisation cannot use a batch of one image, else 1.
        unused: names of parameters that have no gradient, such as those of auxiliary outputs.
    """

    layout: torch.memory_format
    copies_input: bool = False
    takes_first: bool = False
    smallest_batch: int = 1
    unused: tuple[str, ...] = ()


@contextmanager
def adapted(network: nn.Module, fit: Fit) -> Iterator[None]:
    """Give a network the conditions of a trial by hooks, which are removed at the end."""
    with ExitStack() as held:
        if fit.layout == torch.contiguous_format:
            held.enter_context(_removed(network.register_forward_pre_hook(_contiguous_input)))
        if fit.copies_input:
            held.enter_context(_removed(network.register_forward_pre_hook(_copied_input)))
        if fit.takes_first:
            held.enter_context(_removed(network.register_forward_hook(_first_output)))
        yield


def dtype_of(networks: Mapping[str, nn.Module]) -> torch.dtype:
    """The floating-point type of all networks of a run.

    Raises:
        TrialError: half precision, or networks of different types.
    """
    found = {}
    for name, network in networks.items():
        types = [p.dtype for p in network.parameters() if p.dtype.is_floating_point]
        half = [kind for kind in types if kind not in (torch.float32, torch.float64)]
        if half:
            raise TrialError(
                f"the {name} has parameters in {half[0]}, in which training loses small updates: convert it with "
                ".float(), and set runtime.precision to bf16-mixed for speed"
            )
        found[name] = torch.float64 if torch.float64 in types else torch.float32
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{name} {kind}" for name, kind in found.items())
        raise TrialError(f"the networks of a run need one floating-point type, got {listed}: convert them")
    return next(iter(found.values()))


def try_training(
    network: nn.Module,
    x: Tensor,
    classes: int,
    *,
    channels_last: bool,
    name: str = "model",
    trained: bool = True,
    seed: int = 0,
) -> Fit:
    """Try a network in evaluation and in training mode, and convert its weights to the layout in which it works.

    Its parameters, buffers, gradients and modes are those of before, and no random number of the run is used.

    Args:
        network: the network, on the device of the images. Missing parameters are created (`LazyLinear`).
        x: a few images `(N, ...)` in the type of the network.
        classes: classes of the labels, at most as many as logits.
        channels_last: whether to try the channels-last layout first.
        name: name of the network in messages.
        trained: False for a frozen network, which runs in evaluation mode only.
        seed: seed of parameters that the network creates itself.

    Raises:
        TrialError: it fails in both layouts, returns no logits, has no parameter to train, uses reentrant
            checkpoints, or keeps layers where PyTorch does not find them.
    """
    x = x[:IMAGES]
    hidden = {} if isinstance(network, torch.jit.ScriptModule) else hidden_modules(network)
    if hidden:
        raise TrialError(
            f"the {name} keeps layers in a plain list or dictionary ({', '.join(list(hidden)[:3])}), where they "
            "are neither trained nor moved to the device: use nn.ModuleList or nn.ModuleDict, or pass "
            "robustly.models.as_classifier(model)"
        )
    if has_lazy_parameters(network):
        create_parameters(network, x, seed)
    if trained and not any(p.requires_grad for p in network.parameters()):
        raise TrialError(f"the {name} has no parameter that requires a gradient: there is nothing to train")
    last = channels_last and x.ndim == 4
    layouts = ([torch.channels_last] if last else []) + [torch.contiguous_format]
    message = reason = ""
    for layout in layouts:
        for copies in (False, True):
            with _unchanged(network, x, seed), adapted(network, Fit(layout, copies)):
                try:
                    put_in_layout(network, layout)
                    return _tried(
                        network, x.contiguous(memory_format=layout), classes, Fit(layout, copies), trained
                    )
                except TrialError as error:
                    raise TrialError(f"the {name} {error}") from None
                except Exception as error:  # the code of the network is the user's
                    message, reason = str(error), first_line(error)
            if "use_reentrant" in message:
                raise TrialError(_REENTRANT.format(name=name))
            if "in-place" not in message and "inplace" not in message:
                break
    raise TrialError(f"the {name} fails in a trial on images of shape {tuple(x.shape)}: {reason}")


_REENTRANT = (
    "the {name} uses activation checkpoints of the reentrant kind, which have no gradient with respect to the "
    "images alone and lose that of their first weights: pass use_reentrant=False to torch.utils.checkpoint "
    "(Hugging Face: gradient_checkpointing_enable(gradient_checkpointing_kwargs={{'use_reentrant': False}}))"
)


def _tried(network: nn.Module, x: Tensor, classes: int, fit: Fit, trained: bool) -> Fit:
    network.eval()
    _passed(network, x, classes)
    if not trained:
        return fit
    still = frozen_parts(network)
    train_mode(network, still)
    two = torch.cat([x, x])[: max(len(x), 2)]  # batch normalisation needs two images
    takes_first, unused = _passed(network, two, classes)
    smallest = 1
    try:
        with torch.no_grad():
            network(x[:1].clone())
    except Exception:  # two images have passed
        smallest = 2
    return Fit(fit.layout, fit.copies_input, takes_first, smallest, unused)


def _passed(network: nn.Module, x: Tensor, classes: int) -> tuple[bool, tuple[str, ...]]:
    """One forward and backward pass: whether the output holds more than logits, and the parameters not used."""
    if getattr(network, "backward_only", False):
        raise RuntimeError("use_reentrant")
    here = x.detach().clone().requires_grad_()
    with torch.inference_mode(False), torch.enable_grad():
        given = here * 1  # a change in place of a leaf is an error of its own
        version = given._version
        output = network(given)
        if given._version != version:
            raise RuntimeError("an in-place operation changes the images")
        try:
            logits = logits_in(output)
        except OutputError as error:
            raise TrialError(f"does not fit: {error}") from None
        _check_logits(logits, len(x), classes)
        named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        if not logits.requires_grad:
            return logits is not output, tuple(name for name, _ in named)
        sought = [here, *(p for _, p in named)]
        gradients = torch.autograd.grad(logits.float().logsumexp(1).sum(), sought, allow_unused=True)
    unused = tuple(name for (name, _), gradient in zip(named, gradients[1:], strict=True) if gradient is None)
    return logits is not output, unused


def _check_logits(logits: Tensor, count: int, classes: int) -> None:
    if logits.ndim != 2 or logits.shape[0] != count or logits.shape[1] < classes:
        raise TrialError(
            f"returns {tuple(logits.shape)} for {count} images of {classes} classes: expected logits of shape "
            f"({count}, {classes})"
        )


@contextmanager
def _unchanged(network: nn.Module, x: Tensor, seed: int) -> Iterator[None]:
    """Restore parameters, buffers, gradients, modes and random numbers at the end."""
    gradients = [(p, p.grad) for p in network.parameters()]
    values = {key: value.detach().clone() for key, value in (*network.named_parameters(), *network.named_buffers())}
    try:
        with modes_kept(network), torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
            torch.manual_seed(seed)  # for layers that the network builds in its first pass
            yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for key, value in (*network.named_parameters(), *network.named_buffers()):
                if key in values and values[key].shape == value.shape:
                    value.copy_(values[key])


@contextmanager
def _removed(handle: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _contiguous_input(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(contiguous(value) if isinstance(value, Tensor) else value for value in given)


def _copied_input(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.clone() if isinstance(value, Tensor) else value for value in given)


def _first_output(module: nn.Module, given: tuple[Any, ...], output: Any) -> Any:
    return logits_in(output)
