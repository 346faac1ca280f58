"""`robustly sweep`."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from shlex import quote

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from robustly.cli.arguments import Trust
from robustly.cli.domain_tables import report_protocols
from robustly.cli.recipes import read_recipe
from robustly.cli.sweep_run import LOG, carry_out, carry_out_all, on_ray
from robustly.cli.terminal import PlainConsole, print_text
from robustly.data.sources import check_sources
from robustly.experiments.configuration import RunConfig
from robustly.experiments.overrides import pairs_of, read_yaml
from robustly.experiments.run_folder import CONFIG, RunError, build_job, create_run
from robustly.experiments.sweep_folders import MANIFEST, RunState, read_sweep, refuse_another, state_of, write_sweep
from robustly.experiments.sweeps import Cell, Sweep, cells_of, parse_over, plain_key, sweep_from
from robustly.settings import SettingsError
from robustly.training import MethodError
from robustly.training.engine.job import check_networks

WIDTH = 160  # columns of tables in files and pipes


def run_sweep(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Train (and evaluate) the unfinished runs of a sweep and print a table; returns the exit code.

    Raises:
        ValueError: wrong settings or data; no run was started then.
        OSError: files that cannot be read or written.
    """
    _check_options(options, overrides)
    sweep, folder = _requested(options, overrides)
    cells = cells_of(sweep, folder.resolve())
    configs = {cell.name: cell.config(read_recipe) for cell in cells}
    _refuse_equal(configs)
    states = _states(cells)
    console = PlainConsole() if sys.stdout.isatty() else PlainConsole(width=WIDTH)
    if options.dry_run:
        _check_networks(configs)
        check_classes([cell for cell in cells if not (cell.folder / CONFIG).is_file()], configs)
        console.print(_table(folder, cells, {}))
        return 0
    threads = options.threads or (1 if options.ray else max(1, torch.get_num_threads() // options.workers))
    cells = [  # a resumed run keeps its number of threads
        replace(cell, threads=states[cell.name].threads or threads, trust_code=options.trust_code) for cell in cells
    ]
    to_do = [cell for cell in cells if states[cell.name].state not in ("finished", "diverged")]
    try_out([configs[cell.name] for cell in to_do], options.trust_code)
    write_sweep(folder, sweep)
    for cell in cells:
        if not (cell.folder / CONFIG).is_file():
            create_run(cell.folder, configs[cell.name])
    if options.print_commands:
        print_text(console, "\n".join(cell.shell_command for cell in cells))
        return 0
    print_text(console, f"{folder}: {len(to_do)} of {len(cells)} runs to do")
    reasons = {name: state.message for name, state in states.items() if state.state == "diverged"}
    is_split = any(config.runtime.processes > 1 for config in configs.values())
    places = [{}] * options.workers if is_split else worker_places(options.workers)
    try:
        if to_do:
            reasons |= _carried_out(console, to_do, options.ray, places)
    except KeyboardInterrupt:
        print_text(console, f"\nstopped; continue with: robustly sweep --resume {quote(str(folder))}")
        raise
    console.print(_table(folder, cells, reasons))
    report_protocols(console, folder, _methods_with_domains(sweep, cells, configs))
    for name, reason in reasons.items():
        print_text(console, f"! {name}: {reason} ({folder / name / LOG})")
    print_text(console, f"{len(cells) - len(reasons)} of {len(cells)} runs finished")
    return 2 if reasons else 0


def _check_options(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    if sys.platform == "win32":
        raise SettingsError("sweep needs Linux or macOS")
    if options.workers < 1 or (options.threads is not None and options.threads < 1):
        given = f"{options.workers} and {options.threads}"
        raise SettingsError(f"--workers and --threads must be at least 1, got {given}")
    if options.workers != 1 and (options.ray is not None or options.print_commands):
        raise SettingsError("--ray and --print-commands do not use local workers: give no --workers")
    new = options.recipes or options.seeds or options.over or overrides or options.out
    if options.resume is not None and new:
        raise SettingsError("--resume continues the sweep of the folder: give no recipes, --out or other settings")


def _requested(options: argparse.Namespace, overrides: Sequence[str]) -> tuple[Sweep, Path]:
    """The sweep and its folder, from --resume, from a sweep's file, or from the words of the command."""
    pairs = [(plain_key(key), value) for key, value in pairs_of(overrides)]
    path = Path(options.recipes[0] if len(options.recipes) == 1 else "")
    content = read_yaml(path) if path.suffix in (".yaml", ".yml") and path.is_file() else {}
    if "recipes" in content and (options.seeds or options.over or pairs):
        raise SettingsError(f"{path} holds a whole sweep: give no --seeds, --over or settings beside it")
    folder = options.resume or options.out or Path("runs") / (path.stem if "recipes" in content else "sweep")
    held = read_sweep(folder)
    if options.resume is not None and held is None:
        raise RunError(f"{folder} is not a sweep: it has no {MANIFEST}")
    if options.resume is not None and held is not None:
        return replace(held, evaluate=held.evaluate or options.evaluate), folder
    if "recipes" in content:
        sweep = sweep_from(content, str(path))
    else:
        try:
            seeds = tuple(int(seed) for seed in (options.seeds or "0").split(","))
        except ValueError:
            raise SettingsError(f"--seeds takes whole numbers such as 0,1,2, got {options.seeds!r}") from None
        sweep = Sweep(tuple(options.recipes), seeds, dict(map(parse_over, options.over)), dict(sorted(pairs)))
    # absolute paths, so that the sweep can be resumed from any folder
    recipes = [str(Path(one).resolve()) if one.endswith((".yaml", ".yml")) else one for one in sweep.recipes]
    evaluate = sweep.evaluate or options.evaluate or (held is not None and held.evaluate)
    sweep = replace(sweep, recipes=tuple(recipes), evaluate=evaluate)
    if held is not None:
        refuse_another(folder, sweep, held)
    return sweep, folder


def _refuse_equal(configs: Mapping[str, RunConfig]) -> None:
    known: dict[str, str] = {}
    for name, config in configs.items():
        other = known.setdefault(repr(config.as_plain() | {"recipe": None}), name)
        if other != name:
            raise SettingsError(f"{other} and {name} are the same run: their settings are equal")


def _check_networks(configs: Mapping[str, RunConfig]) -> None:
    """Refuse runs with a missing or an unused network beside the model, as their start would."""
    for name, config in configs.items():
        try:
            check_networks(config.method, {role: network.frozen for role, network in config.networks.items()})
        except MethodError as error:
            raise SettingsError(f"{name}: {error}") from None


def check_classes(cells: Sequence[Cell], configs: Mapping[str, RunConfig]) -> None:
    """Refuse data of another number of classes than its recipe expects; labels are read, no image is decoded.

    A recipe's own source is not read: it may be a download, and the recipe states its number of classes.

    Raises:
        ValueError: another number, or data that cannot be read.
        OSError: a file that cannot be read.
    """
    other = set()
    for cell in cells:
        of_recipe, data = read_recipe(cell.recipe).get("data"), configs[cell.name].data
        own = of_recipe.get("source") if isinstance(of_recipe, Mapping) else None
        if data.expected_classes is not None and data.source != own:
            other.add(data)
    for data in other:
        check_sources(data)


def try_out(configs: Sequence[RunConfig], trust_code: bool) -> None:
    """Load each data set and build each network once, so that errors appear before the first run starts."""
    apart = ("recipe", "seed", "threat", "threats", "optimizer", "schedule", "training", "runtime", "evaluation")
    distinct = {repr([item for item in one.as_plain().items() if item[0] not in apart]): one for one in configs}
    for config in distinct.values():
        build_job(config, Trust(everything=trust_code).allows)


def _carried_out(
    console: Console, cells: Sequence[Cell], ray: str | None, places: Sequence[Mapping[str, str]]
) -> dict[str, str]:
    """Carry out the cells; returns error messages by name of the failed runs."""
    ended: dict[str, str] = {}

    def progress(cell: Cell, reason: str) -> None:
        ended[cell.name] = reason
        reached = _shown(state_of(cell.folder, bool(cell.evaluations)), bool(cell.evaluations))
        words = f"failed: {reason}" if reason else ", ".join(f"{title} {value}" for title, value in reached.items())
        print_text(console, f"[{len(ended)}/{len(cells)}] {cell.name}: {words}")

    if ray is not None:
        places = [{}] * len(cells)  # the cluster limits the number of runs at a time
    with nullcontext(carry_out) if ray is None else on_ray(ray, max(cell.threads for cell in cells)) as one:
        carry_out_all(cells, one, places, progress)
    return {name: reason for name, reason in ended.items() if reason}


def _methods_with_domains(
    sweep: Sweep, cells: Sequence[Cell], configs: Mapping[str, RunConfig]
) -> dict[str, list[Path]]:
    """Folders of the runs with domains, by recipe and settings that vary beside seed and left-out domain."""
    varied = [f"--{key}=" for key in sweep.over if key != "data.leave_out"]
    found: dict[str, list[Path]] = {}
    for cell in cells:
        if configs[cell.name].data.domains is None:
            continue
        words = [word.removeprefix("--") for word in cell.overrides if any(map(word.startswith, varied))]
        found.setdefault(", ".join([cell.recipe, *words]), []).append(cell.folder)
    return found


def worker_places(workers: int) -> list[dict[str, str]]:
    """Environments of the workers: with several GPUs, each worker has one of them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]
    if workers == 1 or len(gpus) < 2:
        return [{}] * workers
    return [{"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)]} for index in range(workers)]


def _states(cells: Sequence[Cell]) -> dict[str, RunState]:
    return {cell.name: state_of(cell.folder, bool(cell.evaluations)) for cell in cells}


def _shown(state: RunState, evaluate: bool) -> dict[str, str]:
    """Progress of a run, by title of the table's columns."""
    shares = {"validation clean": state.clean, "robust": state.robust}
    shares |= {"evaluated robust": state.evaluated} if evaluate else {}
    percent = {title: "-" if share is None else f"{100 * share:.1f} %" for title, share in shares.items()}
    seconds = "-" if state.seconds is None else f"{state.seconds:.0f}"
    return {"best epoch": str(state.best_epoch or "-"), **percent, "seconds": seconds}


def _table(folder: Path, cells: Sequence[Cell], reasons: Mapping[str, str]) -> Table:
    table = Table(title=escape(str(folder)), title_justify="left")
    table.add_column("run", overflow="fold")
    table.add_column("state")
    for title in _shown(RunState("waiting"), bool(cells[0].evaluations)):
        table.add_column(title, justify="right")
    for cell, state in zip(cells, _states(cells).values(), strict=True):
        has_failed = cell.name in reasons and state.state != "diverged"
        words = f"failed ({state.state})" if has_failed else state.state
        table.add_row(escape(cell.name), words, *_shown(state, bool(cell.evaluations)).values())
    return table
