"""Results of a certificate on some examples, in memory and on disk."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from robustly.array_files import read_arrays, write_arrays
from robustly.certification import CertificateResult
from robustly.documents import parse_json
from robustly.evaluation.part_files import seal_of
from robustly.evaluation.parts import Arrays, as_bytes, from_bytes
from robustly.evaluation.recording import STAGE, as_array, certificate_columns
from robustly.evidence.certified_numbers import CertificateTerms
from robustly.evidence.schema import CertificateColumns, Single, Verdict, Whole, column_fields

_COLUMNS = column_fields(CertificateColumns)
_TEXTS = tuple(name for name, column in _COLUMNS.items() if column.kind == "text")


@dataclass(frozen=True)
class CertifiedPart:
    """Results for some examples.

    Args:
        ids: ids of the examples, `(N,)`.
        columns: columns of the evidence table.
        images: counterexamples of the falsified examples, in the same order, `(M, ...)`.
        terms: certified classifier and failure probability.
    """

    ids: Whole
    columns: CertificateColumns
    images: Single
    terms: CertificateTerms

    @classmethod
    def of(cls, ids: Tensor, found: CertificateResult, seconds: float) -> "CertifiedPart":
        """The results of one call of a certificate.

        Args:
            ids: ids of the examples, `(N,)`.
            found: the result of the call.
            seconds: time of the call, which is divided among the examples if the certificate measures none.

        Raises:
            ValueError: a value is not one for each example or outside its range, or a falsified example has no
                counterexample.
        """
        columns, count = certificate_columns(found), len(ids)
        lengths = {name: len(getattr(columns, name)) for name in _COLUMNS}
        wrong = [name for name, length in lengths.items() if length != count]
        if wrong:
            raise ValueError(f"it returns {lengths[wrong[0]]} values of {wrong[0]} for {count} images")
        if not np.isin(columns.verdict, [int(one) for one in Verdict]).all():
            raise ValueError("it returns a verdict that is not one of Verdict")
        if not ((columns.radius >= 0) & np.isfinite(columns.radius)).all():
            raise ValueError("it returns a radius that is negative, infinite or not a number")
        odd = [one for one in np.unique(columns.stage).tolist() if not STAGE.fullmatch(one)]
        if odd:
            raise ValueError(f"the name of its stage {odd[0]!r} is not up to 40 letters, digits, spaces and +-_.")
        falsified, shown = torch.from_numpy(columns.falsified), found.counterexample
        if columns.falsified.any() and (shown is None or found.certifies != "model"):
            raise ValueError(
                f"it returns {int(columns.falsified.sum())} examples as falsified: that needs a counterexample for "
                "each, and a certificate of the model itself"
            )
        images = np.zeros((0,), np.float32) if shown is None else as_array(shown[falsified.to(shown.device)])
        if np.isnan(columns.seconds).all():
            columns = replace(columns, seconds=np.full(count, seconds / max(count, 1)))
        terms = CertificateTerms(found.certifies, found.failure_probability)
        return cls(as_array(ids), columns, images.astype(np.float32), terms)

    @classmethod
    def failed(cls, ids: Tensor, terms: CertificateTerms, reason: str, seconds: float) -> "CertifiedPart":
        """Examples on which a certificate failed: nothing is proved."""
        count = len(ids)
        columns = CertificateColumns(
            verdict=np.full(count, int(Verdict.ERROR), np.int8),
            radius=np.zeros(count),
            prediction=np.full(count, -1),
            lower_bound=np.full(count, np.nan),
            stage=np.full(count, ""),
            reason=np.full(count, reason),
            work=np.zeros(count, np.int64),
            seconds=np.full(count, seconds / max(count, 1)),
        )
        return cls(as_array(ids), columns, np.zeros((0,), np.float32), terms)


def joined(parts: Sequence[CertifiedPart], ids: Whole) -> CertifiedPart:
    """The parts of all examples as one, in the order of `ids`; its failure probability is the largest.

    Raises:
        ValueError: the parts are of several classifiers.
    """
    kinds = {part.terms.certifies for part in parts}
    if len(kinds) > 1:
        raise ValueError(f"it certifies another classifier from call to call: {', '.join(sorted(kinds))}")
    columns = CertificateColumns(
        **{name: np.concatenate([getattr(part.columns, name) for part in parts]) for name in _COLUMNS}
    )
    every = np.concatenate([part.ids for part in parts])
    place = {one: row for row, one in enumerate(every.tolist())}
    order = np.array([place[one] for one in ids.tolist()], dtype=np.int64)
    shown = [part.images for part in parts if len(part.images)]
    images: Single = np.concatenate(shown) if shown else np.zeros((0,), np.float32)
    rank = np.cumsum(columns.falsified) - 1
    falsified = order[columns.falsified[order]]
    risks = [part.terms.failure_probability or 0.0 for part in parts]
    return CertifiedPart(
        ids,
        CertificateColumns(**{name: getattr(columns, name)[order] for name in _COLUMNS}),
        images[rank[falsified]] if len(falsified) else images,
        CertificateTerms(parts[0].terms.certifies, max(risks)),
    )


def as_arrays(part: CertifiedPart) -> Arrays:
    """A part as arrays of numbers, see `from_arrays`."""
    tensors, about = _plain(part)
    return {**tensors, "about": as_bytes(about)}


def from_arrays(arrays: Arrays) -> CertifiedPart:
    """The part of `as_arrays`."""
    return _part_of(
        {name: values for name, values in arrays.items() if name != "about"}, from_bytes(arrays["about"])
    )


def _plain(part: CertifiedPart) -> tuple[dict[str, NDArray[np.generic]], dict[str, Any]]:
    """Arrays of numbers, and plain values: the texts, which the arrays count, and the terms."""
    tensors: dict[str, NDArray[np.generic]] = {"ids": part.ids, "images": part.images}
    words = {}
    for name in _COLUMNS:
        values = getattr(part.columns, name)
        if name in _TEXTS:
            distinct, values = np.unique(values, return_inverse=True)
            words[name] = distinct.tolist()
        tensors[name] = values
    terms = part.terms
    return tensors, {
        "words": words,
        "certifies": terms.certifies,
        "failure_probability": terms.failure_probability,
    }


def _part_of(tensors: dict[str, NDArray[Any]], about: Mapping[str, Any]) -> CertifiedPart:
    for name in _TEXTS:
        tensors[name] = np.array(about["words"][name], np.str_)[tensors[name]]
    columns = CertificateColumns(**{item.name: tensors[item.name] for item in fields(CertificateColumns)})
    risk = about["failure_probability"]
    terms = CertificateTerms(str(about["certifies"]), None if risk is None else float(risk))
    return CertifiedPart(tensors["ids"], columns, tensors["images"], terms)


@dataclass(frozen=True)
class PartFolder:
    """The finished parts of one certificate on disk, one file for each call, so that a killed run continues.

    Args:
        folder: folder of the files, created on the first save.
        identity: identity of the evaluation; files of another one are ignored.
    """

    folder: Path
    identity: str

    def load(self) -> list[CertifiedPart]:
        """All parts that can be read; damaged ones and those of another evaluation are left out."""
        found = [self._read(path) for path in sorted(self.folder.glob("*.safetensors"))]
        return [part for part in found if part is not None]

    def save(self, part: CertifiedPart) -> None:
        """Write a part.

        Raises:
            OSError: the folder is read-only or the disk is full.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors, about = _plain(part)
        about = {"identity": self.identity, **about}
        about["seal"] = seal_of(tensors, json.dumps(about))
        path = self.folder / f"{int(part.ids[0])}_{len(part.ids)}.safetensors"
        write_arrays(path, tensors, {"about": json.dumps(about)})

    def _read(self, path: Path) -> CertifiedPart | None:
        try:
            stored = read_arrays(path)
            about = parse_json(stored.about.get("about", "{}"), str(path))
            seal = about.pop("seal", None)
            if about.get("identity") != self.identity or seal != seal_of(stored.arrays, json.dumps(about)):
                return None
            return _part_of(stored.arrays, about)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
            return None
