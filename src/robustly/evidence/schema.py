"""Schema of the per-example evidence: every column and stored tensor, with type, unit and meaning.

`evidence.parquet` has one row per example. A column is named after its record and field: `id`, `NAME.broken` of the
attack NAME, `worst_case.broken`, `certificate.NAME.radius`, `curve.distance`. Tensors in `adversarial.safetensors`
are named in the same way. Columns marked `CLASSIFICATION` belong to goals about classes; evidence of
another goal has others in their place.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from enum import IntEnum
from functools import cache
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray

from robustly.evidence.records import EvidenceError

SCHEMA = 6
RULES_SINCE = 4
"""First schema with the present diagnostics and the present rule for images of 8 bits."""
FIELDS_SINCE = 6
"""First schema whose summary must state every field; before, missing ones have their defaults."""
TABLE, IMAGES, SUMMARY = "evidence.parquet", "adversarial.safetensors", "summary.json"
WORST_CASE, CERTIFICATE, CURVE, GALLERY, THREAT = "worst_case", "certificate", "curve", "gallery", "threat"
EIGHT_BIT = "8bit"
RESERVED = (WORST_CASE, CERTIFICATE, CURVE, GALLERY, THREAT, EIGHT_BIT)
"""Names of columns or tensors, which attacks and certificates cannot have."""
CLASSIFICATION = "classification"

Flags = NDArray[np.bool_]
Whole = NDArray[np.int64]
Codes = NDArray[np.int8]
Single = NDArray[np.float32]
Double = NDArray[np.float64]
Texts = NDArray[Any]  # of texts, whose longest length is part of the type
Kind = Literal["bool", "int64", "float32", "float64", "verdict", "text"]
Record = TypeVar("Record")


class Verdict(IntEnum):
    """The verdict of a certificate on an example; in files its name in lower case."""

    UNKNOWN = 0
    """Neither proved nor refuted at the full size of the threat."""
    VERIFIED = 1
    """Proved: the label is predicted everywhere in the threat set."""
    FALSIFIED = 2
    """Refuted: a counterexample is stored."""
    TIMEOUT = 3
    """The time limit was reached."""
    ERROR = 4
    """The procedure failed on this example."""

    @property
    def word(self) -> str:
        """The verdict as written in files."""
        return self.name.lower()


@dataclass(frozen=True)
class Column:
    """Type and meaning of a column.

    Args:
        kind: type of a value; "verdict" is an int8 in memory and a word in the file, "text" is of any length.
        meaning: meaning and unit of the values.
        goal: kind of goal to which the column belongs; None for all.
    """

    kind: Kind
    meaning: str
    goal: str | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the array in memory; of a text its kind alone, without the length."""
        return np.dtype({"verdict": np.int8, "text": np.str_}.get(self.kind, self.kind))


@dataclass(frozen=True)
class ExampleColumns:
    """The examples and the model's output on them without an attack."""

    id: Annotated[Whole, Column("int64", "number that names the example in its data set")]
    label: Annotated[Whole, Column("int64", "true class", CLASSIFICATION)]
    clean_prediction: Annotated[Whole, Column("int64", "predicted class of the clean image", CLASSIFICATION)]
    clean_margin: Annotated[
        Single, Column("float32", "z_y - max_{j != y} z_j on the clean image; positive = correct", CLASSIFICATION)
    ]

    @property
    def correct(self) -> Flags:
        """Mask of the examples that are classified correctly without an attack."""
        correct: Flags = self.label == self.clean_prediction
        return correct


@dataclass(frozen=True)
class AttackColumns:
    """The results of one attack."""

    broken: Annotated[
        Flags, Column("bool", "misclassified without an attack, broken by an earlier attack, or broken by this one")
    ]
    broken_8bit: Annotated[
        Flags,
        Column(
            "bool",
            "misclassified without an attack, broken in 8 bits by an earlier attack, or by this one: a "
            "misclassified image of multiples of 1/255 in the threat set is stored, or the output was invalid",
        ),
    ]
    distance: Annotated[
        Single,
        Column("float32", "size of the smallest change found, in the threat's unit; NaN where none was found"),
    ]
    prediction: Annotated[
        Whole, Column("int64", "predicted class of the stored image; -1 where there is none", CLASSIFICATION)
    ]
    forwards: Annotated[Whole, Column("int64", "forward passes spent on the example")]
    backwards: Annotated[Whole, Column("int64", "passes of the gradient to the input spent on the example")]
    passes_8bit: Annotated[
        Whole,
        Column("int64", "forward and backward passes spent on the image of 8 bits, not counted in the two above"),
    ]
    invalid: Annotated[Flags, Column("bool", "whether the model's output was NaN or infinite; counts as broken")]
    tried: Annotated[Flags, Column("bool", "whether this attack was run on the example")]
    margin: Annotated[
        Single,
        Column("float32", "highest max_{j != y} z_j - z_y seen in the search; NaN where unknown", CLASSIFICATION),
    ]
    zero_gradients: Annotated[Whole, Column("int64", "points of the search at which the gradient was exactly zero")]

    @classmethod
    def untried(cls, count: int) -> "AttackColumns":
        """The columns of an attack that was not run on any of `count` examples."""
        empty = {"distance": np.nan, "prediction": -1, "margin": np.nan}
        columns = column_fields(cls)
        return cls(**{name: np.full(count, empty.get(name, 0), one.dtype) for name, one in columns.items()})


@dataclass(frozen=True)
class WorstCaseColumns:
    """The union over all attacks."""

    broken: Annotated[Flags, Column("bool", "misclassified without an attack, or broken by any attack")]
    broken_8bit: Annotated[Flags, Column("bool", "the same for the attacks' images of 8 bits")]


@dataclass(frozen=True)
class CertificateColumns:
    """The results of one certificate."""

    verdict: Annotated[
        Codes,
        Column("verdict", f"one of {', '.join(one.word for one in Verdict)}, at the threat's full size"),
    ]
    radius: Annotated[
        Double,
        Column(
            "float64",
            "size up to which, itself included, no change alters the prediction, in the threat's unit, rounded "
            "down; 0: none",
        ),
    ]
    prediction: Annotated[
        Whole, Column("int64", "class of which the proof speaks; -1 where the classifier abstains", CLASSIFICATION)
    ]
    lower_bound: Annotated[
        Double,
        Column(
            "float64",
            "proved lower bound over the threat set: of the margin z_y - max_{j != y} z_j, or for a smoothed "
            "classifier of the probability of the class; NaN where the method has none",
        ),
    ]
    stage: Annotated[
        Texts, Column("text", "method that decided the example, or the last one tried; empty: not recorded")
    ]
    reason: Annotated[Texts, Column("text", "why the example stayed open; empty where it is decided")]
    work: Annotated[Whole, Column("int64", "work spent on the example, in bounded domains or samples")]
    seconds: Annotated[Double, Column("float64", "time spent on the example; NaN: not measured. Not audited")]

    @property
    def verified(self) -> Flags:
        """Mask of the examples with a proof of correct classification in the whole threat set."""
        verified: Flags = self.verdict == Verdict.VERIFIED
        return verified

    @property
    def falsified(self) -> Flags:
        """Mask of the examples that have a counterexample."""
        falsified: Flags = self.verdict == Verdict.FALSIFIED
        return falsified

    @property
    def open(self) -> Flags:
        """Mask of the examples that are neither proved nor refuted."""
        return ~(self.verified | self.falsified)


@dataclass(frozen=True)
class CurveColumns:
    """The security curve."""

    distance: Annotated[
        Single,
        Column("float32", "smallest size of the grid at which the example broke; inf: at none, NaN: not tried"),
    ]


@dataclass(frozen=True)
class EvidenceTable:
    """One row per example, each array `(N,)`.

    Args:
        examples: the examples and the clean pass.
        attacks: results by name of the attack, in the order of the suite.
        worst_case: the union over the attacks.
        certificates: results by name of the certificate.
        curve: the security curve, or None.
    """

    examples: ExampleColumns
    attacks: Mapping[str, AttackColumns]
    worst_case: WorstCaseColumns
    certificates: Mapping[str, CertificateColumns] = field(default_factory=dict)
    curve: CurveColumns | None = None

    def __len__(self) -> int:
        return len(self.examples.id)

    @property
    def correct(self) -> Flags:
        """Mask of the examples that are classified correctly without an attack."""
        return self.examples.correct

    def broken_by(self, attack: str) -> Flags:
        """Mask of the correctly classified examples that are broken by an attack or before it."""
        broken: Flags = self.attacks[attack].broken & self.correct
        return broken

    def columns(self) -> dict[str, NDArray[Any]]:
        """All columns by their names in the file."""
        found = dict(_named("", self.examples))
        for name, attack in self.attacks.items():
            found |= _named(f"{name}.", attack)
        found |= _named(f"{WORST_CASE}.", self.worst_case)
        for name, certificate in self.certificates.items():
            found |= _named(f"{CERTIFICATE}.{name}.", certificate)
        return found if self.curve is None else found | dict(_named(f"{CURVE}.", self.curve))

    @classmethod
    def from_columns(cls, columns: Mapping[str, NDArray[Any]]) -> "EvidenceTable":
        """Build from columns with their names in the file.

        Raises:
            EvidenceError: a column is missing, unknown, or of another type.
        """
        attacks, certificates = _owners(columns)
        table = cls(
            examples=_record(ExampleColumns, "", columns),
            attacks={name: _record(AttackColumns, f"{name}.", columns) for name in attacks},
            worst_case=_record(WorstCaseColumns, f"{WORST_CASE}.", columns),
            certificates={
                name: _record(CertificateColumns, f"{CERTIFICATE}.{name}.", columns) for name in certificates
            },
            curve=_record(CurveColumns, f"{CURVE}.", columns) if f"{CURVE}.distance" in columns else None,
        )
        known = table.columns()
        unknown = [name for name in columns if name not in known]
        if unknown:
            raise EvidenceError(f"the column {unknown[0][:80]!r} is not one of this schema")
        return table


def column_fields(record: Any) -> Mapping[str, Column]:
    """The columns of a record type by the names of its fields."""
    return _column_fields_once(record)


@cache
def _column_fields_once(record: Any) -> Mapping[str, Column]:
    hints = get_type_hints(record, include_extras=True)
    return MappingProxyType({item.name: get_args(hints[item.name])[1] for item in fields(record)})


def described_columns() -> list[tuple[str, Column]]:
    """All columns with the patterns of their names, in the order of the file."""
    groups: list[tuple[str, type]] = [
        ("", ExampleColumns),
        ("NAME.", AttackColumns),
        (f"{WORST_CASE}.", WorstCaseColumns),
        (f"{CERTIFICATE}.NAME.", CertificateColumns),
        (f"{CURVE}.", CurveColumns),
    ]
    return [(prefix + name, one) for prefix, record in groups for name, one in column_fields(record).items()]


def _named(prefix: str, record: object) -> Iterator[tuple[str, NDArray[Any]]]:
    for name in column_fields(type(record)):
        yield prefix + name, getattr(record, name)


def _owners(columns: Mapping[str, NDArray[Any]]) -> tuple[list[str], list[str]]:
    """Names of the attacks and of the certificates that have columns."""
    parts = [name.split(".") for name in columns]
    attacks = [one[0] for one in parts if len(one) == 2 and one[0] not in RESERVED]
    certificates = [one[1] for one in parts if len(one) == 3 and one[0] == CERTIFICATE]
    return list(dict.fromkeys(attacks)), list(dict.fromkeys(certificates))


def _record(record: type[Record], prefix: str, columns: Mapping[str, NDArray[Any]]) -> Record:
    found: dict[str, NDArray[Any]] = {}
    for name, one in column_fields(record).items():
        values = columns.get(prefix + name)
        if values is None:
            raise EvidenceError(f"the column {prefix}{name} is missing")
        if values.dtype.kind != "U" if one.kind == "text" else values.dtype != one.dtype:
            raise EvidenceError(f"the column {prefix}{name} should be {one.dtype}, but is {values.dtype}")
        found[name] = values
    return record(**found)
