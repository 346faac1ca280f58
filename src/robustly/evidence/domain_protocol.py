"""Leave-one-domain-out: accuracies on sources and target for every domain that was left out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from robustly.evidence.domains import DomainResult
from robustly.statistics import Proportion

PROTOCOL_SCHEMA = 1
COLUMNS: dict[str, Callable[[DomainResult], Proportion | None]] = {
    "source clean": lambda one: one.source.clean,
    "source robust": lambda one: one.source.robust,
    "source certified": lambda one: one.source.proved,
    "target clean": lambda one: one.target.clean,
    "target robust": lambda one: one.target.robust,
    "target certified": lambda one: one.target.proved,
}
"""Columns of the table, and their shares in a result."""


@dataclass(frozen=True)
class ProtocolNumber:
    """An accuracy, averaged over seeds.

    Args:
        accuracy: the mean, in [0, 1].
        interval: 95 % Wilson interval over the images; None for a mean over several seeds or domains.
    """

    accuracy: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class ProtocolRow:
    """The accuracies of the runs that left one domain out.

    Args:
        left_out: name of the domain.
        seeds: number of runs.
        numbers: accuracies by column; without those that a run lacks.
    """

    left_out: str
    seeds: int
    numbers: Mapping[str, ProtocolNumber]


@dataclass(frozen=True)
class Protocol:
    """The table of one method.

    Args:
        name: the method: recipe and settings that vary.
        threat: text of the threat.
        suite: name of the suite.
        rows: one entry for each domain that was left out.
        mean: means over the rows, by column.
        worst: lowest accuracy of a row on its target, by column.
        missing: domains that were never left out.
    """

    name: str
    threat: str
    suite: str
    rows: tuple[ProtocolRow, ...]
    mean: Mapping[str, ProtocolNumber]
    worst: Mapping[str, ProtocolNumber]
    missing: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that every row has."""
        return tuple(self.mean)


@dataclass(frozen=True)
class ProtocolFile:
    """The content of `domains.json` of a sweep."""

    schema: int
    protocols: tuple[Protocol, ...]


def protocol(name: str, results: Sequence[DomainResult]) -> Protocol:
    """The table of a method.

    Args:
        name: the method.
        results: results of its runs under one threat and suite, at least one; several of one left-out domain are
            of different seeds.
    """
    names = dict.fromkeys(one for result in results for one in (result.left_out, *_sources(result)))
    rows = []
    for left_out in names:
        some = [result for result in results if result.left_out == left_out]
        if some:
            rows.append(ProtocolRow(left_out, len(some), _numbers(some)))
    shared = [column for column in COLUMNS if all(column in row.numbers for row in rows)]
    shares = {column: [row.numbers[column].accuracy for row in rows] for column in shared}
    return Protocol(
        name=name,
        threat=results[0].threat,
        suite=results[0].suite,
        rows=tuple(rows),
        mean={column: ProtocolNumber(sum(some) / len(some)) for column, some in shares.items()},
        worst={column: ProtocolNumber(min(some)) for column, some in shares.items() if column.startswith("target")},
        missing=tuple(one for one in names if one not in {row.left_out for row in rows}),
    )


def _sources(result: DomainResult) -> list[str]:
    return [one.name for one in result.sources]


def _numbers(results: Sequence[DomainResult]) -> dict[str, ProtocolNumber]:
    found = {}
    for column, share_of in COLUMNS.items():
        shares = [share for result in results if (share := share_of(result)) is not None]
        if len(shares) == len(results):
            interval = shares[0].interval if len(shares) == 1 else None
            found[column] = ProtocolNumber(sum(one.share for one in shares) / len(shares), interval)
    return found
