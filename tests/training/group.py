"""Functions of tests in a group of processes, in a group."""

import gc
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from forked import spawn


def in_group(function: Callable[..., None], *arguments: Any, count: int = 2) -> None:
    """Call a function of a module in several processes that `Runtime` joins to a gloo group.

    Args:
        function: takes the number of the process, and the arguments.
        arguments: values that can be pickled.
        count: number of processes.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(_joined, args=(port, function, arguments), nprocs=count)


def _joined(rank: int, port: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    function(rank, *arguments)
    gc.collect()  # networks, which are cycles
    threads = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    left = [name for name in threads if "gloo" in name or "tcpstore" in name]
    assert not left, f"threads of a group that run while Python exits can abort the process: {left}"
