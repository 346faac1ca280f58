"""`robustly suites NAME`: the stages of a suite, or the threats of a protocol."""

from typing import Any

from rich.markup import escape
from rich.table import Table

from robustly.attacks import Attack
from robustly.certification import Certificate
from robustly.cli.protocol_tables import protocol_costs
from robustly.cli.terminal import PlainConsole
from robustly.evaluation import Plan, Protocol
from robustly.evaluation.suites import as_suite
from robustly.evaluation.suites.cost import announced_cost
from robustly.evaluation.suites.suite import settings
from robustly.threats import Threat

IMAGES, CLASSES, SHAPE = 1000, 10, (3, 32, 32)


def show_suite(name: str, threat: Threat) -> int:
    """Print the stages and passes of a suite, or of attacks with commas between them; returns the exit code.

    Raises:
        ValueError: an unknown suite, or a threat for which it is not defined.
    """
    console = PlainConsole()
    suite = as_suite(name, threat)
    cost = announced_cost(suite, threat, IMAGES, CLASSES)
    table = Table(title=f"{name} under {threat}", title_justify="left")
    for column in ("stage", "attack", "images"):
        table.add_column(column)
    table.add_column("passes", justify="right")
    for stage, (forwards, backwards) in cost.stages.items():
        images = _images(suite.plan(stage)) if suite.worst_case else "all"
        table.add_row(suite.title(stage), _attack(suite.attacks[stage]), images, f"{forwards:,} + {backwards:,}")
    console.print(table)
    for title, certificate in suite.certificates.items():
        words = ", ".join(f"{key} {value}" for key, value in _certificate(certificate).items())
        console.print(f"certificate {title}: {words}", highlight=False, soft_wrap=True, markup=False)
    console.print(
        f"passes: forward + backward per image, for an unbroken 32x32 colour image of {CLASSES} classes; at most "
        f"{cost.per_image:,.0f} for each of {IMAGES:,} images on average",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def show_protocol(protocol: Protocol) -> int:
    """Print the threats of a protocol for 32 x 32 colour images, and their passes; returns the exit code."""
    console = PlainConsole()
    table = Table(title=protocol.name, title_justify="left")
    for column in ("threat", "attacks"):
        table.add_column(column, overflow="fold")
    table.add_column("passes", justify="right")
    costs = protocol_costs(protocol, SHAPE, IMAGES, CLASSES)
    for text, attacks, cost in costs:
        table.add_row(escape(text), escape(attacks), f"{cost.per_image:,.0f}")
    table.add_row("all", "", f"{sum(cost.per_image for *_, cost in costs):,.0f}", style="bold")
    console.print(table)
    lines = [
        f"passes: forward and backward, at most, for each of {IMAGES:,} unbroken 32x32 colour images of {CLASSES} "
        "classes",
        protocol.words,
        *(f"- {note}" for note in protocol.notes),
        f"robustly evaluate RUN --suite {protocol.name} --dry-run prints the threats of a run; robustly suites "
        f"{protocol.name} THREAT the stages of one",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    return 0


def _attack(attack: Attack) -> str:
    """An attack's kind, and the settings that are not its defaults."""
    chosen, usual = settings(attack), settings(type(attack)())
    words = [
        f"{key} {value}" for key, value in chosen.items() if value != usual[key] or key in ("steps", "queries")
    ]
    return f"{chosen['kind']}: {', '.join(words)}"


def _certificate(certificate: Certificate) -> dict[str, Any]:
    """The settings of a certificate and of its work, apart from values that are not set."""
    chosen = settings(certificate)
    budget = chosen.pop("budget", None)
    shown = {**chosen, **(budget if isinstance(budget, dict) else {})}
    return {key: value for key, value in shown.items() if key not in ("kind", "double") and value is not None}


def _images(plan: Plan) -> str:
    words = "unbroken"
    if plan.closest < 1:
        words = f"closest {100 * plan.closest:g} % of the unbroken"
        words += f", at least {plan.at_least}" if plan.at_least else ""
    if plan.sample is not None:
        words = f"{plan.sample} of the unbroken"
        words += f", at most {100 * plan.sample_share:g} %" if plan.sample_share < 1 else ""
    if plan.sentinel:
        words += " (sentinel)"
    return f"{words}, on suspicion" if plan.on_suspicion else words
