"""Matrix of runs against threats: clean accuracy, accuracy under each threat, their mean, and under all at once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from robustly.evidence import Summary
from robustly.evidence.partial_unions import union_of_folders
from robustly.evidence.unions import ThreatShare, ThreatUnion
from robustly.reports.figures.threat_rows import UNION, threat_title
from robustly.reports.run import RunEvidence
from robustly.reports.tables.comparison import ComparedNumber, ShareInterval, marked
from robustly.reports.tables.evaluations import EvaluatedRun, joint_worst_case
from robustly.reports.tables.method_tables import By, Score, score_of
from robustly.reports.tables.seeds import group_names, seed_groups
from robustly.statistics import Proportion

CLEAN_COLUMN, MEAN_COLUMN = "Clean", "Mean"


@dataclass(frozen=True)
class ThreatNumbers:
    """The accuracies of one run.

    Args:
        clean: accuracy without an attack.
        threats: accuracy under each threat.
        mean: mean over the threats; None with a single threat.
        union: accuracy under all at once; None with a single threat.
        images: hash of the images; empty if unknown.
    """

    clean: Proportion
    threats: tuple[ThreatShare, ...]
    mean: Score | None = None
    union: Proportion | None = None
    images: str = ""

    @classmethod
    def of_union(cls, union: ThreatUnion, images: str) -> "ThreatNumbers":
        """The numbers of a union."""
        mean = Score(union.average.accuracy, *union.average.interval)
        return cls(union.clean, union.threats, mean, union.union, images)

    @classmethod
    def of_one(cls, summary: Summary, worst: Proportion) -> "ThreatNumbers":
        """The numbers of an evaluation under one threat, with its worst case."""
        threat = summary.threat
        share = ThreatShare(threat.text, threat.words, summary.suite.name, summary.masking, worst)
        return cls(summary.metrics.clean, (share,), images=summary.data.sha256)


@dataclass(frozen=True)
class MatrixSource:
    """The numbers of a row: those of one run, or of several that differ only in the seed.

    Args:
        index: number of its colour.
        name: name of the row.
        runs: numbers of its runs.
    """

    index: int
    name: str
    runs: tuple[ThreatNumbers, ...]


@dataclass(frozen=True)
class MatrixCell:
    """One number of the matrix; `suspected` if gradient masking is."""

    number: ComparedNumber[Score]
    suspected: bool = False


@dataclass(frozen=True)
class MatrixRow:
    """One run, or several that differ only in the seed; `index` is the number of its colour."""

    index: int
    name: str
    seeds: int
    cells: tuple[MatrixCell, ...]


@dataclass(frozen=True)
class ThreatMatrix:
    """Rows and columns of numbers; `notes` are sentences on numbers that are not comparable."""

    columns: tuple[str, ...]
    rows: tuple[MatrixRow, ...]
    notes: tuple[str, ...] = ()


def matrix_of_runs(runs: Sequence[RunEvidence]) -> ThreatMatrix | None:
    """The matrix of a report's runs; None if none was evaluated under several threats."""
    sources = []
    for index, run in enumerate(runs):
        if run.union is not None:
            images = run.tests[0].images if run.tests else ""
            sources.append(MatrixSource(index, run.name, (ThreatNumbers.of_union(run.union, images),)))
        elif run.evaluation is not None:
            worst = run.evaluation.metrics.worst_case.robust
            sources.append(MatrixSource(index, run.name, (ThreatNumbers.of_one(run.evaluation, worst),)))
    return threat_matrix(sources)


def matrix_of_methods(runs: Sequence[EvaluatedRun], by: By) -> ThreatMatrix | None:
    """The matrix of a comparison of methods, see `method_tables`; None if no run has several threats.

    Raises:
        EvidenceError: an evidence table is damaged.
    """
    runs = list({(run.path.resolve(), run.last_epoch): run for run in runs}.values())
    if all(len({one.evaluation.threat.text for one in run.evaluations}) == 1 for run in runs):
        return None
    groups = seed_groups(runs) if by == "method" else [[i] for i in range(len(runs))]
    names = group_names([[runs[i] for i in group] for group in groups])
    return threat_matrix(
        [
            MatrixSource(index, name, tuple(_numbers(runs[i]) for i in group))
            for index, (name, group) in enumerate(zip(names, groups, strict=True))
        ]
    )


def _numbers(run: EvaluatedRun) -> ThreatNumbers:
    union, left_out = union_of_folders([one.folder for one in run.evaluations])
    if union is not None:
        apart = {one.evaluation for one in left_out}
        part = next(one.evaluation for one in run.evaluations if one.folder.name not in apart)
        return ThreatNumbers.of_union(union, part.data.sha256)
    first = run.evaluations[0].evaluation
    alike = [
        one
        for one in run.evaluations
        if (one.evaluation.threat.text, one.evaluation.data.sha256) == (first.threat.text, first.data.sha256)
    ]
    return ThreatNumbers.of_one(first, joint_worst_case(alike))


def threat_matrix(sources: Sequence[MatrixSource]) -> ThreatMatrix | None:
    """Build the matrix; its threats are in the order of their mean accuracy, the highest first.

    Returns:
        The matrix, or None if no run has several threats.
    """
    every = [one for source in sources for one in source.runs]
    if all(one.union is None for one in every):
        return None
    texts = list(dict.fromkeys(share.text for one in every for share in one.threats))
    texts.sort(key=lambda text: -fmean(share.robust.share for share in _under(every, text)))
    columns = (CLEAN_COLUMN, *texts, MEAN_COLUMN, UNION)
    same_images = len({one.images for one in every if one.images}) < 2
    same_images = same_images and len({one.clean.count for one in every}) == 1
    same_threats = len({frozenset(share.text for share in one.threats) for one in every}) == 1
    suites = {text: sorted({share.suite for share in _under(every, text)}) for text in texts}
    apart = [text for text in texts if len(suites[text]) > 1]
    comparable = {column: same_images and column not in apart for column in columns}
    comparable[MEAN_COLUMN] = comparable[UNION] = same_images and same_threats and not apart
    scores = {
        column: [score_of([_share(one, column) for one in source.runs]) for source in sources] for column in columns
    }
    suspected = {
        column: [any(_masked(one, column) for one in source.runs) for source in sources] for column in columns
    }
    cells = {
        column: [
            MatrixCell(number, doubt)
            for number, doubt in zip(
                marked(scores[column], [not doubt for doubt in suspected[column]], comparable[column]),
                suspected[column],
                strict=True,
            )
        ]
        for column in columns
    }
    notes = []
    if not same_images:
        notes.append("The runs were tested on different images: no best value is marked.")
    if not same_threats:
        notes.append("Not every run was tested under every threat: means and unions are over different threats.")
    if apart:
        different = "; ".join(f"{threat_title(text)} by {' and '.join(suites[text])}" for text in apart)
        notes.append(f"Different suites attacked under one threat, where no best value is marked: {different}.")
    return ThreatMatrix(
        tuple(threat_title(column) if column in texts else column for column in columns),
        tuple(
            MatrixRow(one.index, one.name, len(one.runs), tuple(cells[column][i] for column in columns))
            for i, one in enumerate(sources)
        ),
        tuple(notes),
    )


def _under(numbers: Iterable[ThreatNumbers], text: str) -> list[ThreatShare]:
    return [share for one in numbers for share in one.threats if share.text == text]


def _share(one: ThreatNumbers, column: str) -> ShareInterval | None:
    named: dict[str, ShareInterval | None] = {CLEAN_COLUMN: one.clean, MEAN_COLUMN: one.mean, UNION: one.union}
    return named[column] if column in named else next((share.robust for share in _under([one], column)), None)


def _masked(one: ThreatNumbers, column: str) -> bool:
    """Return True if masking is suspected under the threat of a column, or under any for mean and union."""
    if column == CLEAN_COLUMN:
        return False
    shares = one.threats if column in (MEAN_COLUMN, UNION) else _under([one], column)
    return any(share.masking for share in shares)
