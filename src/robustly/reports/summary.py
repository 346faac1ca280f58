"""`evaluation/summary.json` -> `Evaluation`."""

from robustly.reports.evidence import (
    AttackResult,
    Certified,
    ClassResult,
    DataFacts,
    Evaluation,
    Finding,
    ModelFacts,
    Proportion,
    ReportError,
    SecurityCurve,
    ThreatFacts,
    wilson,
)
from robustly.reports.fields import Fields

SCHEMAS = (1, 2)
"""The versions of `evaluation/summary.json` that this package reads."""


def parse_summary(summary: Fields) -> Evaluation:
    """The evaluation that a summary tells of.

    Raises:
        ReportError: if the schema is another one, or a field is missing or of the wrong kind.
    """
    schema = summary.values.get("schema")
    if schema not in SCHEMAS:
        raise ReportError(
            f"{summary.where} is written in schema {str(schema)[:20]}, but this robustly reads schema "
            f"{' and '.join(map(str, SCHEMAS))}: use the robustly that wrote it, or evaluate again."
        )
    worst = summary.inside("worst_case")
    suite = summary.maybe_inside("suite") or Fields({}, f"{summary.where}: suite")
    certified = summary.maybe_inside("certified")
    curve = summary.maybe_inside("security_curve")
    versions = summary.maybe_inside("versions")
    return Evaluation(
        run=summary.maybe_text("run"),
        created=summary.maybe_text("created") or "",
        model=_model(summary.inside("model")),
        data=_data(summary.inside("data")),
        threat=_threat(summary.inside("threat")),
        suite=suite.maybe_text("name") or "unnamed",
        mode=suite.maybe_text("mode") or "every",
        seed=suite.maybe_whole("seed"),
        clean=summary.inside("clean").proportion("correct", "interval"),
        attacks=_attacks(summary.inside("attacks"), suite, summary.maybe_inside("failures")),
        worst_case=worst.proportion("robust", "interval"),
        worst_case_8bit=_rounded(worst),
        certified=None if certified is None else _certified(certified),
        curve=None if curve is None else _curve(curve),
        per_class=tuple(_class(entry) for entry in summary.objects("per_class") if entry.whole("count") > 0),
        invalid=summary.maybe_whole("invalid") or 0,
        warnings=tuple(str(text) for text in summary.listed("warnings")),
        versions={} if versions is None else {key: str(value) for key, value in versions.values.items()},
        device=summary.maybe_text("device"),
        findings=tuple(_finding(entry) for entry in summary.objects("findings")),
        masking=tuple(str(text) for text in summary.listed("masking")),
    )


def _model(model: Fields) -> ModelFacts:
    return ModelFacts(
        model.text("name"),
        model.maybe_whole("parameters"),
        model.maybe_text("weights_sha256"),
        model.maybe_text("checkpoint"),
    )


def _data(data: Fields) -> DataFacts:
    return DataFacts(
        source=data.text("source"),
        split=data.maybe_text("split"),
        count=data.whole("count"),
        sha256=data.maybe_text("sha256"),
        classes=tuple(str(name) for name in data.listed("classes")),
        note=data.maybe_text("note"),
    )


def _threat(threat: Fields) -> ThreatFacts:
    box = threat.numbers("box")
    low, high = (box[0], box[1]) if len(box) == 2 else (0.0, 1.0)
    return ThreatFacts(
        text=threat.text("text"),
        norm=threat.maybe_text("norm") or threat.text("text").partition(":")[0],
        epsilon=threat.number("epsilon"),
        epsilon_text=threat.maybe_text("epsilon_text") or f"{threat.number('epsilon'):g}",
        box=(0.0 if low is None else low, 1.0 if high is None else high),
        words=threat.maybe_text("words") or "",
    )


def _attacks(results: Fields, suite: Fields, failures: Fields | None) -> tuple[AttackResult, ...]:
    """The results in the suite's order; an attack the suite does not list comes last."""
    listed = {entry.text("name"): entry for entry in suite.objects("attacks")}
    names = [name for name in listed if name in results.values]
    names += [name for name in results.values if name not in listed]
    failed = {} if failures is None else failures.values
    nothing = Fields({}, results.where)
    return tuple(_attack(name, listed.get(name, nothing), results.inside(name), name in failed) for name in names)


def _attack(name: str, entry: Fields, result: Fields, failed: bool) -> AttackResult:
    settings, plan = entry.maybe_inside("settings"), entry.maybe_inside("plan")
    waits = plan is not None and bool(plan.values.get("on_suspicion"))
    idle = waits and result.maybe_whole("tried") == 0
    return AttackResult(
        name=name,
        title=entry.maybe_text("title") or name,
        settings={} if settings is None else settings.values,
        robust=result.proportion("robust", "interval"),
        robust_8bit=_rounded(result),
        forwards=result.maybe_number("mean_forwards"),
        backwards=result.maybe_number("mean_backwards"),
        seconds=result.maybe_number("seconds"),
        state="failed" if failed else "not needed" if idle else "",
    )


def _finding(entry: Fields) -> Finding:
    passed = entry.values.get("passed")
    return Finding(
        id=entry.text("id"),
        title=entry.maybe_text("title") or entry.text("id"),
        passed=None if passed is None else bool(passed),
        value=entry.maybe_number("value"),
        threshold=entry.maybe_text("threshold") or "",
        words=entry.maybe_text("words") or "",
    )


def _rounded(result: Fields) -> Proportion | None:
    if result.maybe_number("accuracy_8bit") is None:
        return None
    return result.proportion("robust_8bit", "interval_8bit", "accuracy_8bit")


def _certified(certified: Fields) -> Certified:
    return Certified(
        certified.maybe_text("name") or "certificate",
        certified.proportion("robust", "interval"),
        certified.maybe_number("radius"),
    )


def _curve(curve: Fields) -> SecurityCurve | None:
    epsilon = curve.numbers("epsilon")
    if not epsilon:
        return None
    words = [str(text) for text in curve.listed("epsilon_text")] or [
        f"{value:g}" for value in epsilon if value is not None
    ]
    nothing: tuple[float | None, ...] = (None,) * len(epsilon)
    certified = curve.numbers("certified")
    columns = [curve.numbers("accuracy"), curve.numbers("low") or nothing, curve.numbers("high") or nothing]
    if {len(epsilon), len(words), len(certified or epsilon), *map(len, columns)} != {
        len(epsilon)
    } or None in epsilon:
        raise ReportError(f"{curve.where}: its lists should be of one length, with a number for every epsilon.")
    return SecurityCurve(
        attack=curve.maybe_text("attack") or "attack",
        epsilon=tuple(value for value in epsilon if value is not None),
        epsilon_text=tuple(words),
        accuracy=columns[0],
        low=columns[1],
        high=columns[2],
        certified=certified or None,
    )


def _class(entry: Fields) -> ClassResult:
    count = entry.whole("count")

    def share(key: str) -> Proportion:
        value, ends = entry.number(key), entry.numbers(f"{key}_interval")
        correct = round(value * count)
        if not 0 <= correct <= count:
            raise ReportError(f"{entry.where}: {key} should be between 0 and 1, but is {value:g}.")
        if len(ends) == 2 and ends[0] is not None and ends[1] is not None:
            return Proportion(correct, count, ends[0], ends[1])
        return wilson(correct, count)

    return ClassResult(entry.text("class"), share("clean"), share("robust"))
