"""A page for each training method, made when the documentation is built: from its recipes and its parts.

Nothing about a method is written twice: formula, defaults, source and pitfalls come from the docstrings of its
parts, settings from its recipes, published numbers from the table of `robustly compare`, passes from counting, and
numbers of ours from the committed benchmark.
"""

import csv
import inspect
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from robustly.cli.dry_run import rows_of
from robustly.cli.recipes import read_recipe, recipe_names, recipe_text
from robustly.experiments.configuration import RunConfig, build_config
from robustly.reports.tables.published import ATTACKS, rows_of_method
from robustly.training import INNER_MAXIMISERS, LABEL_SOURCES, LOSSES, PARAMETER_PARTS, WEIGHTS, DataLabels
from robustly.training.cost import step_cost
from robustly.training.parts import CONVENTIONAL_NETWORKS

TABLES: dict[str, dict[str, Any]] = {
    "labels": LABEL_SOURCES,
    "inner": INNER_MAXIMISERS,
    "loss": LOSSES,
    "weights": WEIGHTS,
    "parameters": PARAMETER_PARTS,
}
RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
STUDIED = ("dynat", "at_kl", "lbgat0")
"""Methods, and beginnings of their names, whose pages have the decisions of the study of DYNAT."""


@dataclass(frozen=True)
class Recipe:
    """A recipe and its settings; FILE stands for the weights of teachers."""

    name: str
    comment: str
    config: RunConfig


def recipes_of(method: str) -> list[Recipe]:
    """All recipes of a method, the published settings first."""
    names = [name for name in recipe_names() if name.partition("/")[2] == method]
    return [read(name) for name in sorted(names, key=lambda name: (name.startswith("mnist5k/"), name))]


def read(name: str) -> Recipe:
    """A shipped recipe."""
    settings = read_recipe(name)
    for role, kind in CONVENTIONAL_NETWORKS.items():
        if kind == "frozen" and isinstance(network := settings.get(role), dict):
            settings[role] = {**network, "weights": "FILE"}
    lines = recipe_text(name).splitlines()
    comment = [line.lstrip("# ").rstrip() for line in takewhile(lambda line: line.startswith("#"), lines)]
    return Recipe(name, "\n".join(comment), build_config(settings))


def methods() -> list[str]:
    """All methods that have a recipe, by name."""
    return sorted({name.partition("/")[2] for name in recipe_names()})


def title(method: str) -> str:
    """A method's name as the literature writes it."""
    capitals = {
        "at",
        "awp",
        "ema",
        "swa",
        "fat",
        "sat",
        "alp",
        "kd",
        "ard",
        "iad",
        "gkl",
        "ikl",
        "dkl",
        "fgsm",
        "kl",
        "max",
        "avg",
        "msd",
        "gat",
    }
    names = {
        "dynat": "DYNAT", "trades": "TRADES", "mart": "MART", "gairat": "GAIRAT", "mail": "MAIL", "rslad": "RSLAD",
        "pgd": "PGD", "lbgat0": "LBGAT0", "lbgat6": "LBGAT6", "adaad": "AdaAD",
        "gradalign": "GradAlign", "wrn": "WRN", "n": "N", "iad2": "IAD2", "mse": "MSE", "gair": "GAIR",
        "resnet18": "ResNet-18", "eat": "E-AT", "tafd": "TaFD", "macer": "MACER", "cs": "CS",
    }  # fmt: skip
    words = [names.get(word, word.upper() if word in capitals else word.capitalize()) for word in method.split("_")]
    return "-".join(words)


def page(method: str) -> str:
    """Markdown of a method's page."""
    recipes = recipes_of(method)
    first = recipes[0]
    parts = [f"# {title(method)}", ""]
    for recipe in recipes:
        parts += [f"## `{recipe.name}`", "", *_quoted(recipe.comment), "", *_table(recipe), ""]
    parts += [
        "## The parts",
        "",
        *_explained(first),
        *_cost(first),
        *_published(method),
        *_measured(method),
        *_controls(method),
        *_search(method),
    ]
    return "\n".join(parts) + "\n"


def _quoted(text: str) -> list[str]:
    """A recipe's comment: its prose as a quotation, its commands (also over several lines) as a block to copy."""
    prose, commands, goes_on = [], [], False
    for line in text.splitlines():
        if goes_on or line.startswith("robustly "):
            command, _, aside = line.strip().partition("  ")
            comment = f"  # {aside.strip().removeprefix('(').removesuffix(')')}" if aside else ""
            commands.append(("    " if goes_on else "") + command + comment)
            goes_on = command.endswith("\\")
        else:
            prose.append(line)
    return [*(f"> {line}  " for line in prose), "", "```", *commands, "```"]


def _table(recipe: Recipe) -> list[str]:
    config = recipe.config
    lines = ["| part | what | settings |", "| --- | --- | --- |"]
    lines += [f"| {slot} | `{what}` | {said or '-'} |" for slot, what, said in rows_of(config.method_settings)]
    networks = {"model": config.model, **{name: network.model for name, network in config.networks.items()}}
    alone = {"model": config.pretrain, **{name: network.pretrain for name, network in config.networks.items()}}
    for name, model in networks.items():
        before = f", trained first for {alone[name]} clean epochs" if alone[name] else ""
        scaled = "" if model.mean is None else f", inputs normalised by {list(model.mean)}, {list(model.std)}"
        lines.append(f"| {name} | `{model.name}` | width {model.width:g}{scaled}{before} |")
    training, optimizer, schedule = config.training, config.optimizer, config.schedule
    ramp = f", epsilon grown over {training.epsilon_ramp:g} epochs" if training.epsilon_ramp else ""
    times = f" at {', '.join(f'{b:g}' for b in schedule.boundaries)}" if schedule.boundaries else ""
    lines.append(
        f"| training | {training.epochs} epochs | threat {config.threats_text}, batches of {training.batch_size}, "
        f"{optimizer.name} at {optimizer.learning_rate:g}, weight decay {optimizer.weight_decay:g}, "
        f"{schedule.name} schedule{times}{ramp} |"
    )
    return lines


def _explained(recipe: Recipe) -> list[str]:
    """The docstring of every part, its settings as a list."""
    lines: list[str] = []
    settings = recipe.config.method_settings
    used = [(slot, (settings.get(slot) or {}).get("name")) for slot in ("labels", "inner", "loss", "weights")]
    used += [("parameters", name) for name in settings.get("parameters") or {}]
    for slot, name in used:
        if name is None and slot in ("inner", "weights"):
            continue
        cls = TABLES[slot][name] if name is not None else {"labels": DataLabels, "loss": LOSSES["clean"]}[slot]
        lines += [f"### {slot}: {name or {'labels': 'data', 'loss': 'clean'}[slot]}", "", *_docstring(cls), ""]
    return lines


def _docstring(cls: type) -> list[str]:
    lines, arguments = [], False
    for line in (inspect.getdoc(cls) or "").splitlines():
        heading = line.rstrip(":") if line in ("Args:", "Raises:", "Returns:") else None
        if heading is not None:
            arguments = True
            lines += ["", f"**{ {'Args': 'Settings', 'Raises': 'Refused', 'Returns': 'Returns'}[heading] }**", ""]
        elif arguments and line.startswith("    ") and line[4:5] != " " and ":" in line:
            name, _, text = line.strip().partition(":")
            lines.append(f"- `{name}`: {text.strip()}")
        elif arguments and line.strip():
            lines.append(f"  {line.strip()}")
        else:
            lines.append(line)
    return lines


def _cost(recipe: Recipe) -> list[str]:
    cost = step_cost(
        recipe.config.method,
        recipe.config.training.epochs,
        recipe.config.frozen_networks,
        recipe.config.threats,
    )
    lines = ["## What a step costs", ""]
    lines += ["Passes per unbroken example in the last epoch, after all warm-ups, counted.", ""]
    lines += ["| network | forward | backward |", "| --- | --- | --- |"]
    lines += [f"| {role} | {cost.forwards[role]} | {cost.backwards[role]} |" for role in cost.forwards]
    return [*lines, ""]


def _published(method: str) -> list[str]:
    rows = rows_of_method(method)
    attacks = [attack for attack in ATTACKS if any(attack in row.accuracy for row in rows)]
    lines = [
        f"| {row.data} | {row.architecture} | {row.epsilon} | "
        + " | ".join(f"{100 * row.accuracy[a]:.2f}" if a in row.accuracy else "-" for a in attacks)
        + f" | {row.name}; {row.source} |"
        for row in rows
    ]
    columns = ["data", "architecture", "epsilon", *attacks, "source"]
    top = [f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |"]
    return ["## Published", "", *top, *lines, ""] if rows else []


def _measured(method: str) -> list[str]:
    with (RESULTS / "methods.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == method]
    if not rows:
        return []
    names = {
        "data": "data",
        "seeds": "seeds",
        "clean": "clean",
        "pgd_20": "PGD-20",
        "cw_20": "C&W",
        "quick": "`quick`",
    }
    lines = ["## Measured here", "", f"| {' | '.join(names.values())} |", f"| {' | '.join('---' for _ in names)} |"]
    lines += [f"| {' | '.join(row[name] for name in names)} |" for row in rows]
    return [*lines, "", "[All methods, and under which settings](../results.md); not the papers' scale.", ""]


def _controls(method: str) -> list[str]:
    """Decisions of the study of DYNAT."""
    if not method.startswith(STUDIED):
        return []
    _, _, decisions = (RESULTS / "dynat_study.md").read_text(encoding="utf-8").partition("## The two rules\n\n")
    rules = list(takewhile(lambda line: line.startswith("- "), decisions.splitlines()))
    about = (
        "DYNAT differs from PGD-AT in two ways: its attack (KL divergence from the clean prediction) and its "
        "labels (of a guide). `at_kl` has the attack alone."
    )
    better = "[PGD-AT that starts from clean training](pgd_at_from_clean.md) has more of both accuracies there."
    return ["## What the control shows", "", about, "", *rules, "", f"[The study](../dynat-study.md). {better}", ""]


def _search(method: str) -> list[str]:
    """Rows of the search for a better method that concern the start from clean training."""
    if method != "pgd_at_from_clean":
        return []
    lines = (RESULTS / "dynat_search.md").read_text(encoding="utf-8").splitlines()
    head = next(place for place, line in enumerate(lines) if line.startswith("| candidate |"))
    rows = [line for line in lines[head + 2 :] if line.startswith("|") and "clean epochs" in line]
    about = (
        "CIFAR-10 as JPEG, 10,000 images, a ResNet-18 of a quarter of the width, 6 epochs of the run, PGD-5, linf "
        "8/255: accuracy in % on 1,000 test images, means over seeds and their standard errors. There, the clean "
        "epochs were a run of their own."
    )
    return ["## What the search found", "", about, "", *lines[head : head + 2], *rows, ""]


def index() -> str:
    """Markdown of the list of all methods."""
    lines = [
        "# Training methods",
        "",
        "A method is a row of five parts. Whatever is not in this table is [a few lines of YAML]"
        "(../training.md#compose-a-method): start from a recipe, change a part. "
        "`robustly train RECIPE --dry-run` prints the parts and what a step costs.",
        "",
        "| method | labels | inner | loss | weights | parameters | forward + backward passes |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for method in methods():
        recipe = recipes_of(method)[0]
        rows = rows_of(recipe.config.method_settings)
        cells = {slot: ", ".join(what for place, what, _ in rows if place == slot) for slot in TABLES}
        objective = (recipe.config.method_settings["inner"] or {}).get("objective")
        cells["inner"] += f" ({objective.replace('_', '-')})" if objective else ""
        cost = step_cost(
            recipe.config.method,
            recipe.config.training.epochs,
            recipe.config.frozen_networks,
            recipe.config.threats,
        )
        passes = f"{sum(cost.forwards.values())} + {sum(cost.backwards.values())}"
        lines.append(f"| [{title(method)}]({method}.md) | {' | '.join(cells.values())} | {passes} |")
    return "\n".join(lines) + "\n"


def parts() -> str:
    """Markdown of the list of all parts, by the names that recipes use."""
    lines = ["# Parts of methods", ""]
    for slot, table in TABLES.items():
        lines += [f"## {slot}", "", "| name | part | class |", "| --- | --- | --- |"]
        for name, cls in table.items():
            first = (inspect.getdoc(cls) or "").partition("\n")[0].replace("|", "\\|")
            lines.append(f"| `{name}` | {first} | `{cls.__module__}.{cls.__name__}` |")
        lines.append("")
    return "\n".join(lines)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the pages; called by mkdocs."""
    pages = [
        {"All": "methods/index.md"},
        {"Parts": "methods/parts.md"},
        *({title(method): f"methods/{method}.md"} for method in methods()),
    ]
    for entry in config.nav or []:
        if "Training methods" in entry:
            entry["Training methods"] = pages
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages; called by mkdocs."""
    files.append(File.generated(config, "methods/index.md", content=index()))
    files.append(File.generated(config, "methods/parts.md", content=parts()))
    results = (RESULTS / "methods.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "results.md", content=results))
    study = (RESULTS / "dynat_study.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "dynat-study.md", content=study))
    for method in methods():
        files.append(File.generated(config, f"methods/{method}.md", content=page(method)))
    return files
