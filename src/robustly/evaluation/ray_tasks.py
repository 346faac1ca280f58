"""Tasks of the workers of a Ray cluster: parts of an evaluation, or a whole one.

Model and images reach them through Ray's object store, so that no file system has to be shared.
"""

import importlib
import io
import socket
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from robustly.data import ImageData
from robustly.evaluation.checkpoint import Speed
from robustly.evaluation.curve import GivenCurve
from robustly.evaluation.door import as_evaluated
from robustly.evaluation.evaluate import evaluate
from robustly.evaluation.parts import Arrays, Task, Work
from robustly.evaluation.suites.suite import Suite
from robustly.evaluation.target import Mode
from robustly.evaluation.task_work import work_of_tasks
from robustly.evidence import Evidence
from robustly.models.layout import in_fastest_layout
from robustly.processes import code_digest
from robustly.ray_cluster import Cluster
from robustly.runtime import DeviceError, RuntimeConfig, device_of, raise_if_lost
from robustly.threats import Threat


class SendingError(ValueError):
    """A model that cannot be sent to another process."""


@dataclass(frozen=True)
class Subject:
    """The subject of an evaluation.

    Args:
        model: the network.
        threat: the threat.
        suite: the suite, with its surrogates and certificates.
        curve: the given security curve.
        seed: the seed.
    """

    model: nn.Module
    threat: Threat
    suite: Suite
    curve: GivenCurve
    seed: int


@dataclass(frozen=True)
class Sent:
    """A subject and its images in the object store of a cluster; it can be hashed.

    Args:
        subject: reference of the pickled subject.
        images: reference of the arrays of the images, of which all workers of a node share one copy.
        code: digest of the code that sent them.
        threads: threads of a worker.
    """

    subject: Any
    images: Any
    code: str
    threads: int


def send_images(cluster: Cluster, data: ImageData) -> Any:
    """Send images to a cluster; returns their reference."""
    arrays = {name: getattr(data, name).cpu().contiguous().numpy() for name in ("images", "labels", "ids")}
    return cluster.put((arrays, data.classes, data.source, data.device.type))


def send(cluster: Cluster, subject: Subject, images: Any) -> Sent:
    """Send a subject to a cluster.

    Args:
        cluster: the cluster.
        subject: what is evaluated.
        images: reference of its images.

    Raises:
        SendingError: the model cannot be pickled.
    """
    return Sent(cluster.put(_pickled(cluster.ray, subject)), images, code_digest(), cluster.threads)


@dataclass(frozen=True)
class Outcome:
    """The result of a task, or the reason why there is none.

    Args:
        value: the result.
        error: type and text of an error of the work.
        refusal: why this worker cannot take part; another one may.
        is_wrong_input: whether the error is one of the model, the images or the settings.
    """

    value: Any = None
    error: str = ""
    refusal: str = ""
    is_wrong_input: bool = False


def carry_out_part(sent: Sent, speed: Speed, task: Task, size: int, part: Arrays) -> Outcome:
    """Carry out a part of a task on a worker.

    Args:
        sent: what is evaluated.
        speed: batch size and precision.
        task: the task, with the seconds that are left from now on.
        size: number of workers.
        part: the part.
    """

    def result(ray: Any) -> Arrays:
        opened = _opened(ray, sent)
        if task.seconds is None:
            return _work(opened, speed, task, size)(_writable(part))
        return opened.work_of(size)(speed, task)(_writable(part))

    return _outcome(sent, result)


@dataclass(frozen=True)
class WholeEvaluation:
    """Settings of an evaluation that one worker carries out; see `evaluate`."""

    mode: Mode
    batch_size: int | None
    curve_count: int | None
    runtime: RuntimeConfig


def carry_out_whole(sent: Sent, settings: WholeEvaluation) -> Outcome:
    """Carry out an evaluation on a worker, on its own device; the value is the evidence."""

    def result(ray: Any) -> Evidence:
        device = device_of(settings.runtime)
        opened = _opened(ray, sent)
        data, subject = opened.data.to(device), _placed(opened.subject, device, opened.data)
        return evaluate(
            subject.model,
            data,
            subject.threat,
            subject.suite,
            mode=settings.mode,
            seed=subject.seed,
            batch_size=settings.batch_size,
            curve_count=settings.curve_count,
            curve=subject.curve,
            compiled=settings.runtime.compile,
        )

    return _outcome(sent, result)


def _outcome(sent: Sent, result: Callable[[Any], object]) -> Outcome:
    if sent.code != code_digest():
        words = "the code of robustly, or the version of PyTorch, differs from that of the command"
        return Outcome(refusal=f"on the node {socket.gethostname()} {words}")
    torch.set_num_threads(sent.threads)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Outcome(result(importlib.import_module("ray")))
    except Exception as error:
        try:
            raise_if_lost(error)
        except DeviceError as lost:
            return Outcome(refusal=f"on the node {socket.gethostname()} {lost}")
        return Outcome(error=f"{type(error).__name__}: {error}", is_wrong_input=isinstance(error, ValueError))


@dataclass(frozen=True, eq=False)
class _Opened:
    """A subject and its images in a worker."""

    subject: Subject
    data: ImageData

    def work_of(self, size: int) -> Callable[[Speed, Task], Work]:
        return _works(self, size)


@lru_cache(maxsize=1)
def _opened(ray: Any, sent: Sent) -> _Opened:
    """The subject on the device from which it was sent; workers carry out many tasks of the same one."""
    arrays, classes, source, device = ray.get(sent.images)
    images, labels, ids = (torch.from_numpy(arrays[name]) for name in ("images", "labels", "ids"))
    data = ImageData(images, labels, ids, classes, source).to(device)
    return _Opened(ray.cloudpickle.loads(ray.get(sent.subject)), data)


@lru_cache(maxsize=1)
def _works(opened: _Opened, size: int) -> Callable[[Speed, Task], Work]:
    one, data = opened.subject, opened.data
    model, threat, suite = as_evaluated(one.model, data, one.threat, one.suite, one.curve)
    return work_of_tasks(model, data, threat, suite, one.seed, size)


@lru_cache(maxsize=1)
def _work(opened: _Opened, speed: Speed, task: Task, size: int) -> Work:
    return opened.work_of(size)(speed, task)


def _writable(part: Arrays) -> Arrays:
    """The arrays; those of the object store cannot be written to."""
    return {name: np.array(values) for name, values in part.items()}


def _placed(subject: Subject, device: torch.device, data: ImageData) -> Subject:
    """The subject on a device."""
    if device.type == "cpu":
        return subject
    model = in_fastest_layout(subject.model.to(device), data.first(2).to(device))
    return replace(subject, model=model)


def _pickled(ray: Any, subject: Subject) -> bytes:
    """The subject with the code of the user's own modules, which the nodes need not have.

    Raises:
        SendingError: it cannot be pickled.
    """
    pickler = ray.cloudpickle.CloudPickler

    class WithScripts(pickler):  # type: ignore[misc,valid-type]
        """Pickles TorchScript too."""

        def reducer_override(self, value: Any) -> Any:
            if isinstance(value, torch.jit.ScriptModule):
                buffer = io.BytesIO()
                torch.jit.save(value, buffer)
                return _script, (buffer.getvalue(),)
            return super().reducer_override(value)

    buffer = io.BytesIO()
    try:
        with _by_value(ray.cloudpickle):
            WithScripts(buffer).dump(subject)
    except Exception as error:  # whatever the user's classes raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise SendingError(
            f"the model or an attack cannot be sent to the cluster ({reason}): evaluate it without --on"
        ) from error
    return buffer.getvalue()


def _script(content: bytes) -> torch.jit.ScriptModule:
    return torch.jit.load(io.BytesIO(content))  # type: ignore[no-any-return,no-untyped-call,unused-ignore]


@contextmanager
def _by_value(cloudpickle: Any) -> Iterator[None]:
    """Send the code of modules that are not installed: those of a working folder."""
    modules = [module for name, module in list(sys.modules.items()) if _is_users(name, module)]
    done = []
    try:
        for module in modules:
            cloudpickle.register_pickle_by_value(module)
            done.append(module)
        yield
    finally:
        for module in done:
            cloudpickle.unregister_pickle_by_value(module)


def _is_users(name: str, module: Any) -> bool:
    file = Path(str(getattr(module, "__file__", None) or ""))
    if name.partition(".")[0] in ("robustly", "__main__", "__mp_main__") or not file.is_absolute():
        return False
    installed = {Path(sysconfig.get_path(key)) for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    return getattr(module, "__name__", "") == name and not any(file.is_relative_to(folder) for folder in installed)
