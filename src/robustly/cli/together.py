"""Several processes for a command: who takes part, and what the others than process 0 do."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from io import StringIO
from multiprocessing import parent_process
from typing import Any, TypeVar

import torch

from robustly.cli.allocator import keep_compiled_code, keep_freed_memory, return_freed_weights
from robustly.cli.terminal import PlainConsole
from robustly.evaluation.members import Member
from robustly.evaluation.parts import ALONE
from robustly.evaluation.shards import ServedError, ShardedCrew
from robustly.processes import Group, ProcessError, join_group, start_group
from robustly.runtime import Place, RuntimeConfig, cores, device_of, place_in_cluster, use_own_gpu

T = TypeVar("T")


def shared_among_processes(work: Callable[..., T], arguments: Sequence[Any], config: RuntimeConfig) -> T | None:
    """Result of `work(*arguments, crew)`, see `results_of_processes`; None in another process than process 0."""
    found = [*results_of_processes(_once, (work, *arguments), config)]
    return found[0] if found else None


def results_of_processes(
    work: Callable[..., Iterator[T]], arguments: Sequence[Any], config: RuntimeConfig
) -> Iterator[T]:
    """Results of `work(*arguments, crew)`, which every process iterates over and whose parts they share.

    The work writes and prints nothing, and is the only one of the command. Process 0 uses the results. The
    other processes of torchrun and SLURM get none.

    Args:
        work: function of a module.
        arguments: values that can be pickled.
        config: settings.

    Raises:
        ProcessError: another process has stopped, or does not answer.
        ValueError: no processes.
    """
    config.check()
    place, is_divided = place_of_this_process(), config.strategy == "fsdp"
    if is_divided:
        prepare_shards(config, place)
    if place is not None and place.rank:
        _take_part(place, work, arguments, is_divided)
        return
    size = config.processes if place is None else place.size
    if size < 2:
        yield from work(*arguments, ALONE)
        return
    if place is None:
        say_crowding(size)
        group = start_group(size, _take_part, [work, tuple(arguments), is_divided])
    else:
        group = join_group(place)
    group = replace(group, advice="start the command again")
    sharded = ShardedCrew(group, place) if is_divided else None
    try:
        yield from work(*arguments, sharded or Member(group))
    finally:
        if sharded is not None:
            sharded.close()
        group.close()


def _once(work: Callable[..., T], *arguments: Any) -> Iterator[T]:
    yield work(*arguments)


def place_of_this_process() -> Place | None:
    """Place of this process in a cluster, with a GPU of its own; None if it is on its own."""
    place = place_in_cluster()
    if place is not None:
        use_own_gpu(place)
    return place


def leads() -> bool:
    """Return True for process 0, and for a process on its own."""
    place = place_in_cluster()
    return place is None or place.rank == 0


def prepare_shards(config: RuntimeConfig, place: Place | None) -> None:
    """Refuse weights in shards where they are not possible, and prepare the memory of this process for them.

    Args:
        config: settings.
        place: place of this process in a cluster; None if it starts the others.

    Raises:
        ValueError: one process, another device than the CPU and GPUs of CUDA, or fewer GPUs than processes.
    """
    config.check_shards(config.processes if place is None else place.size)
    count = torch.cuda.device_count()
    if place is None and device_of(config).type == "cuda" and config.processes > count:
        raise ValueError(
            f"runtime.strategy fsdp needs a GPU for each process, and here {config.processes} processes share "
            f"{count}: set runtime.processes to at most {count}, or runtime.device to cpu"
        )
    return_freed_weights()


def say_crowding(size: int) -> None:
    """Print a sentence if more processes start than there are cores or GPUs; they share them."""
    count = cores()
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if devices and size > devices:
        warn_beside(f"{size} processes share {devices} GPU{'s' * (devices > 1)}")
    elif size > count:
        warn_beside(f"{size} processes share {count} core{'s' * (count > 1)}")


def warn_beside(text: str) -> None:
    """Print beside the results, which may be a table for another program."""
    PlainConsole(stderr=True).print(f"! {text}", highlight=False, soft_wrap=True)


def take_part(place: Place, carry_out: Callable[[Group], None]) -> None:
    """Take part in a command as another process than 0; prints nothing, and records for process 0 why it cannot.

    Args:
        place: place of this process.
        carry_out: the work with the processes.

    Raises:
        ProcessError: in a cluster, process 0 does not answer or has other code.
        SystemExit: in a cluster, a signal has ended this process; its exit code is that of the signal.
    """
    keep_freed_memory()
    keep_compiled_code()
    try:
        use_own_gpu(place)
        group = join_group(place)
    except ProcessError:
        if parent_process() is None:
            raise
        return  # process 0 has ended in the meantime
    with suppress(RuntimeError):  # process 0 has ended, and its store with it
        try:
            with redirect_stdout(StringIO()), redirect_stderr(StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                carry_out(group)
            group.leave()
        except (ValueError, OSError) as error:
            group.refuse(str(error))
        except KeyboardInterrupt as stop:
            if parent_process() is None:
                raise SystemExit(getattr(stop, "exit_code", 130)) from None


def _take_part(
    place: Place, work: Callable[..., Iterator[object]], arguments: Sequence[Any], is_divided: bool
) -> None:
    """Share the work, or its passes, as another process than 0."""

    def carry_out(group: Group) -> None:
        if not is_divided:
            for _ in work(*arguments, Member(group)):
                pass
            return
        return_freed_weights()
        crew = ShardedCrew(group, place)
        try:
            for _ in work(*arguments, crew):
                pass
        except ServedError:
            pass
        finally:
            crew.close()

    take_part(place, carry_out)
