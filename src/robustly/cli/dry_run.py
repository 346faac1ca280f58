"""`robustly train --dry-run`: tables of a method's parts and of the cost of one step."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.table import Table

from robustly.cli.progress import guide_words
from robustly.experiments.configuration import RunConfig
from robustly.statistics import Proportion
from robustly.threats import Chain, allows_nothing
from robustly.training import Job, MaxInner, MethodError
from robustly.training.cost import StepCost, step_cost
from robustly.training.engine.guide_check import weak_words

STANDARD_PASSES = 2


def show_composition(console: Console, config: RunConfig) -> None:
    """Print the five parts, and the passes per example through each network. Needs neither data nor files.

    Raises:
        MethodError: the run is too short for a part, so its cost cannot be counted.
    """
    parts = Table(title=f"{config.recipe} under {config.threats_text}", title_justify="left")
    for column in ("slot", "part", "settings"):
        parts.add_column(column, overflow="fold")
    for slot, what, settings in rows_of(config.method_settings):
        parts.add_row(slot, what, settings)
    console.print(parts)
    config.method.check_epochs(config.training.epochs)
    cost = step_cost(config.method, config.training.epochs, config.frozen_networks, config.threats)
    console.print(cost_table(cost))
    console.print(f"{cost.total} in all, {cost.total / STANDARD_PASSES:g} times standard training's")
    several = several_words(config)
    console.print(f"{several}\n" if several else "", soft_wrap=True, highlight=False)


def several_words(config: RunConfig) -> str:
    """The training attack's gradient passes per image, beside those of MAX if the run has several threats.

    Empty for a method whose attack has one threat that is not a chain, and for one without attack.
    """
    method, threats = config.method, config.threats
    chained = isinstance(threats[0], Chain) and threats[0].any_order
    if method.inner is None or (len(threats) == 1 and not chained):
        return ""
    cost = step_cost(method, config.training.epochs, config.frozen_networks, threats)
    passes = f"gradient passes of the training attack per image: {cost.attack_gradients}"
    if len(threats) == 1:
        return f"{passes}, under a chain of {len(threats[0].parts)}" if isinstance(threats[0], Chain) else passes
    try:
        of_max = replace(method, inner=MaxInner(steps=method.inner.steps))
    except MethodError:  # the loss needs another training attack
        return f"{passes}, under {len(threats)} threats"
    highest = step_cost(of_max, config.training.epochs, config.frozen_networks, threats).attack_gradients
    return f"{passes}, under {len(threats)} threats (max with as many steps: {highest})"


def show_job(console: Console, config: RunConfig, job: Job, guide: Proportion | None = None) -> None:
    """Print the networks' sizes, the data and the schedule.

    Args:
        console: the console.
        config: settings of the run.
        job: its networks and data.
        guide: accuracy on training images of a guide that was trained beforehand; None without one.
    """
    training, optimizer, schedule = config.training, config.optimizer, config.schedule
    networks = {"model": job.model, **{name: network.module for name, network in job.networks.items()}}
    sizes = [
        f"{name} {sum(parameter.numel() for parameter in network.parameters()):,}"
        for name, network in networks.items()
    ]
    before = "".join(f"{line}\n" for line in (*empty_lines(config), *alone_lines(config, job)))
    if guide is not None:
        before += f"{guide_words(guide)}\n"
        before += f"! {weak_words(guide.share)}\n" if weak_words(guide.share) else ""
    console.print(
        f"parameters: {', '.join(sizes)}\n{before}"
        f"{training.epochs} epochs of {job.steps_per_epoch} steps of {training.batch_size} images, "
        f"{len(job.train)} for training, {len(job.validation)} for selection; {optimizer.name} at "
        f"{optimizer.learning_rate:g}, weight decay {optimizer.weight_decay:g}, {schedule.name} schedule\n"
        "nothing was written",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )


def empty_lines(config: RunConfig) -> list[str]:
    """A line about each threat of the training attack that allows no change."""
    if config.method.inner is None:
        return []
    return [
        f"! {threat} allows no change: the training attack has nothing to search"
        for threat in config.threats
        if allows_nothing(threat)
    ]


def alone_lines(config: RunConfig, job: Job) -> list[str]:
    """A line about the epochs of each network that is trained before the run, with their cost."""
    cost = step_cost(config.method, config.training.epochs, config.frozen_networks, config.threats)
    given = {"model": config.model, **{name: network.model for name, network in config.networks.items()}}
    lines = []
    for name, epochs in job.epochs_alone.items():
        who = "the model" if name == "model" else f"the {name} alone"
        weights = ", from its given weights" if given[name].weights is not None else ""
        of_run = cost.forwards.get(name, 0) + cost.backwards.get(name, 0)
        line = f"before the run, {who} for {epochs} epochs with clean cross-entropy{weights}"
        share = STANDARD_PASSES * epochs / of_run if of_run else 0.0
        lines.append(f"{line}: as many passes as {share:.1f} of its epochs in the run" if share else line)
    return lines


def rows_of(method: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Slot, name and settings of every part of a method, from its plain settings."""
    rows = []
    for slot in ("labels", "inner", "loss", "weights"):
        part = method.get(slot)
        if part is None:
            rows.append((slot, {"labels": "data", "loss": "clean"}.get(slot, "none"), ""))
        else:
            rows.append((slot, str(part["name"]), _settings_text({k: v for k, v in part.items() if k != "name"})))
    chain = method.get("parameters") or {}
    rows += [("parameters", name, _settings_text(settings)) for name, settings in chain.items()]
    return rows if chain else [*rows, ("parameters", "none", "")]


def cost_table(cost: StepCost) -> Table:
    """Passes per example by network, counted."""
    table = Table(title="passes per example, counted", title_justify="left")
    for column in ("network", "forward", "backward"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for role in cost.forwards:
        table.add_row(role, str(cost.forwards[role]), str(cost.backwards[role]))
    return table


def _settings_text(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_number(value)}" for key, value in settings.items() if value is not None)


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
