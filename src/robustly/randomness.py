"""Random numbers keyed by (seed, example id): pure functions of their key, without state.

A number drawn for an example depends only on the seed, the example's id, the purpose of the draw and its position.
It does not depend on the batch size, the order of the examples, the number of processes, the device, or earlier
draws. The generator is counter-based: positions are hashed with the 64-bit finaliser of SplitMix64 (Steele, Lea and
Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
"""

import hashlib
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # two's complement of the odd constant nearest 2**64 / golden ratio
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)
_MASK_63 = (1 << 63) - 1


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
        seed: any integer.
        ids: the examples' ids, `(N,)`; equal ids draw equal numbers.
    """

    seed: int
    ids: Int64[Tensor, " n"]

    def fold(self, *purpose: int | str) -> "KeyedGenerator":
        """Generator of another purpose (`fold("restart", 3)`), independent of this one."""
        return KeyedGenerator(derive_seed(self.seed, *purpose), self.ids)

    def select(self, index: Tensor) -> "KeyedGenerator":
        """Generator of some of the examples: a mask or positions, `(M,)`."""
        return KeyedGenerator(self.seed, self.ids[index])

    def bits(self, *shape: int) -> Int64[Tensor, "n ..."]:
        """64 random bits for each place of `shape`, for each example: `(N, *shape)`."""
        key = _mix(self.ids.to(torch.int64) * _GOLDEN + derive_seed(self.seed, "bits"))
        place = torch.arange(1, math.prod(shape) + 1, device=self.ids.device) * _GOLDEN
        return _mix(key[:, None] + place[None, :]).reshape(len(self.ids), *shape)

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
        words = self.bits((count + 1) // 2)
        high = _shift_right(words, 40).to(torch.float32)
        low = (words & 0xFFFFFF).to(torch.float32)
        return torch.cat([high, low], dim=1)[:, :count].mul_(2.0**-24)

    def integers(self, below: int, *shape: int) -> Int64[Tensor, "n ..."]:
        """Integers in {0, ..., below - 1}, `(N, *shape)`; the bias is under `below` / 2**63."""
        return _shift_right(self.bits(*shape), 1) % below


def shuffled(count: int, *key: int | str) -> Int64[Tensor, " count"]:
    """Permutation of 0..count-1 that depends only on the key."""
    return KeyedGenerator(derive_seed(*key), torch.arange(count)).bits(1)[:, 0].argsort(stable=True)
