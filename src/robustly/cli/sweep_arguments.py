"""What the words of `robustly sweep` say."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Asked:
    """What the command line says.

    Args:
        recipes: recipes, or the YAML file of a sweep.
        seeds: as typed.
        over: as typed, one text per axis.
        overrides: settings for all runs, `--key value`.
        evaluate: whether to evaluate too.
        out: the sweep's folder.
        resume: the folder of a sweep to go on with.
        workers: runs at a time.
        threads: threads of a run; shared out without it.
        ray: address of a Ray cluster; none: this machine.
        dry_run: whether to print the grid only.
        trust_code: whether models that settings name may be imported.
    """

    recipes: Sequence[str]
    seeds: str | None
    over: Sequence[str]
    overrides: Sequence[str]
    evaluate: bool
    out: Path | None
    resume: Path | None
    workers: int
    threads: int | None
    ray: str | None
    dry_run: bool
    trust_code: bool


def add_sweep(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of `robustly sweep`."""
    parser.description = (
        "Train every recipe with every combination of values and every seed, each in a folder of its own. The same "
        "command again, or --resume, goes on where it stopped. Settings for all runs as for train: "
        "--training.epochs 5. Exit code 1 if a run fails."
    )
    add = parser.add_argument
    add("recipes", nargs="*", metavar="RECIPE", help="recipes, or the .yaml file of a sweep")
    add("--seeds", metavar="0,1,2", help="seeds of the runs (default: 0)")
    add("--over", action="append", default=[], metavar="KEY=VALUE,VALUE", help="a setting that varies; repeatable")
    add("--evaluate", action="store_true", help="evaluate every trained run")
    add("--out", type=Path, help="folder of the sweep (default: runs/sweep, or runs/NAME for NAME.yaml)")
    add("--resume", type=Path, metavar="FOLDER", help="go on with a sweep that was stopped")
    add("--workers", type=int, default=1, metavar="N", help="runs at a time, each in a process of its own")
    add("--threads", type=int, metavar="N", help="threads of a run (default: its share of the cores; 1 with --ray)")
    add("--ray", nargs="?", const="", metavar="ADDRESS", help="run on a Ray cluster whose nodes share the folder")
    add("--dry-run", action="store_true", help="check settings, show the runs and their states, do nothing")


def asked_from(options: argparse.Namespace, overrides: list[str]) -> Asked:
    """The options that were parsed, with the settings for all runs."""
    return Asked(
        recipes=options.recipes,
        seeds=options.seeds,
        over=options.over,
        overrides=overrides,
        evaluate=options.evaluate,
        out=options.out,
        resume=options.resume,
        workers=options.workers,
        threads=options.threads,
        ray=options.ray,
        dry_run=options.dry_run,
        trust_code=options.trust_code,
    )
