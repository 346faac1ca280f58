"""Memory and compiled code that the commands keep and use again."""

import ctypes
import os
import sys
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # numbers of the parameters in <malloc.h>
_KEPT = 1 << 28
"""Free bytes at the end of the heap from which they are returned: 256 MiB."""
_LARGEST_IN_HEAP = 1 << 25
"""Bytes of a block from which it is mapped on its own: 32 MiB, the largest that glibc accepts."""
_LARGEST_OF_SHARDS = 1 << 20
"""The same for weights in shards: 1 MiB."""
_COMPILED = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
_MANY = 1 << 14
"""Compiled operations that oneDNN keeps: a batch size of a ResNet-18 needs about fifty, of a few kilobytes each."""
_OTHERS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_compiled_code() -> None:
    """Let oneDNN keep its compiled operations for all batch sizes, unless the environment sets their number.

    Each convolution is compiled for each batch size, and an attack that removes broken examples meets most sizes
    up to its batch. oneDNN keeps 1,024 operations; compiling the others again took a fifth of the time of passes
    of a narrow ResNet-18. It reads the variable at the first operation of the process.
    """
    os.environ.setdefault(_COMPILED, str(_MANY))


@cache
def keep_freed_memory() -> bool:
    """Let glibc keep up to 256 MiB of freed memory for the next pass; returns whether it does.

    The passes of an attack allocate and free the same activations at every step. glibc returns freed memory to the
    system from a few MiB on (see `mallopt(3)`), and every page of it costs an interrupt when it is used again: a
    tenth of the time of PGD on a narrow ResNet-18. The setting is that of the process, so commands make it, and
    functions of the package do not. It is not made where the environment has settings of its own
    (`MALLOC_TRIM_THRESHOLD_` and others), nor with other C libraries.
    """
    return _set(_LARGEST_IN_HEAP)


@cache
def return_freed_weights() -> bool:
    """Let glibc return each block of a MiB and more to the system once it is freed; returns whether it does.

    With weights in shards, those of one block of the network after the other are collected and freed. In the heap,
    which several threads divide, the freed ones would take more memory than the whole network.
    """
    return _set(_LARGEST_OF_SHARDS)


def _set(largest_in_heap: int) -> bool:
    if sys.platform != "linux" or any(name in os.environ for name in _OTHERS):
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        return False
    return bool(set_option(_MMAP_THRESHOLD, largest_in_heap) and set_option(_TRIM_THRESHOLD, _KEPT))
