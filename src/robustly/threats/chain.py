"""Chains: several threats applied one after the other, each within its own limits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from robustly.threats.affine import Affine
from robustly.threats.any_order import AnyOrderSet, SmoothAnyOrderSet
from robustly.threats.chain_set import BoxChainSet, ChainSet, OffsetBall, SmoothChainSet
from robustly.threats.contract import Images, Link, MadeFromData, Smooth, Threat, ThreatError, ThreatSet
from robustly.threats.exact_size import fraction_text, parse_epsilon
from robustly.threats.lp import ThreatModel
from robustly.threats.parameter_box import ParameterBox
from robustly.threats.precision import at_least_float32


@dataclass(frozen=True)
class Chain:
    """Threats applied one after the other to one input: "rotation:30+linf:8/255" rotates, then perturbs.

    With "&" in place of "+", the adversary chooses the order, for each input: "rotation:30&linf:8/255". The size of
    a perturbation is the largest share that a part uses of its own limit; the extent is therefore 1.

    Args:
        parts: at least two threats of one box, Lp threats or threats whose perturbations can act on any input.
        share: share of its extent that each part may use, at least 0 (security curves, epsilon ramps).
        any_order: whether the adversary chooses the order (Hsiung et al., CVPR 2023).

    Raises:
        ThreatError: fewer than two parts; two parts of one kind; parts of different boxes; a chain inside a chain;
            one epsilon per example; a part whose perturbations apply to one input only. The parts of an affine
            threat count as kinds of their own.
    """

    parts: tuple[Threat, ...]
    share: Fraction
    any_order: bool

    def __init__(
        self, parts: Sequence[Threat], share: float | str | Fraction = Fraction(1), any_order: bool = False
    ) -> None:
        if len(parts) < 2:
            raise ThreatError(f"a chain must have at least two parts, got {len(parts)}")
        for one, other in pairwise(parts):
            if one.box != other.box:
                raise ThreatError(
                    f"the parts of a chain must share one box, {one} has {one.box} and {other} {other.box}"
                )
        for part in parts:
            if isinstance(part, Chain) or isinstance(part.extent, Tensor):
                raise ThreatError(
                    f"a part of a chain must be a single threat with one extent for all examples, got {part}"
                )
            if not (isinstance(part, ThreatModel) or hasattr(part.set_type, "moved_to")):
                raise ThreatError(f"{part} cannot be a part of a chain: its perturbations apply to one input only")
        _refuse_twice(parts)
        object.__setattr__(self, "parts", tuple(parts))
        object.__setattr__(self, "share", parse_epsilon(share, "the share of the parts' extents"))
        object.__setattr__(self, "any_order", any_order)
        if self.share < 0:
            raise ThreatError(f"the share of the parts' extents must be at least 0, got {share}")

    def __str__(self) -> str:
        return ("&" if self.any_order else "+").join(str(part) for part in self._limited)

    @property
    def kind(self) -> str:
        """ "chain" with a fixed order, "any_order" without."""
        return "any_order" if self.any_order else "chain"

    @property
    def box(self) -> tuple[float, float]:  # noqa: D102
        return self.parts[0].box

    @property
    def extent(self) -> Fraction:
        """Share of its own extent that each part may use."""
        return self.share

    @property
    def extent_text(self) -> str:  # noqa: D102
        return fraction_text(self.share)

    @property
    def unit(self) -> str:  # noqa: D102
        return "times each part's limit"

    @property
    def arrays(self) -> Mapping[str, Tensor]:
        """Those of the parts."""
        return {name: values for part in self.parts for name, values in part.arrays.items()}

    @property
    def set_type(self) -> type[ChainSet] | type[AnyOrderSet]:
        """Class of the sets: `BoxChainSet` where all parts have ranges of parameters and an order.

        Chains with a part that has a roughness have one, too: `SmoothChainSet`, `SmoothAnyOrderSet`.
        """
        if self.any_order:
            return SmoothAnyOrderSet if self._is_smooth else AnyOrderSet
        if self._is_smooth:
            return SmoothChainSet
        return BoxChainSet if all(issubclass(part.set_type, ParameterBox) for part in self.parts) else ChainSet

    def words(self) -> str:
        """Description of the threat in sentences."""
        first, *rest = (part.words() for part in self._limited)
        if self.any_order:
            return " ".join(["The following changes may be made in any order.", first, *rest])
        return " ".join([first, *(f"Then {words[0].lower()}{words[1:]}" for words in rest)])

    def scaled(self, factor: float) -> "Chain":
        """The same parts, each within `factor` times its share."""
        return self.with_extent(float(self.share) * factor)

    def with_extent(self, extent: float | str | Fraction) -> "Chain":
        """The same parts, each within another share of its extent."""
        return Chain(self.parts, extent, self.any_order)

    def extents_at(self, factors: Sequence[float]) -> list[Fraction]:
        """Multiples of this share that are possible for every part."""
        shares = sorted({self.share * Fraction(factor).limit_denominator(1000) for factor in factors})
        return [share for share in shares if share > 0 and self._exists(share)]

    def whole(self) -> "Chain":
        """The same limits as a chain of share 1, to which its text form parses."""
        return Chain(self._limited, any_order=self.any_order)

    def check_data(self, digest: Callable[[], str]) -> None:
        """Check the parts that were made from data; see `MadeFromData`."""
        for part in self.parts:
            if isinstance(part, MadeFromData):
                part.check_data(digest)

    def select(self, index: Tensor) -> "Chain":
        """The same threat: its extents do not differ between examples."""
        return self

    def around(self, x: Images) -> ChainSet | AnyOrderSet:
        """Allowed inputs around each input of a batch.

        Raises:
            ThreatError: a part that is not defined for such inputs.
        """
        x, links = at_least_float32(x), []
        for part in self._limited:
            link: ThreatSet = (
                OffsetBall(x, part.offsets_around(x), part.box) if isinstance(part, ThreatModel) else part.around(x)
            )
            assert isinstance(link, Link)  # the constructor refuses others
            links.append(link)
        whole = torch.full((len(x),), float(self.share), device=x.device, dtype=x.dtype)
        if self.any_order:
            if self._is_smooth:
                return SmoothAnyOrderSet(SmoothChainSet(x, whole, tuple(links)))
            return AnyOrderSet(ChainSet(x, whole, tuple(links)))
        if self._is_smooth:
            return SmoothChainSet(x, whole, tuple(links))
        return (BoxChainSet if self.set_type is BoxChainSet else ChainSet)(x, whole, tuple(links))

    @property
    def _is_smooth(self) -> bool:
        return any(issubclass(part.set_type, Smooth) for part in self.parts)

    @cached_property
    def _limited(self) -> tuple[Threat, ...]:
        if self.share == 1:
            return self.parts
        return tuple(part.scaled(float(self.share)) for part in self.parts)

    def _exists(self, share: Fraction) -> bool:
        return all(part.extents_at([float(share)]) for part in self.parts if part.extent != 0)


def _refuse_twice(parts: Sequence[Threat]) -> None:
    """Refuse a kind of perturbation that two parts allow, so that the limit in the text is the whole limit.

    Raises:
        ThreatError: a kind twice, also inside an affine threat.
    """
    kinds = [part.kind for part in parts]
    twice = next((kind for kind in kinds if kinds.count(kind) > 1), None)
    if twice is not None:
        raise ThreatError(f"a chain names each kind of threat once, got {twice} {kinds.count(twice)} times")
    for whole in parts:
        inner = [one.kind for one in whole.parts] if isinstance(whole, Affine) else []
        other = next((part for part in parts if part.kind in inner), None)
        if other is not None:
            raise ThreatError(
                f"a chain names each kind of threat once, and both {other} and {whole} allow a {other.kind}: put "
                "its limit into one of them"
            )
