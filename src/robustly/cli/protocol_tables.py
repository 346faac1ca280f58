"""Tables of a protocol: its columns and their passes before the work, and the accuracies after it."""

from rich.markup import escape
from rich.table import Table

from robustly.cli.protocol_plan import ProtocolPlan
from robustly.data import ImageData
from robustly.evaluation import Protocol
from robustly.evaluation.suites.cost import AnnouncedCost, announced_cost
from robustly.evaluation.suites.protocol import PLANES, ImageShape
from robustly.evaluation.suites.suite import Suite
from robustly.evidence.protocol_result import Gap, ProtocolResult
from robustly.experiments.class_planes import stand_in
from robustly.statistics import Proportion
from robustly.threats import Subspace, Threat, parse_threat


def plan_table(plan: ProtocolPlan, data: ImageData) -> Table:
    """A table of the evaluations of a protocol, with their passes if no attack breaks an image."""
    size, total = data.images[0].numel(), 0
    table = Table(title=f"{plan.protocol.name}: {len(data):,} images", title_justify="left")
    table.add_column("threat", overflow="fold")
    table.add_column("attacks")
    table.add_column("passes at most", justify="right")
    for one in plan.evaluations:
        threat, suite = one.config.threat, plan.protocol.suite(one.config.threat)
        text = f"{threat} (trained on)" if one in plan.trained else str(threat)
        if one.target.name in plan.reused:
            table.add_row(escape(text), f"{one.target.name} is used", "0")
            continue
        cost = announced_cost(suite, threat, len(data), data.num_classes, size)
        total += cost.total
        table.add_row(escape(text), escape(attacks_of(suite)), f"{cost.total:,}")
    table.add_row("all", "", f"{total:,}", style="bold")
    return table


def attacks_of(suite: Suite) -> str:
    """The attack of a suite, or the number of its stages."""
    titles = [suite.title(name) for name in suite.attacks]
    return titles[0] if len(titles) == 1 else f"{len(titles)} stages"


def protocol_costs(
    protocol: Protocol, shape: ImageShape, images: int, classes: int
) -> list[tuple[str, str, AnnouncedCost]]:
    """Text of each threat of a protocol, its attacks in words, and their cost.

    Args:
        protocol: the protocol.
        shape: channels, height and width of the images.
        images: number of images.
        classes: number of classes.
    """
    size = shape[0] * shape[1] * shape[2]
    found = []
    for text in protocol.threats(shape):
        threat: Threat
        if text.endswith(f"@{PLANES}"):
            threat = Subspace(text.partition(":")[2].partition("@")[0], stand_in(size))
        else:
            threat = parse_threat(text)
        suite = protocol.suite(threat)
        found.append((text, attacks_of(suite), announced_cost(suite, threat, images, classes, size)))
    return found


def result_table(run: str, result: ProtocolResult) -> Table:
    """A table of clean accuracy, the accuracy under each threat, their mean, and all at once; with gaps if any.

    Args:
        run: name of the run.
        result: the numbers.
    """
    compares = result.terms.compares
    title = f"{run}, {result.terms.protocol}: {result.clean.count} images, {len(result.columns)} threats"
    table = Table(title=escape(title), title_justify="left")
    table.add_column("threat", overflow="fold")
    several = not compares or len({one.suite for one in result.columns}) > 1
    if several:
        table.add_column("suite" if compares else "attack")
    table.add_column("accuracy in % [95 %]", justify="right")
    if compares:
        table.add_column("below the trained", justify="right")

    def row(name: str, accuracy: str, searches: str = "", gap: str = "", style: str | None = None) -> None:
        cells = (escape(name), *((escape(searches),) if several else ()), accuracy, *((gap,) if compares else ()))
        table.add_row(*cells, style=style)

    row("clean", _share(result.clean))
    trained = [one for one in result.columns if one.role == "trained"]
    for one in trained:
        row(f"{one.threat} (trained on)", _share(one.robust), one.suite)
    if result.trained is not None and len(trained) > 1:
        row("all that were trained on", _share(result.trained.robust))
    for one in result.tested:
        row(one.threat, _share(one.robust), one.suite if compares else ", ".join(one.attacks), _gap(one.gap))
    mean = result.mean
    row(result.mean_words, f"{100 * mean.accuracy:.1f} {_interval(mean.low, mean.high)}")
    worst = next(one for one in result.tested if one.threat == result.worst)
    row(f"worst: {worst.threat}", _share(worst.robust))
    row("union: robust to all", _share(result.union), style="bold")
    return table


def _share(part: Proportion) -> str:
    return f"{100 * part.share:.1f} {_interval(part.low, part.high)}"


def _gap(gap: Gap | None) -> str:
    return "" if gap is None else f"{100 * gap.value:.1f} {_interval(*gap.interval)}"


def _interval(low: float, high: float) -> str:
    return f"[{100 * low:.1f}, {100 * high:.1f}]"
