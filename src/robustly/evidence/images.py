"""The stored tensors of an evaluation: adversarial images, counterexamples, originals, arrays of the threat."""

from collections.abc import Callable, ItemsView, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustly.evidence.records import EvidenceError
from robustly.evidence.schema import CERTIFICATE, CURVE, EIGHT_BIT, GALLERY, RESERVED, THREAT, Flags, Single, Whole


@dataclass(frozen=True)
class StoredImages:
    """Images of M examples.

    Args:
        ids: ids of the examples, `(M,)`.
        images: inputs of the model, `(M, C, H, W)`.
        theta: parameters of the change, `(M, ...)`, for threats whose search does not move the image itself; an
            audit renders the images from them. None for Lp balls.
    """

    ids: Whole
    images: Single
    theta: Single | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def only(self, chosen: Flags) -> "StoredImages":
        """The images of a mask `(M,)`."""
        theta = None if self.theta is None else self.theta[chosen]
        return StoredImages(self.ids[chosen], self.images[chosen], theta)

    @classmethod
    def joined(cls, parts: list["StoredImages"]) -> "StoredImages":
        """At least one set of images, joined; all of them have parameters or none has.

        The list is emptied meanwhile, so that memory holds every image once.
        """
        ids, theta = _of_all(parts)
        return cls(ids, _drained([part.images for part in parts], parts), theta)


@dataclass(frozen=True)
class EightBitImages:
    """Images of M examples as 8-bit files hold them.

    Args:
        ids: ids of the examples, `(M,)`.
        levels: pixels, 255 times the inputs of the model, `(M, C, H, W)` uint8.
        theta: as in `StoredImages`; the images are rendered from these parameters and rounded to the nearest level.
    """

    ids: Whole
    levels: NDArray[np.uint8]
    theta: Single | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def joined(cls, parts: list["EightBitImages"]) -> "EightBitImages":
        """At least one set of images, joined; all that are not empty have parameters or none has.

        The list is emptied meanwhile, so that memory holds every image once.
        """
        ids, theta = _of_all(parts)
        return cls(ids, _drained([part.levels for part in parts], parts), theta)

    def inputs(self) -> StoredImages:
        """The images as inputs of the model."""
        return StoredImages(self.ids, self.levels.astype(np.float32) / np.float32(255), self.theta)


@dataclass(frozen=True)
class EvidenceImages:
    """All stored tensors of an evaluation.

    Args:
        attacks: adversarial images of the broken examples, by attack; a minimum-norm attack also has images outside
            the threat set.
        gallery: originals for the report's pictures.
        certificates: counterexamples of the falsified rows, by certificate.
        curve: adversarial images of the security curve.
        threat: arrays of the threat by name, such as a mask of the pixels that may change.
        eight_bit: adversarial images of 8 bits, by attack; without an attack in evidence of schemas before 4.
    """

    attacks: Mapping[str, StoredImages]
    gallery: StoredImages
    certificates: Mapping[str, StoredImages] = field(default_factory=dict)
    curve: StoredImages | None = None
    threat: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    eight_bit: Mapping[str, EightBitImages] = field(default_factory=dict)

    def tensors(self) -> dict[str, NDArray[Any]]:
        """All tensors by their names in the file."""
        owners = [*self.attacks.items(), (GALLERY, self.gallery)]
        owners += [(f"{CERTIFICATE}.{name}", kept) for name, kept in self.certificates.items()]
        owners += [] if self.curve is None else [(CURVE, self.curve)]
        found: dict[str, NDArray[Any]] = {}
        for name, kept in owners:
            found |= {f"{name}.ids": kept.ids, f"{name}.images": kept.images}
            found |= {} if kept.theta is None else {f"{name}.theta": kept.theta}
        for name, saved in self.eight_bit.items():
            prefix = f"{EIGHT_BIT}.{name}"
            found |= {f"{prefix}.ids": saved.ids, f"{prefix}.images": saved.levels}
            found |= {} if saved.theta is None else {f"{prefix}.theta": saved.theta}
        return found | {f"{THREAT}.{name}": values for name, values in self.threat.items()}

    def items(self) -> ItemsView[str, NDArray[Any]]:
        """Names and arrays of all stored tensors, such as "apgd_ce.images" `(M, C, H, W)`; nothing is copied."""
        return self.tensors().items()

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[Any]]) -> "EvidenceImages":
        """Build from tensors with their names in the file.

        Raises:
            EvidenceError: tensors are missing, unknown, or do not fit together.
        """
        owners = [name.removesuffix(".ids") for name in tensors if name.endswith(".ids")]
        proofs, files = f"{CERTIFICATE}.", f"{EIGHT_BIT}."
        found = cls(
            attacks={name: _stored(name, tensors) for name in attack_names(tensors)},
            gallery=_stored(GALLERY, tensors),
            certificates={
                name.removeprefix(proofs): _stored(name, tensors) for name in owners if name.startswith(proofs)
            },
            curve=_stored(CURVE, tensors) if CURVE in owners else None,
            threat=threat_arrays(tensors, tensors.__getitem__),
            eight_bit={
                name.removeprefix(files): _stored_8bit(name, tensors) for name in owners if name.startswith(files)
            },
        )
        known = found.tensors()
        unknown = [name for name in tensors if name not in known]
        if unknown:
            raise EvidenceError(f"the tensor {unknown[0][:80]!r} is not one of this schema")
        return found


def _of_all(parts: Sequence[StoredImages] | Sequence[EightBitImages]) -> tuple[Whole, Single | None]:
    """Ids of all images, and their parameters if they have some."""
    theta = [part.theta for part in parts if part.theta is not None]
    return np.concatenate([part.ids for part in parts]), np.concatenate(theta) if theta else None


def _drained(arrays: list[NDArray[Any]], owners: list[Any]) -> NDArray[Any]:
    """At least one array, joined along the first axis. Both lists are emptied meanwhile, which frees the arrays."""
    owners.clear()
    shape = (sum(len(array) for array in arrays), *arrays[0].shape[1:])
    joined = np.empty(shape, np.result_type(*{array.dtype for array in arrays}))
    end = shape[0]
    while arrays:
        last = arrays.pop()
        np.concatenate((last,), out=joined[end - len(last) : end])
        end -= len(last)
    return joined


def attack_names(tensors: Iterable[str]) -> list[str]:
    """Names of the attacks in names of tensors."""
    owners = [name.removesuffix(".ids") for name in tensors if name.endswith(".ids")]
    return [name for name in owners if name not in RESERVED and "." not in name]


def threat_arrays(names: Iterable[str], tensor: Callable[[str], NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Arrays of the threat by their own names.

    Args:
        names: names of tensors in the file.
        tensor: returns the tensor of a name.
    """
    prefix = f"{THREAT}."
    return {name.removeprefix(prefix): tensor(name) for name in names if name.startswith(prefix)}


def _stored(name: str, tensors: Mapping[str, NDArray[Any]]) -> StoredImages:
    return StoredImages(*_checked(name, tensors, np.float32))


def _stored_8bit(name: str, tensors: Mapping[str, NDArray[Any]]) -> EightBitImages:
    return EightBitImages(*_checked(name, tensors, np.uint8))


def _checked(
    name: str, tensors: Mapping[str, NDArray[Any]], pixels: type[np.generic]
) -> tuple[Whole, NDArray[Any], Single | None]:
    """Ids, images and parameters of an owner."""
    ids, images, theta = (tensors.get(f"{name}.{part}") for part in ("ids", "images", "theta"))
    if ids is None or images is None:
        raise EvidenceError(f"{name}.ids and {name}.images should both be present")
    for part, values, kind in (
        ("ids", ids, np.int64),
        ("images", images, pixels),
        ("theta", theta, np.float32),
    ):
        if values is not None and values.dtype != kind:
            raise EvidenceError(f"{name}.{part} should be {np.dtype(kind)}, but is {values.dtype}")
        if values is not None and (ids.ndim != 1 or len(values) != len(ids)):
            raise EvidenceError(f"{name}.{part} does not fit {name}.ids")
    return ids, images, theta
