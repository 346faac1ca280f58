"""The tables and sentences of `robustly bench`."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from robustly.cli.terminal import print_text
from robustly.performance import (
    KINDS,
    Passes,
    Report,
    Spread,
    StepTime,
    SuitePrediction,
    duration_words,
)

TITLES = {"forward": "forward", "input_backward": "to the input", "full_backward": "to the weights"}
SUITE_NAMES = {
    "aa_standard": "AutoAttack",
    "aa_plus": "AutoAttack, version plus",
    "aa_rand": "AutoAttack, version rand",
}


def print_report(console: Console, report: Report, recipe: str) -> None:
    """Print everything that was measured and predicted.

    Args:
        console: the console.
        report: the measurements.
        recipe: name of the recipe of the training step.
    """
    shape = " x ".join(map(str, report.model["image"]))  # type: ignore[call-overload]
    title = f"{report.model['name']}, images of {shape}: images per second (ms of an image)"
    console.print(passes_table(report.passes, title))
    print_text(console, "a pass to the input or to the weights is a forward and a backward pass")
    for sentence in sentences(report, recipe):
        print_text(console, sentence)
    if report.attacks:
        console.print(attacks_table(report))
    if report.suites:
        console.print(suites_table(report))
    for one in report.suites:
        for sentence in suite_sentences(one, report.devices):
            print_text(console, sentence)


def passes_table(passes: Passes, title: str) -> Table:
    """Images per second of each kind of pass, and milliseconds of an image."""
    table = Table(title=title, title_justify="left")
    for column in ("batch", "precision", "layout"):
        table.add_column(column, justify="right" if column == "batch" else "left", no_wrap=True)
    for kind in KINDS:
        table.add_column(TITLES[kind], justify="right")
    rows: dict[tuple[int, str, str], dict[str, str]] = {}
    for one in passes.times:
        cell = one.failure or f"{1 / one.per_image:,.0f} ({1000 * one.per_image:.3g})"
        rows.setdefault((one.batch_size, one.precision, one.layout), {})[one.kind] = cell
    for (size, precision, layout), cells in rows.items():
        table.add_row(str(size), precision, layout.replace("_", "-"), *(cells.get(kind, "") for kind in KINDS))
    return table


def attacks_table(report: Report) -> Table:
    """Time of each attack relative to its counted passes."""
    table = Table(title="attacks: time relative to their counted passes, made by hand", title_justify="left")
    own = report.passes.precisions[0]
    columns = ("attack, shortened", "search", "passes", "batch", f"to passes in {own}", "to its own precision")
    for column in columns:
        table.add_column(column, justify="left" if column in columns[:2] else "right")
    alike: dict[int, list[str]] = {}
    for name, one in report.attacks.items():
        alike.setdefault(id(one), []).append(name)
    for names in alike.values():
        one = report.attacks[names[0]]
        table.add_row(
            ", ".join(names),
            one.precision,
            f"{one.forwards + one.backwards:.0f}",
            str(one.batch_size),
            _ratio(one.ratio),
            _ratio(one.own_ratio),
        )
    return table


def suites_table(report: Report) -> Table:
    """Predicted time of each suite."""
    table = Table(title=f"predicted time of the attacks under {report.threat}", title_justify="left")
    for column in ("suite", "images", "at least", "expected", "at most", "passes at most", "time / passes"):
        table.add_column(column, justify="left" if column == "suite" else "right")
    for one in report.suites:
        table.add_row(
            one.suite,
            f"{one.count:,}",
            duration_words(one.lower.median),
            "" if one.expected is None else duration_words(one.expected.median),
            duration_words(one.upper.median),
            f"{one.passes[2]:,}",
            f"{one.ratio:.2f}",
        )
    return table


def suite_sentences(one: SuitePrediction, devices: int) -> Iterator[str]:
    """The prediction of a suite in words."""
    named = SUITE_NAMES.get(one.suite)
    name = f"{named} ({one.suite})" if named else one.suite
    told = one.expected or one.upper
    limit = "" if one.expected else "at most "
    kind = "" if one.expected else ", if no attack breaks any image"
    why = f"middle half of {told.runs} measurements"
    why += " and 95 % interval of the robust accuracy" if one.expected else ""
    shared = "" if devices == 1 else f", {duration_words(told.median / devices)} on {devices} such devices"
    yield (
        f"{name} on {one.count:,} images: {limit}about {duration_words(told.median)} here{shared}{kind} "
        f"[{_range(told)}, {why}]"
    )
    if one.curve:
        yield f"  its security curve: at most {duration_words(one.curve)} more"
    if one.on_suspicion:
        yield f"  not included, as they run after signs of masked gradients only: {', '.join(one.on_suspicion)}"
    if one.unknown:
        yield f"  not included, as they could not be timed: {', '.join(one.unknown)}"


def sentences(report: Report, recipe: str) -> Iterator[str]:
    """Memory, choices, the training step, bounds, and what was not measured."""
    if report.passes.left_out:
        left = ", ".join(map(str, report.passes.left_out))
        yield f"not measured, as they would take too long (--seconds): batches of {left}"
    if report.clock == "cpu":
        yield "processor time of one thread, not time of the clock on the wall"
    for one in report.memory:
        training = "" if one.training is None else f", to the weights {_size(one.training)}"
        yield f"memory of a batch of {one.batch_size}: to the input {_size(one.forward_backward)}{training}"
    yield from _choices(report)
    if report.step is not None:
        yield from step_sentences(report.step, recipe)
    if report.step_failure:
        yield f"the training step was not measured: {report.step_failure}"
    if report.bounds is not None:
        for name, bound in report.bounds.times.items():
            yield (
                f"bounds by {name}: {duration_words(bound.seconds.median)} for an image, as long as "
                f"{bound.forwards.median:,.0f} forward passes"
            )
        for name, reason in report.bounds.failures.items():
            yield f"no bounds by {name}: {reason}"
    for name, reason in report.attack_failures.items():
        yield f"{'the attacks were' if name == 'all' else f'the attack {name} was'} not measured: {reason}"
    if report.suites and report.survival is None:
        yield "no evaluation of this run under this threat was found, on which the expected time depends"
    elif report.suites and report.survival is not None:
        share = report.survival
        yield (
            f"expected times are for the shares in {share.evaluation}: {100 * share.correct:.1f} % correct, "
            f"{100 * share.robust:.1f} % robust, of {share.count:,} images"
        )


def _choices(report: Report) -> Iterator[str]:
    one = report.choices
    layout = one.layout.replace("_", "-")
    yield f"fastest here in {report.passes.precisions[0]}: batches of {one.batch_size} images, {layout}"
    if one.threads_gain is not None and one.threads_gain < 1:
        yield (
            f"proposed: OMP_NUM_THREADS={one.threads} takes {one.threads_gain:.2f} of the time of "
            f"{report.machine['threads']} threads; results may differ by rounding"
        )
    if one.bfloat16 is not None:
        yield (
            f"a pass to the input in bfloat16 takes {one.bfloat16:.2f} of the time of full precision; "
            + (
                "for training, --runtime.precision bf16-mixed uses it"
                if one.bfloat16 < 1
                else "it does not pay on this machine"
            )
        )


def step_sentences(step: StepTime, recipe: str) -> Iterator[str]:
    """The training step in words."""
    fewer = "" if step.batch_size == step.wanted else f" (the recipe has {step.wanted}, which would take too long)"
    passes = sum(step.forwards.values()) + sum(step.backwards.values())
    yield (
        f"training step of {recipe}: {step.batch_size} images{fewer} in {duration_words(step.seconds.median)} "
        f"[{_range(step.seconds)}], {_ratio(step.ratio)} of its "
        f"{passes} counted passes made by hand in full precision"
    )
    yield (
        f"  drawing and augmenting images: {100 * step.data.median / max(step.seconds.median, 1e-12):.1f} % of it, "
        f"{step.batch_size / max(step.data.median, 1e-12):,.0f} images per second; memory: {_size(step.memory)}"
    )
    yield (
        f"  an epoch of {step.step_images:,} images, with validation: about {duration_words(step.epoch.median)}; "
        f"{step.epochs} epochs: about {duration_words(step.run.median)} [{_range(step.run)}], as after all warm-ups"
    )


def _ratio(spread: Spread) -> str:
    return f"{spread.median:.2f} [{spread.low:.2f}, {spread.high:.2f}]"


def _range(spread: Spread) -> str:
    return f"{duration_words(spread.low)} to {duration_words(spread.high)}"


def _size(count: int) -> str:
    """Bytes as text."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
