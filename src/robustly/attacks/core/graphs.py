"""Forward and input-backward passes that are captured once for each shape and replayed (CUDA graphs).

A replay starts all kernels of a pass at once, where Python otherwise starts them one by one; small networks and
batches gain by it. Parameters are read where they lie, so a replay uses the weights of its moment.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustly.attacks.core.contract import Images
from robustly.attacks.core.model_access import input_gradient, logits_of
from robustly.memory import is_out_of_memory
from robustly.objectives import ClassificationGoal, Goal, Objective
from robustly.output_text import first_line

Pass = tuple[Tensor, Tensor, Tensor]
"""Output of the model `(M, K)`, objective `(M,)`, and its gradient with respect to the inputs `(M, ...)`."""
Capture = Callable[[Callable[[], Pass]], tuple[Callable[[], None], Pass]]
"""From a pass over fixed tensors: a function that replays it, and the tensors into which it writes."""
MOST, CAPTURES = 8, 64
"""Graphs that are kept, and that are captured in a run; with an objective that changes there would be ever more."""
WARM_UP = 3


@dataclass(frozen=True)
class _Graph:
    """A captured pass: fixed tensors that it reads and writes, its replay, and what must stay alive for its key."""

    inputs: tuple[Tensor, ...]
    replay: Callable[[], None]
    outputs: Pass
    kept: tuple[object, ...]


def cuda_capture() -> Capture:
    """Capture by CUDA graphs, which share one pool of memory, because they never run at the same time."""
    pool = torch.cuda.graph_pool_handle()

    def capture(body: Callable[[], Pass]) -> tuple[Callable[[], None], Pass]:
        stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):  # libraries choose their algorithms and take their memory
                body()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # other threads go on working: one prepares batches, one watches the other processes
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            outputs = body()
        return graph.replay, outputs

    return capture


def eager_capture(body: Callable[[], Pass]) -> tuple[Callable[[], None], Pass]:
    """A stand-in without CUDA: every replay runs the pass, and copies its results to the same tensors."""
    outputs = body()

    def replay() -> None:
        for kept, found in zip(outputs, body(), strict=True):
            kept.copy_(found)

    return replay, outputs


class PassGraphs:
    """Captured passes of the attacks of a run.

    Args:
        capture: makes a graph from a pass.
    """

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._graphs: dict[tuple[object, ...], _Graph] = {}
        self._refusal, self._captures = "", 0

    @property
    def refusal(self) -> str:
        """Reason why passes run without graphs from some moment on; empty without one."""
        return self._refusal

    def __len__(self) -> int:
        return len(self._graphs)

    def forget(self) -> None:
        """Drop all graphs, whose memory is then free."""
        self._graphs.clear()

    def run(self, model: nn.Module, points: Images, objective: Objective, goal: Goal) -> Pass | None:
        """Run a pass by a graph; None if there can be none, so that the caller runs it.

        Args:
            model: the frozen model.
            points: inputs `(M, ...)`.
            objective: function to maximise.
            goal: its goal.
        """
        if self._refusal or type(goal) is not ClassificationGoal or not is_repeatable(model):
            return None
        given = tuple(value for value in (points, goal.y, goal.target, goal.reference) if value is not None)
        key = (id(model), id(objective), goal.target is None, *map(_form, given), *_state_of(model))
        graph = self._graphs.get(key)
        if graph is None:
            if len(self._graphs) >= MOST:
                self._graphs.pop(next(iter(self._graphs)))  # such as one of weights that lie elsewhere now
            graph = self._captured(model, given, objective, goal)
            if graph is None:
                return None
            self._graphs[key] = graph
        for kept, value in zip(graph.inputs, given, strict=True):
            kept.copy_(value)
        graph.replay()
        output, value, gradient = (found.clone() for found in graph.outputs)  # the next replay writes over them
        return output, value, gradient

    def _captured(
        self, model: nn.Module, given: tuple[Tensor, ...], objective: Objective, goal: ClassificationGoal
    ) -> _Graph | None:
        inputs = tuple(value.detach().clone() for value in given)
        left = list(inputs[2:])
        target = None if goal.target is None else left.pop(0)
        fixed = ClassificationGoal(inputs[1], target, None if goal.reference is None else left.pop(0))

        def body() -> Pass:
            here = inputs[0].detach().requires_grad_()
            output = logits_of(model, here)
            value = objective(output, fixed)
            return output.detach(), value.detach(), input_gradient(value.sum(), here)

        caches = torch.is_autocast_cache_enabled()
        try:
            torch.set_autocast_cache_enabled(False)  # a replay converts the weights of its moment
            self._captures += 1
            if self._captures > CAPTURES:
                raise ValueError(f"more than {CAPTURES} shapes or objectives")
            return _Graph(inputs, *self._capture(body), kept=(model, objective))
        except Exception as error:  # of any kind: the model is the user's
            self.forget()
            if is_out_of_memory(error):
                raise
            self._refusal = first_line(error)
            warnings.warn(
                f"runtime.graphs: this attack cannot be captured ({self._refusal}), and runs without graphs",
                stacklevel=2,
            )
            return None
        finally:
            torch.set_autocast_cache_enabled(caches)


def is_repeatable(model: nn.Module) -> bool:
    """Return True if a pass neither changes buffers nor draws random numbers: nothing is in training mode.

    Batch normalisations may be, if they do not update their statistics.
    """
    return all(
        isinstance(module, _BatchNorm) and not module.track_running_stats
        for module in model.modules()
        if module.training
    )


def _form(value: Tensor) -> tuple[object, ...]:
    return value.shape, value.dtype, value.stride()


def _state_of(model: nn.Module) -> tuple[object, ...]:
    """State that a captured pass depends on beside its inputs: modes, precision, and addresses of the weights."""
    device = next((p.device.type for p in model.parameters()), "cpu")
    precision = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    places = tuple(value.data_ptr() for value in (*model.parameters(), *model.buffers()))
    return modes_of(model), precision, places


def modes_of(model: nn.Module) -> tuple[object, ...]:
    """Modes of all modules of a network."""
    return tuple(
        (module.training, module.track_running_stats) if isinstance(module, _BatchNorm) else module.training
        for module in model.modules()
    )
