"""The content of a dossier, from the evidence of one run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from robustly.evidence import Summary
from robustly.evidence.audit_record import STATED
from robustly.reports.dossier.attack_tables import KnownAttack, class_table, tried_table, untried_table
from robustly.reports.dossier.checklist import checklist, checklist_table
from robustly.reports.dossier.document import Block, Document, Facts, Grid, Items, Paragraph, Section
from robustly.reports.dossier.limits import limit_sentences
from robustly.reports.formats import count, interval, moment, percent, proportion, short
from robustly.reports.pages.facts import audit_words, facts
from robustly.reports.run import ReportError, RunEvidence
from robustly.reports.strength import strength_words
from robustly.reports.verdict import Verdict, verdict
from robustly.statistics import Proportion


@dataclass(frozen=True)
class Floors:
    """Least accuracies that the owner of a model accepts; None where none is stated.

    Args:
        clean: least clean accuracy, in [0, 1].
        robust: least worst-case accuracy under attack, in [0, 1].

    Raises:
        ReportError: one that is not in [0, 1].
    """

    clean: float | None = None
    robust: float | None = None

    def __post_init__(self) -> None:
        for name in ("clean", "robust"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ReportError(f"--{name} is a share between 0 and 1, such as 0.85, got {value:g}.")


def dossier(run: RunEvidence, known: Sequence[KnownAttack], floors: Floors = Floors()) -> Document:
    """The dossier of an evaluated run.

    Args:
        run: the evidence.
        known: all attacks of the package, with which the suite is compared.
        floors: least accuracies.

    Raises:
        ReportError: the run is not evaluated.
    """
    evaluation = run.evaluation
    if evaluation is None:
        raise ReportError(f"{run.path} is not evaluated yet: evaluate it first (robustly evaluate {run.path}).")
    judged = verdict(run)
    sections = (
        Section("Result", tuple(_result(run, evaluation, judged, floors))),
        *_other_threats(run, evaluation),
        Section("Threat model", tuple(_threat(evaluation))),
        Section("Model and data", tuple(_data(run, evaluation))),
        Section("Attacks that were tried", tuple(_attacks(run, evaluation))),
        Section("Known attacks that were not tried", tuple(_untried(evaluation, known))),
        Section("Diagnostics", tuple(_diagnostics(evaluation))),
        Section("Limits", (Items(limit_sentences(run)),)),
        Section("Checklist", _checklist(run)),
        Section("Audit, versions and files", tuple(_provenance(run, evaluation))),
    )
    made = f"Evaluated {moment(evaluation.created)}. " if evaluation.created else ""
    made += f"robustly {evaluation.versions.get('robustly', 'of an unknown version')}."
    return Document(f"Robustness dossier: {run.name}", made, judged.sentence, sections)


def _result(run: RunEvidence, evaluation: Summary, judged: Verdict, floors: Floors) -> Iterator[Block]:
    metrics = evaluation.metrics
    worst, certified, proved = metrics.worst_case.robust, metrics.certified, metrics.proved
    for text in run.notes:
        yield Paragraph(text, strong=True)
    for text in evaluation.masking:
        yield Paragraph(f"Masked gradients are suspected: {text}", strong=True)
    if judged.doubts:
        yield Items(judged.doubts)
    rows = [
        (
            "Clean accuracy",
            proportion(metrics.clean),
            f"{count(metrics.clean.hits)} of {count(metrics.clean.count)}",
        ),
        ("Worst case under attack", proportion(worst), f"{count(worst.hits)} of {count(worst.count)}"),
    ]
    if certified is not None:
        share = certified.robust
        rows.append(
            (f"Certified ({certified.name})", proportion(share), f"{count(share.hits)} of {count(share.count)}")
        )
    yield Grid("Result", ("Quantity", "Accuracy, 95 % interval", "Examples"), tuple(rows))
    low = "0 (no certificate)" if proved is None else percent(proved.share)
    high, left = percent(metrics.attacked.share), f"; {count(metrics.undecided)} undecided" if proved else ""
    yield Paragraph(f"Interval [certified, attacked] on these examples: {low} to {high}{left}.")
    yield Facts(
        (
            ("Least clean accuracy", _floor(metrics.clean, floors.clean, "--clean")),
            ("Least robust accuracy", _floor(metrics.attacked, floors.robust, "--robust")),
            ("Audit", audit_words(run)),
        )
    )


def _floor(share: Proportion, floor: float | None, option: str) -> str:
    if floor is None:
        return f"not stated (robustly dossier {option} SHARE states it)"
    met = "met" if share.share >= floor - 1e-12 else "NOT met"
    contains = share.low < floor <= share.high
    tail = f", but the interval {interval(share)} contains it" if contains else ""
    return f"{100 * floor:g} %: {met} with {percent(share.share)}{tail}"


def _other_threats(run: RunEvidence, evaluation: Summary) -> Iterator[Section]:
    """A section with the numbers of each suite of several threats, if there are any of these weights."""
    blocks: list[Block] = []
    for one in run.protocols:
        if one.weights_sha256 != evaluation.model.weights_sha256:
            continue
        blocks.append(Paragraph(one.terms.label, strong=True))
        blocks.append(Paragraph(" ".join([one.terms.words, *one.terms.notes])))
        blocks += [Items(one.doubts)] if one.doubts else []
        rows = [("Clean", proportion(one.clean), count(one.clean.count))]
        for column in one.columns:
            name = f"{column.threat} (trained on)" if column.role == "trained" else column.threat
            rows.append((name, proportion(column.robust), count(column.robust.count)))
        mean = f"{percent(one.mean.accuracy)} {interval(one.mean)}"
        rows.append((one.mean_words[:1].upper() + one.mean_words[1:], mean, count(one.clean.count)))
        rows.append(("All threats at once", proportion(one.union), count(one.union.count)))
        blocks.append(Grid(one.terms.label, ("Threat", "Accuracy, 95 % interval", "Examples"), tuple(rows)))
        blocks.append(Paragraph(f"The lowest accuracy is that under {one.worst}."))
        blocks += [Items(tuple(f"Left out: {line}" for line in one.left_out))] if one.left_out else []
        blocks.append(Paragraph(f"Whoever doubts them: robustly audit {run.name} --as {one.terms.label}."))
    if blocks:
        yield Section("Other threats", tuple(blocks))


def _threat(evaluation: Summary) -> Iterator[Block]:
    threat, low_high = evaluation.threat, evaluation.threat.box
    yield Paragraph(threat.words or "The evidence has no words on the threat.")
    yield Facts(
        (
            ("Threat", threat.text),
            ("Largest change", f"{threat.limit_text} {threat.unit}"),
            ("Valid inputs", f"from {low_high[0]:g} to {low_high[1]:g}"),
            ("Goal of the attacker", "any wrong class for an image that is classified correctly"),
            ("Knowledge of the attacker", "the whole model with its weights, and the true class"),
            (
                "Attempts",
                "as many as the budgets of the attacks below; an example counts as broken if one succeeds",
            ),
            ("Moment of the attack", "at the time of use, on one image; weights and training data are not changed"),
            ("Outside this threat", "every other change, larger or of another kind; nothing is stated on it"),
        )
    )


def _data(run: RunEvidence, evaluation: Summary) -> Iterator[Block]:
    for group in facts(run):
        if group.title in ("Model", "Data", "Training"):
            yield Paragraph(group.title, strong=True)
            yield Facts(group.facts)
    if evaluation.data.note:
        yield Paragraph(evaluation.data.note)
    if evaluation.metrics.per_class:
        table = class_table(evaluation)
        all_of_them = len(table.rows) == len(evaluation.metrics.per_class)
        yield Paragraph("Classes" if all_of_them else f"The {len(table.rows)} weakest classes", strong=True)
        yield table


def _attacks(run: RunEvidence, evaluation: Summary) -> Iterator[Block]:
    suite, own = evaluation.suite, " (composed by its user)" if evaluation.composed is not None else ""
    mode = "Each ran on every correctly classified example."
    if suite.mode != "every":
        mode = "Each ran on examples that the attacks before it did not break."
    yield Paragraph(f"Suite {suite.name}{own}, seed {suite.seed}. {mode}")
    if not suite.attacks:
        yield Paragraph("The suite has no attack.")
    else:
        yield Facts(tuple((row.title, row.words) for row in strength_words(evaluation)))
        yield tried_table(evaluation, run.table)
    certificates = evaluation.metrics.certificates
    if certificates:
        rows = tuple(
            (
                suite.title(one.name),
                one.terms.certifies,
                proportion(one.robust),
                ", ".join(f"{name} {count(part.count)}" for name, part in one.stages.items()) or "not recorded",
            )
            for one in certificates
        )
        yield Grid(
            "Certificates", ("Certificate", "Certifies", "Certified accuracy", "Decided or last tried by"), rows
        )
        reasons = tuple(
            (suite.title(one.name), words, count(number))
            for one in certificates
            for words, number in one.reasons.items()
        )
        if reasons:
            yield Grid("Open examples", ("Certificate", "Reason", "Examples"), reasons)


def _untried(evaluation: Summary, known: Sequence[KnownAttack]) -> Iterator[Block]:
    table = untried_table(evaluation, known)
    if not table.rows:
        yield Paragraph("Every known attack was tried.")
        return
    yield Paragraph("These attacks are part of robustly and gave no numbers here.")
    yield table


def _diagnostics(evaluation: Summary) -> Iterator[Block]:
    if not evaluation.findings:
        yield Paragraph("No diagnostic was run.")
        return
    words = {True: "passed", False: "FAILED", None: "not decided"}
    rows = tuple(
        (one.id, one.title, words[one.passed], short(one.value), one.threshold, one.words)
        for one in evaluation.findings
    )
    yield Paragraph("Signs of masked gradients. That none is found is not a proof.")
    yield Grid("Diagnostics", ("Test", "Property", "Outcome", "Measured", "Passes", "Meaning"), rows)


def _checklist(run: RunEvidence) -> tuple[Block, ...]:
    answers = checklist(run)
    replies = [one.reply for one in answers]
    numbers = ", ".join(f"{replies.count(reply)} {reply}" for reply in ("yes", "no", "not measured"))
    intro = "The implementation checklist of adversarial training, answered from the files of this run"
    return Paragraph(f"{intro}: {numbers}."), checklist_table(answers)


def _provenance(run: RunEvidence, evaluation: Summary) -> Iterator[Block]:
    for group in facts(run):
        if group.title in ("Evidence", "Software"):
            yield Paragraph("Audit" if group.title == "Evidence" else group.title, strong=True)
            yield Facts(tuple(pair for pair in group.facts if pair[0] != "Stated, not checked"))
    yield Paragraph(f"Stated by the evaluation, and checked by no audit: {'; '.join(STATED)}.")
    yield Facts(tuple((f"SHA-256 of {name}", digest) for name, digest in evaluation.files.items()))
    yield Paragraph(f"Whoever doubts a number recomputes it: {run.check or f'robustly audit {run.name}'}.")
