"""`robustly sweep`."""

import os
import queue
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from shlex import quote

import torch
from rich.console import Console

from robustly.cli.arguments import Trust
from robustly.cli.recipes import read_recipe
from robustly.cli.sweep_arguments import Asked
from robustly.cli.sweep_ray import run_on_ray
from robustly.cli.sweep_run import LOG, Launch, carry_out, stopped_by_signals
from robustly.cli.sweep_table import how_many, sweep_table, told
from robustly.experiments.configuration import RunConfig, with_absolute_paths
from robustly.experiments.run_folder import build_job, open_run, read_yaml
from robustly.experiments.sweep_folders import (
    MANIFEST,
    read_sweep,
    refuse_another,
    state_of,
    write_run,
    write_sweep,
)
from robustly.experiments.sweeps import (
    Sweep,
    SweepError,
    build_cells,
    cells_of,
    parse_axis,
    parse_seeds,
    settings_from,
    sweep_from,
)

FAILED = 1
WIDTH = 160  # of tables in files and pipes

Progress = Callable[[Launch, str], None]


def run_sweep(asked: Asked) -> int:
    """Train (and evaluate) every run of a sweep that is not done yet, and print their table; returns the exit code.

    Raises:
        ValueError: anything that the user has to change; nothing was begun then.
        OSError: files that cannot be read or written.
    """
    _check_options(asked)
    sweep, folder, is_new = _asked_sweep(asked)
    states = {name: state_of(folder / name, sweep.evaluate) for name in cells_of(sweep)}
    configs = _configs(sweep, folder)
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    if asked.dry_run:
        console.print(sweep_table(folder, states, {}, sweep.evaluate))
        return 0
    to_do = [name for name, state in states.items() if state.state not in ("finished", "diverged")]
    _try_out([configs[name] for name in to_do], asked.trust_code)
    if is_new:
        write_sweep(folder, sweep)
    for name, config in configs.items():
        write_run(folder / name, config)
    launches = [
        Launch(name, (folder / name).resolve(), sweep.evaluate, _threads(asked), asked.trust_code, Path.cwd())
        for name in to_do
    ]
    reasons = {name: state.message for name, state in states.items() if state.state == "diverged"}
    reasons |= _carry_out_all(console, asked, folder, launches, configs, len(states))
    states = {name: state_of(folder / name, sweep.evaluate) for name in states}
    console.print(sweep_table(folder, states, reasons, sweep.evaluate))
    for name, reason in reasons.items():
        _say(console, f"! {name}: {reason} ({folder / name / LOG})")
    failed = f", {len(reasons)} failed" if reasons else ""
    _say(console, f"{how_many(len(states) - len(reasons))} finished{failed}")
    return FAILED if reasons else 0


def _check_options(asked: Asked) -> None:
    if sys.platform == "win32":
        raise SweepError("sweep needs Linux or macOS")
    if asked.workers < 1 or (asked.threads is not None and asked.threads < 1):
        raise SweepError(f"--workers and --threads must be at least 1, got {asked.workers} and {asked.threads}")
    if asked.ray is not None and asked.workers != 1:
        raise SweepError("with --ray the cluster decides how many runs go at a time: give no --workers")
    if asked.ray and "/" in asked.ray and "://" not in asked.ray:
        raise SweepError(f"--ray takes an address, got {asked.ray!r}: put --ray last, or write --ray=ADDRESS")
    if asked.resume is not None and (asked.recipes or asked.seeds or asked.over or asked.overrides or asked.out):
        raise SweepError(
            "--resume goes on with what the folder holds: give no recipes, --seeds, --over, --out or settings"
        )


def _asked_sweep(asked: Asked) -> tuple[Sweep, Path, bool]:
    """The sweep, its folder, and whether its manifest is to be written."""
    if asked.resume is not None:
        held = read_sweep(asked.resume)
        if held is None:
            raise SweepError(f"{asked.resume} is no sweep: it has no {MANIFEST}")
        sweep, folder = replace(held, evaluate=held.evaluate or asked.evaluate), asked.resume
    else:
        sweep, folder = _new_sweep(asked)
        held = read_sweep(folder)
        if held is not None:
            refuse_another(folder, sweep, held)
            sweep = replace(sweep, evaluate=held.evaluate or sweep.evaluate)
    return sweep, folder, held != sweep


def _new_sweep(asked: Asked) -> tuple[Sweep, Path]:
    """From the words of the command, or from a sweep's file."""
    words = list(asked.overrides)
    pairs = []
    while words:
        key, equals, value = words.pop(0).partition("=")
        if not equals and (not words or words[0].startswith("--")):
            raise SweepError(f"{key} needs a value")
        pairs.append((key, value if equals else words.pop(0)))
    folder = asked.out or Path("runs/sweep")
    recipes = list(asked.recipes)
    if len(recipes) == 1 and recipes[0].endswith((".yaml", ".yml")) and Path(recipes[0]).is_file():
        content = read_yaml(Path(recipes[0]))
        if "recipes" in content:
            if asked.seeds or asked.over or pairs:
                raise SweepError(
                    f"{recipes[0]} says what to sweep over: give no --seeds, --over or settings beside it"
                )
            sweep = sweep_from(content, recipes[0])
            sweep = replace(sweep, evaluate=sweep.evaluate or asked.evaluate, recipes=_rooted(sweep.recipes))
            return sweep, asked.out or Path("runs") / Path(recipes[0]).stem
    return Sweep(
        _rooted(recipes),
        (0,) if asked.seeds is None else parse_seeds(asked.seeds),
        tuple(parse_axis(text) for text in asked.over),
        settings_from(pairs),
        asked.evaluate,
    ), folder


def _rooted(recipes: Sequence[str]) -> tuple[str, ...]:
    """Recipes, files among them from the root, so that the sweep goes on from any folder."""
    return tuple(
        str(Path(recipe).resolve()) if recipe.endswith((".yaml", ".yml")) else recipe for recipe in recipes
    )


def _configs(sweep: Sweep, folder: Path) -> dict[str, RunConfig]:
    """Settings of all runs: as their folders have them, or from the recipes for a run that has no folder yet."""
    cells = cells_of(sweep)
    there = {name: open_run(folder / name) for name in cells if (folder / name / "config.yaml").is_file()}
    if len(there) == len(cells):
        return there
    built = build_cells(sweep, read_recipe)
    return {name: there.get(name) or with_absolute_paths(built[name]) for name in cells}


def _try_out(configs: Sequence[RunConfig], trust_code: bool) -> None:
    """Load every data set and build every network once, before hours are spent on the first of them."""
    apart = ("recipe", "seed", "threat", "optimizer", "schedule", "training", "runtime", "evaluation")
    distinct = {
        repr([item for item in config.as_plain().items() if item[0] not in apart]): config for config in configs
    }
    for config in distinct.values():
        build_job(config, Trust(everything=trust_code).allows)


def _threads(asked: Asked) -> int:
    """Threads of a run: as told, or as the environment says, or its share of the cores."""
    if asked.threads is not None:
        return asked.threads
    told = os.environ.get("OMP_NUM_THREADS", "")
    if asked.ray is not None:
        return 1
    return int(told) if told.isdigit() and int(told) else max(1, torch.get_num_threads() // asked.workers)


def _carry_out_all(
    console: Console,
    asked: Asked,
    folder: Path,
    launches: Sequence[Launch],
    configs: Mapping[str, RunConfig],
    count: int,
) -> dict[str, str]:
    """Do the work; returns why runs failed."""
    reasons: dict[str, str] = {}
    done = count - len(launches)
    _say(console, f"{how_many(count)} -> {folder}" + (f", {done} of them already ended" if done else ""))

    def progress(launch: Launch, reason: str) -> None:
        nonlocal done
        done += 1
        if reason:
            reasons[launch.name] = reason
        _say(console, f"[{done}/{count}] {launch.name}: {f'failed: {reason}' if reason else told(launch)}")

    def waits(launch: Launch) -> None:
        _say(console, f"{launch.name}: another process is at it, waiting until it ends")

    def needs_gpu(launch: Launch) -> bool:
        return configs[launch.name].runtime.device in ("auto", "cuda")

    try:
        if launches and asked.ray is not None:
            run_on_ray(launches, asked.ray, needs_gpu, progress)
        elif launches:
            is_split = any(config.runtime.processes > 1 for config in configs.values())
            _run_here(launches, [{}] * asked.workers if is_split else worker_places(asked.workers), progress, waits)
    except KeyboardInterrupt:
        _say(console, f"\nstopped; go on with: robustly sweep --resume {quote(str(folder))}")
        raise
    return reasons


def _run_here(
    launches: Sequence[Launch],
    places: Sequence[dict[str, str]],
    progress: Progress,
    waits: Callable[[Launch], None],
) -> None:
    """A pool of threads, each of which waits for one child process at a time.

    Args:
        launches: what to do.
        places: what the environment of each worker has of its own.
        hear: told of every run that ended, with why it failed.
        waits: told of a run that another process is at.
    """
    stop = threading.Event()
    free: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
    for place in places:
        free.put(place)

    def one(launch: Launch) -> str:
        place = free.get()
        try:
            return carry_out(launch, stop, place, lambda: waits(launch))
        finally:
            free.put(place)

    with stopped_by_signals(), ThreadPoolExecutor(len(places)) as pool:
        futures = {pool.submit(one, launch): launch for launch in launches}
        try:
            for future in as_completed(futures):
                progress(futures[future], future.result())
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def worker_places(workers: int) -> list[dict[str, str]]:
    """Environments of the workers: where there are several GPUs, each worker sees one of them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]
    if workers == 1 or len(gpus) < 2:
        return [{}] * workers
    return [{"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)]} for index in range(workers)]


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, markup=False, highlight=False)
