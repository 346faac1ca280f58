"""Batches that pass through the networks in parts, because a whole one does not fit into the memory."""

from collections import defaultdict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from robustly.data import Batch
from robustly.training.method import MethodError
from robustly.training.step import Memory


class BatchMemoryError(ValueError):
    """A batch that does not fit into the memory, not even in parts; the message names the remedy."""


class WholeBatchError(MethodError):
    """A part of the method averages over the whole batch, of which one part passes at a time."""


def whole_batch(value: Tensor) -> Tensor:
    """Refuse a mean over the batch of all processes, of which a step in parts has one part at a time.

    Raises:
        WholeBatchError: always.
    """
    raise WholeBatchError(
        "training.accumulate: a part of the method averages over the whole batch: set training.accumulate to 1"
    )


def parts_of(batch: Batch, count: int) -> list[Batch]:
    """A batch in parts of about the same size, each with at least one image."""
    if count == 1 or len(batch) < 2:
        return [batch]
    rows = torch.arange(len(batch), device=batch.x.device).tensor_split(min(count, len(batch)))
    return [batch.select(some) for some in rows]


def fewest_parts(fits: Callable[[int], bool], most: int) -> int | None:
    """Fewest parts that fit, by doubling and then halving the interval; None if not even the most parts fit.

    Args:
        fits: a trial; if a number of parts fits, larger ones do.
        most: largest number of parts, at least 1.
    """
    failed, found = 0, 1
    while not fits(found):
        if found >= most:
            return None
        failed, found = found, min(2 * found, most)
    while found - failed > 1:
        middle = (failed + found) // 2
        failed, found = (failed, middle) if fits(middle) else (middle, found)
    return found


class BeforeStep:
    """Buffers of networks and memory of parts before a step, which a step that runs out of memory gets back.

    Args:
        networks: the networks in training. Their weights do not change in a step before the optimiser moves them,
            except by parts that perturb them; see `Part.after_failure`.
        memory: tensors of the parts. Parts replace them before `after_backward`, and do not change them in place.
    """

    def __init__(self, networks: Mapping[str, nn.Module], memory: Memory) -> None:
        self._memory = memory
        self._kept = {slot: dict(tensors) for slot, tensors in memory.items()}
        self._versions = [(value, value._version) for tensors in memory.values() for value in tensors.values()]
        places: dict[tuple[torch.dtype, torch.device], list[tuple[nn.Module, str, Tensor]]] = defaultdict(list)
        for network in networks.values():
            for module in network.modules():
                for name, value in module._buffers.items():
                    if value is not None:
                        places[value.dtype, value.device].append((module, name, value))
        # one copy for all buffers of a type, because every operation on a GPU costs some microseconds
        self._buffers = [
            (some, torch.cat([value.detach().reshape(-1) for _, _, value in some])) for some in places.values()
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Give buffers and memory their values back.

        Raises:
            BatchMemoryError: a part has changed a tensor of its memory in place.
        """
        for some, copies in self._buffers:
            values = torch.split(copies, [value.numel() for _, _, value in some])
            for (module, name, value), before in zip(some, values, strict=True):
                value.copy_(before.view(value.shape))  # batch normalisation changes it without a new version
                module._buffers[name] = value
        changed = any(value._version != version for value, version in self._versions)
        self._memory.clear()
        self._memory.update({slot: dict(tensors) for slot, tensors in self._kept.items()})
        if changed:
            raise BatchMemoryError(
                "the device ran out of memory in a step, and a part of the method had changed its memory in place "
                "by then, so the step cannot be repeated: use a smaller training.batch_size"
            )


def too_large(images: int, parts: int) -> BatchMemoryError:
    """Error of a batch whose smallest parts do not fit.

    Args:
        images: images of the batch in this process.
        parts: the parts that were tried last.
    """
    largest = -(-images // parts)
    size = "a single image" if largest == 1 else f"{largest} images"
    return BatchMemoryError(
        f"not even {size} at a time fit into the memory of the device in training: use a smaller network, smaller "
        "images, or a device with more memory"
    )


def not_again(images: int, parts: int, reason: str) -> BatchMemoryError:
    """Error of a batch that does not fit, in a process for which the others wait.

    Args:
        images: images of the batch in this process.
        parts: the parts in which it passed.
        reason: reason why the others wait.
    """
    number = f" in {parts} parts" if parts > 1 else ""
    return BatchMemoryError(
        f"training.batch_size: {images} images do not fit into the memory of the device{number}, and the processes "
        f"cannot repeat the step because {reason}: set training.accumulate to more parts, or use a smaller "
        "training.batch_size"
    )


def not_in_parts(images: int, reason: str, fitting: int | None) -> BatchMemoryError:
    """Error of a batch that does not fit, of a method that needs it whole.

    Args:
        images: images of the batch in this process.
        reason: reason why it cannot pass in parts.
        fitting: images that do fit, 0 if there is no such number, None if it is not known.
    """
    if fitting == 0:
        return too_large(1, 1)
    remedy = "set training.batch_size to less" if fitting is None else f"{fitting} fit, set training.batch_size so"
    return BatchMemoryError(
        f"training.batch_size: {images} images do not fit into the memory of the device at once, and cannot pass "
        f"in parts because {reason}: {remedy}"
    )
