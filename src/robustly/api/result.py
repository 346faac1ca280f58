"""The result of an evaluation: evidence with the model and data at hand, so that it can be plotted and audited."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch

from robustly.api.fitting import Model, fit
from robustly.data import ImageData, as_image_data
from robustly.evaluation import Audit, EvaluationError, EvaluationTarget, Sampling, Suite, audit
from robustly.evaluation.recording import stored_threat, threat_or_kind
from robustly.evaluation.suites.certified import as_recorded
from robustly.evaluation.suites.composed import suite_from
from robustly.evaluation.suites.suite import without_draws
from robustly.evidence import Evidence, EvidenceError, Summary, read_evidence
from robustly.evidence.audit_record import AuditRecord, read_audit, write_audit
from robustly.evidence.certified_numbers import RobustInterval
from robustly.evidence.schema import SUMMARY, Verdict
from robustly.evidence.unions import union_of_threats
from robustly.experiments.run_folder import evaluation_folder
from robustly.files import write_text
from robustly.reports import ReportError
from robustly.reports.figures.result_plot import Plot, result_plot
from robustly.reports.figures.threats_plot import threats_plot
from robustly.reports.pages.page import render
from robustly.reports.reading import read_run, run_of_evidence
from robustly.reports.run import ThreatTest

_PROOF = ("radius", "lower_bound", "stage", "reason", "work", "seconds")


@dataclass(frozen=True, repr=False)
class Result(Evidence):
    """Evidence that can be plotted, reported, saved, and audited.

    Args:
        model: the evaluated model, in its form for `evaluate`; None if only files were read.
        data: the evaluated images; None if only files were read.
        suite: the suite that was run; None takes the known suite of its name.
        audited: the last audit of the folder that was read; None without one.
    """

    model: Model | None = None
    data: ImageData | None = None
    suite: Suite | None = None
    audited: AuditRecord | None = None

    @classmethod
    def of(
        cls,
        evidence: Evidence,
        model: Model | None = None,
        data: ImageData | None = None,
        suite: Suite | None = None,
        audited: AuditRecord | None = None,
    ) -> "Result":
        """Build from evidence; the arguments are those of the class."""
        return cls(evidence.table, evidence.images, evidence.summary, model, data, suite, audited)

    @property
    def interval(self) -> RobustInterval | None:
        """Certified and attacked accuracy, the bounds of robust accuracy; None without a certificate."""
        return self.summary.metrics.interval

    @property
    def proofs(self) -> list[dict[str, object]]:
        """Results of the certificates, one row for each certificate and image.

        Keys: `certificate` (its name), `id` (of the image), `verdict` (a word), `radius` (certified, in the unit of
        the threat), `lower_bound` (proved, of the margin), `stage` (that decided, or was the last), `reason` (of an
        open image), `work` and `seconds`.
        """
        ids = self.table.examples.id.tolist()
        rows: list[dict[str, object]] = []
        for name, columns in self.table.certificates.items():
            words = [Verdict(code).word for code in columns.verdict.tolist()]
            values = {key: getattr(columns, key).tolist() for key in _PROOF}
            for row, (one, word) in enumerate(zip(ids, words, strict=True)):
                shown = {key: column[row] for key, column in values.items()}
                rows.append({"certificate": name, "id": one, "verdict": word, **shown})
        return rows

    def plot(self) -> Plot:
        """A figure of the accuracy by attack and the security curve; notebooks show it, `.save(path)` writes it."""
        return result_plot(self.summary)

    def report(self, path: str | Path, audit: Audit | None = None) -> Path:
        """Write the report as one self-contained page, and return its path.

        Args:
            path: HTML file to write; missing folders are created.
            audit: an audit of this result, which the page states; None states the one that was read.

        Raises:
            ReportError: the path is that of a folder, or does not end in .html.
            OSError: the file cannot be written.
        """
        file = Path(path)
        if file.suffix.lower() not in (".html", ".htm") or file.is_dir():
            raise ReportError(f"a report is one file that ends in .html, got {str(file)!r}.")
        record = self.audited if audit is None else self._record(audit)
        run = run_of_evidence(self, record)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, render([run]))
        return file

    def save(self, path: str | Path, audit: Audit | None = None) -> Path:
        """Write the evidence into a folder, and return the folder; `read_result` reads it.

        Args:
            path: the folder. `robustly report RUN` and the other commands read `RUN/evaluation`.
            audit: an audit of this result, which is written beside it.

        Raises:
            EvidenceError: the path is that of a file.
            OSError: the folder is read-only or the disk is full.
        """
        folder = super().save(path)
        if audit is not None:
            write_audit(folder, audit.record(folder))
        return folder

    def audit(
        self,
        model: Model | None = None,
        data: object = None,
        *,
        share: float = Sampling.share,
        confidence: float = Sampling.confidence,
        rerun: Literal["sample", "all"] = "sample",
    ) -> Audit:
        """Recompute all numbers and verdicts with the model and the data at hand.

        The evidence is written to a temporary folder and checked as `robustly audit` checks a run, except for the
        names of model and data, which only a run folder states.

        Args:
            model: the evaluated model, in any form that `evaluate` takes; None takes the one of this result.
            data: the evaluated images, likewise; of more images, the first ones are taken. None takes those of this
                result.
            share: the audit fails if at least this share of the standing verdicts is false, in (0, 1), ...
            confidence: ... with this probability, in (0, 1).
            rerun: "all" attacks every standing example again, "sample" as many as the guarantee needs.

        Raises:
            EvaluationError: there is no model or no data.
            ValueError: a model or data that `evaluate` would refuse; a share or confidence outside (0, 1), or
                another word than "sample" and "all".
        """
        model, data = self.model if model is None else model, self.data if data is None else data
        if model is None or data is None:
            missing = " and ".join(name for name, part in (("model", model), ("data", data)) if part is None)
            raise EvaluationError(f"an audit needs the evaluated {missing}: call audit(model, data)")
        if rerun not in ("sample", "all"):
            raise ValueError(f'rerun should be "sample" or "all", got {rerun!r}')
        sampling = Sampling(share, confidence, rerun == "all")
        record = self.summary.data
        names = None if data is self.data else record.classes
        with torch.inference_mode(False):  # gradients are refused in it
            adapted, placed = fit(model, as_image_data(data, classes=names, limit=record.count), None)
            target = EvaluationTarget(adapted, placed, stored_threat(self.summary.threat, self.images.threat))
            with TemporaryDirectory(prefix="robustly-") as folder:
                super().save(folder)
                return audit(Path(folder), target, self.suite or suite_of(self.summary), sampling=sampling)

    def _record(self, audit: Audit) -> AuditRecord:
        with TemporaryDirectory(prefix="robustly-") as folder:
            return audit.record(super().save(folder))


def plot_threats(results: str | Path | Evidence | Sequence[Evidence]) -> Plot:
    """A figure of the accuracy under several threats, under all at once, and of their security curves.

    Args:
        results: a run folder, whose evaluations on the same images are taken; or evaluations of one model on the
            same images, each under another threat.

    Raises:
        EvidenceError: fewer than two threats, or evaluations that do not belong together.
        ReportError: the folder is not that of a run.
    """
    if isinstance(results, str | Path):
        run = read_run(Path(results))
        if run.union is None:
            raise EvidenceError(f"{results} has no evaluations under two threats on the same images")
        return threats_plot(run.name, run.union, run.tests)
    results = (results,) if isinstance(results, Evidence) else results
    union = union_of_threats(results)
    first = results[0].summary
    return threats_plot(first.run or first.model.name, union, [ThreatTest.of(one.summary) for one in results])


def suite_of(summary: Summary) -> Suite | None:
    """The suite of an evaluation: a known one, or one of the stages in the evidence; None if there is neither."""
    try:
        suite = suite_from(summary.suite.name, summary.composed, threat_or_kind(summary.threat))
        suite = without_draws(suite, summary.suite.names)
        return as_recorded(suite, summary.suite.certificates)
    except (ValueError, KeyError, TypeError):
        return None


def evidence_folder(path: str | Path, label: str | None = None) -> Path:
    """The folder of an evaluation's files.

    Args:
        path: a run folder, or the folder of the evidence itself.
        label: name of the evaluation if the run has several.

    Raises:
        EvidenceError: there is no evaluation.
    """
    folder = Path(path)
    if label is None and (folder / SUMMARY).is_file():
        return folder
    if not folder.is_dir():
        raise EvidenceError(f"there is no folder {folder}")
    found = evaluation_folder(folder, label)
    if (found / SUMMARY).is_file():
        return found
    others = sorted(one.parent.name.removeprefix("evaluation_") for one in folder.glob(f"evaluation_*/{SUMMARY}"))
    hint = (
        f"it has the evaluations {', '.join(others[:5])}"
        if others
        else f"evaluate it first (robustly evaluate {folder})"
    )
    raise EvidenceError(f"{found / SUMMARY} does not exist: {hint}")


def read_result(path: str | Path, label: str | None = None) -> Result:
    """Read the result of an evaluation, without model and data.

    Args:
        path: a run folder, or a folder that `Result.save` wrote.
        label: name of the evaluation if the run has several.

    Raises:
        EvidenceError: there is no evaluation, or a file is cut off or of another schema.
    """
    folder = evidence_folder(path, label)
    return Result.of(read_evidence(folder), audited=read_audit(folder))
