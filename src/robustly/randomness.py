"""Random numbers keyed by (seed, example id): pure functions of their key, without state.

A number drawn for an example depends only on the seed, the example's id, the purpose of the draw and its position.
It does not depend on the batch size, the order of the examples, the number of processes, the device, or earlier
draws. The generator is counter-based: positions are hashed with the 64-bit finaliser of SplitMix64 (Steele, Lea and
Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # two's complement of the odd constant nearest 2**64 / golden ratio
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)
_MASK_63 = (1 << 63) - 1
_CACHED = 1 << 19  # numbers of a batch that are drawn at once on a CPU


def _shift_right(bits: Tensor, places: int) -> Tensor:
    """Logical right shift of int64; PyTorch's shift copies the sign bit."""
    return (bits >> places).bitwise_and_((1 << (64 - places)) - 1)


def _mix(bits: Tensor) -> Tensor:
    """Hash 64-bit words, so that neighbouring inputs give unrelated outputs."""
    bits = (bits ^ _shift_right(bits, 30)).mul_(_MIX_1)
    bits = (bits ^ _shift_right(bits, 27)).mul_(_MIX_2)
    return bits.bitwise_xor_(_shift_right(bits, 31))


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any words, the same on every machine: for `torch.Generator` and for streams."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") & _MASK_63


@dataclass(frozen=True)
class KeyedGenerator:
    """Random numbers for a batch of examples, one independent stream per example.

    Drawing twice from the same generator gives the same numbers; use `fold` for another stream. The numbers are
    drawn on the device of the ids.

    Args:
        seed: any integer; or several, for `interleaved` generators.
        ids: the examples' ids, `(N,)`; equal ids draw equal numbers.
        which: with several seeds, the position of each example's seed among them, `(N,)`.
    """

    seed: int | tuple[int, ...]
    ids: Int64[Tensor, " n"]
    which: Int64[Tensor, " n"] | None = None

    def fold(self, *purpose: int | str) -> "KeyedGenerator":
        """Generator of another purpose (`fold("restart", 3)`), independent of this one."""
        if isinstance(self.seed, tuple):
            return KeyedGenerator(tuple(derive_seed(one, *purpose) for one in self.seed), self.ids, self.which)
        return KeyedGenerator(derive_seed(self.seed, *purpose), self.ids)

    def select(self, index: Tensor) -> "KeyedGenerator":
        """Generator of some of the examples: a mask or positions, `(M,)`."""
        which = None if self.which is None else self.which[index]
        return KeyedGenerator(self.seed, self.ids[index], which)

    def bits(self, *shape: int) -> Int64[Tensor, "n ..."]:
        """64 random bits for each place of `shape`, for each example: `(N, *shape)`."""
        key = self._keys()
        place = torch.arange(1, math.prod(shape) + 1, device=self.ids.device) * _GOLDEN
        return _mix(key[:, None] + place[None, :]).reshape(len(self.ids), *shape)

    def _keys(self) -> Int64[Tensor, " n"]:
        """First word of each example's stream."""
        return _mix(self.ids.to(torch.int64) * _GOLDEN + self._seeds("bits"))

    def _seeds(self, purpose: str) -> int | Int64[Tensor, " n"]:
        if isinstance(self.seed, tuple):
            seeds = [derive_seed(one, purpose) for one in self.seed]
            return torch.tensor(seeds, device=self.ids.device)[self.which]
        return derive_seed(self.seed, purpose)

    def uniform(self, *shape: int) -> Float[Tensor, "n ..."]:
        """Float32 numbers in [0, 1), all multiples of 2**-24: `(N, *shape)`."""
        return self._uniforms(math.prod(shape)).reshape(len(self.ids), *shape)

    def normal(self, *shape: int) -> Float[Tensor, "n ..."]:
        """Float32 standard normal numbers (Box-Muller), `(N, *shape)`; at most 5.77 in absolute value."""
        count = math.prod(shape)
        half = (count + 1) // 2
        first, second = self._uniforms(2 * half).chunk(2, dim=1)
        radius = first.add(2.0**-24).log_().mul_(-2.0).sqrt_()
        angle = second * (2.0 * math.pi)
        pairs = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
        return pairs[:, :count].reshape(len(self.ids), *shape)

    def _uniforms(self, count: int) -> Float[Tensor, "n count"]:
        """Uniform numbers, two from each 64-bit word, because hashing dominates the cost."""
        if self.ids.device.type == "cpu" and len(self.ids) > 1 and len(self.ids) * count > _CACHED:
            return self._many_uniforms(count)
        words = self.bits((count + 1) // 2)
        high = _shift_right(words, 40).to(torch.float32)
        low = (words & 0xFFFFFF).to(torch.float32)
        return torch.cat([high, low], dim=1)[:, :count].mul_(2.0**-24)

    def _many_uniforms(self, count: int) -> Float[Tensor, "n count"]:
        """The same on a CPU, example by example: words that fit in the cache are hashed in a fifth of the time.

        In NumPy, whose unsigned words shift without a mask, and whose large arrays lie in huge pages.
        """
        half = (count + 1) // 2
        keys = self._keys().numpy().view(np.uint64)
        places = np.arange(1, half + 1, dtype=np.uint64) * np.uint64(_GOLDEN + (1 << 64))
        found = np.empty((len(keys), count), dtype=np.float32)
        words, shifted = np.empty_like(places), np.empty_like(places)
        for key, row in zip(keys, found, strict=True):
            np.add(places, key, out=words)
            for right, factor in ((30, _MIX_1), (27, _MIX_2), (31, None)):
                np.bitwise_xor(words, np.right_shift(words, np.uint64(right), out=shifted), out=words)
                if factor is not None:
                    np.multiply(words, np.uint64(factor + (1 << 64)), out=words)
            # as signed words, whose conversion is faster
            row[:half] = np.right_shift(words, np.uint64(40), out=shifted).view(np.int64)
            row[half:] = np.bitwise_and(words, np.uint64(0xFFFFFF), out=words).view(np.int64)[: count - half]
        found *= np.float32(2.0**-24)
        return torch.from_numpy(found)

    def integers(self, below: int, *shape: int) -> Int64[Tensor, "n ..."]:
        """Integers in {0, ..., below - 1}, `(N, *shape)`; the bias is under `below` / 2**63."""
        return _shift_right(self.bits(*shape), 1) % below


def interleaved(generators: Sequence[KeyedGenerator]) -> KeyedGenerator:
    """Generator of T runs per example, `(N * T,)`, the runs of one example after each other.

    Run t of an example draws the numbers that the t-th generator draws for it.

    Args:
        generators: T generators with one seed each, of the same N examples.
    """
    if len(generators) == 1:
        return generators[0]
    ids, times = generators[0].ids, len(generators)
    seeds = tuple(one.seed for one in generators if not isinstance(one.seed, tuple))
    assert len(seeds) == times, "generators that are interleaved already have several seeds"
    return KeyedGenerator(
        seeds, ids.repeat_interleave(times), torch.arange(times, device=ids.device).repeat(len(ids))
    )


def shuffled(count: int, *key: int | str) -> Int64[Tensor, " count"]:
    """Permutation of 0..count-1 that depends only on the key."""
    return KeyedGenerator(derive_seed(*key), torch.arange(count)).bits(1)[:, 0].argsort(stable=True)
