"""`robustly reproduce`."""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import join

import torch
import yaml
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file

from robustly.cli.recipes import read_recipe
from robustly.cli.sweep import check_classes, try_out, worker_places
from robustly.cli.sweep_run import LOG, carry_out, carry_out_all
from robustly.cli.terminal import PlainConsole, print_text
from robustly.experiments.configuration import RunConfig
from robustly.experiments.overrides import read_yaml
from robustly.experiments.reproduction_cost import seconds_of
from robustly.experiments.reproduction_plan import Plan, planned
from robustly.experiments.reproductions import Outline, OutlineRow, OutlineTable, Scale, read_outline
from robustly.experiments.run_folder import CONFIG, RunError, create_run
from robustly.experiments.sweep_folders import state_of
from robustly.experiments.sweeps import Cell
from robustly.files import write_text
from robustly.models.weights import weights_hash
from robustly.reports.formats import duration
from robustly.reports.pages.reproduction_page import Reproduction, reproduction_csv, write_reproduction_page
from robustly.reports.reproduction.controls import Controls
from robustly.reports.source_names import shown_path
from robustly.reports.tables.paper_tables import PaperRow, PaperTable, published_in
from robustly.settings import SettingsError, choose
from robustly.training.engine.loop import FINAL

MANIFEST = "reproduction.yaml"
UNTRAINED_KEYS = ("recipe", "evaluation")
"""Settings on which no weights depend."""


@dataclass(frozen=True)
class Request:
    """The request of a command.

    Args:
        outline: the reproduction.
        scale_name: name of its scale.
        seeds: runs of each row.
        tables: keys of the tables.
        sources: places of data sets.
        folder: folder of the reproduction.
    """

    outline: Outline
    scale_name: str
    seeds: int
    tables: tuple[str, ...]
    sources: Mapping[str, str]
    folder: Path

    @property
    def scale(self) -> Scale:
        """The scale."""
        return self.outline.scales[self.scale_name]

    @property
    def command(self) -> str:
        """The command that makes the page, without folders of this machine."""
        return self._words(dict.fromkeys(self.sources, "FOLDER"), shown_path(self.folder))

    @property
    def command_here(self) -> str:
        """The command that continues the reproduction on this machine."""
        return self._words(self.sources, str(self.folder))

    def _words(self, sources: Mapping[str, str], out: str) -> str:
        words = ["robustly", "reproduce", self.outline.name, "--scale", self.scale_name, "--seeds", str(self.seeds)]
        if self.tables != default_tables(self.outline, self.scale):
            words += ["--tables", ",".join(self.tables)]
        words += [word for data, place in sources.items() for word in ("--source", f"{data}={place}")]
        return join(
            words + (["--out", out] if self.folder != default_folder(self.outline, self.scale_name) else [])
        )


def run_reproduction(options: argparse.Namespace) -> int:
    """Train and evaluate the runs of a paper's tables, and write the page; returns the exit code.

    Raises:
        ValueError: wrong settings or data; no run was started then.
        OSError: files that cannot be read or written.
    """
    request = _request(options)
    plan = planned(
        request.outline,
        request.scale,
        request.folder.resolve(),
        read_recipe,
        seeds=request.seeds,
        tables=request.tables,
        sources=request.sources,
    )
    _refuse_another(request)
    configs = {cell.name: cell.config(read_recipe) for cell in plan.cells}
    _refuse_changed(plan.cells, configs)
    workers = options.workers or max(1, torch.cuda.device_count() or torch.get_num_threads())
    states = {cell.name: state_of(cell.folder, False) for cell in plan.cells}
    cells = [replace(cell, threads=states[cell.name].threads or 1) for cell in plan.cells]
    check_classes([cell for cell in cells if not (cell.folder / CONFIG).is_file()], configs)
    console = PlainConsole()
    failures = {name: state.message for name, state in states.items() if state.state == "diverged"}
    left = [cell for cell in cells if cell.commands and cell.name not in failures]
    print_text(console, f"{request.folder}: {len(left)} of {len(cells)} runs to do, {workers} at a time")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seconds = seconds_of(left, configs, request.outline.data, device) / workers
    if left:
        print_text(console, f"about {duration(seconds)} on this machine ({device.type}), from passes timed on it")
    if options.dry_run:
        print_text(console, "\n".join(f"{cell.name}: {cell.recipe}" for cell in cells))
        return 0
    if request.scale.large and device.type == "cpu" and left and not options.yes:
        raise SettingsError(
            f"--scale {request.scale_name} is meant for GPUs: on this CPU it takes about {duration(seconds)}; "
            "--yes starts it all the same, --scale mnist takes minutes"
        )
    try_out([configs[cell.name] for cell in left], trust_code=False)
    _write_manifest(request)
    for cell in left:
        if not (cell.folder / CONFIG).is_file():
            create_run(cell.folder, configs[cell.name])
    try:
        failures |= _carried_out(console, left, worker_places(workers))
    except KeyboardInterrupt:
        added = (" --yes" if options.yes else "") + (f" --workers {workers}" if options.workers else "")
        print_text(console, f"\nstopped; the same command continues: {request.command_here}{added}")
        raise
    page = content_of(request, plan, failures)
    output = write_reproduction_page(page, request.folder / f"{request.outline.name}.html")
    write_text(request.folder / "tables.csv", reproduction_csv(page))
    for name, reason in failures.items():
        print_text(console, f"! {name}: {reason} ({request.folder / name / LOG})")
    print_text(console, f"tables: {request.folder / 'tables.csv'}\npage: {output.resolve().as_uri()}")
    return 2 if failures else 0


def default_tables(outline: Outline, scale: Scale) -> tuple[str, ...]:
    """The tables that a scale makes by default."""
    return scale.tables or tuple(outline.tables)


def default_folder(outline: Outline, scale_name: str) -> Path:
    """The folder of a reproduction without `--out`."""
    return Path("runs") / f"{outline.name}-{scale_name}"


def content_of(request: Request, plan: Plan, failures: Mapping[str, str]) -> Reproduction:
    """The content of the page."""
    outline = request.outline
    tables = {key: _table(key, outline.tables[key], plan) for key in request.tables}
    rows = {row.run: row for table in outline.tables.values() for row in table.rows}
    controls = {role: _row(rows[run], plan) for role, run in outline.controls.items()}
    drawn = [row for key in outline.clean if key in tables for row in tables[key].rows]
    distinct: dict[tuple[Path, ...], PaperRow] = {}
    for row in drawn:
        distinct.setdefault(row.runs, row)
    hybrid = tables[outline.hybrid].rows if outline.hybrid in tables else ()
    repeated = rows[outline.repeated]
    return Reproduction(
        title=outline.title,
        source=outline.source,
        scale=request.scale_name,
        about=request.scale.about,
        tables=tuple(tables.values()),
        curves={name: plan.folders[run] for name, run in outline.curves.items()},
        clean=tuple(distinct.values()),
        hybrid=hybrid,
        repeated=plan.repetition,
        spread=_row(repeated, plan),
        controls=Controls(controls.get("guided"), controls.get("at_ce"), controls.get("at_kl")),
        failures=failures,
        weights=_released_weights(plan.cells),
        command=request.command,
        paper=outline.paper,
        seeds_command=replace(request, seeds=3).command,
    )


def _released_weights(cells: Sequence[Cell]) -> dict[Path, str]:
    """SHA-256 of the released weights by folder, as in the evidence; damaged files are left to the evaluations."""
    found = {}
    for cell in cells:
        try:
            found[cell.folder] = weights_hash(load_file(cell.folder / FINAL))
        except (OSError, SafetensorError):
            continue
    return found


def _table(key: str, table: OutlineTable, plan: Plan) -> PaperTable:
    networks = bool(table.heading)  # rows of one name on several networks
    rows = tuple(_row(row, plan, table.published, row.group if networks else "") for row in table.rows)
    return PaperTable(key, table.title, table.setting, table.heading, table.columns, rows, table.note)


def _row(row: OutlineRow, plan: Plan, published: str = "", network: str = "") -> PaperRow:
    theirs = published_in(published, row.name, network) if published else {}
    return PaperRow(row.group, row.name, plan.folders.get(row.run, ()), theirs)


def _request(options: argparse.Namespace) -> Request:
    outline = read_outline(options.name)
    scale = choose(outline.scales, options.scale, "--scale")
    if options.seeds < 1 or (options.workers is not None and options.workers < 1):
        raise SettingsError(f"--seeds and --workers must be at least 1, got {options.seeds} and {options.workers}")
    if sys.platform == "win32":
        raise SettingsError("reproduce needs Linux or macOS")
    tables = default_tables(outline, scale)
    if options.tables:
        tables = tuple(dict.fromkeys(name.strip() for name in options.tables.split(",")))
        for name in tables:
            choose(outline.tables, name, "--tables")
    sources = dict(_source(text, outline) for text in options.source)
    folder = options.out or default_folder(outline, options.scale)
    return Request(outline, options.scale, options.seeds, tables, sources, folder)


def _source(text: str, outline: Outline) -> tuple[str, str]:
    data, equals, place = text.partition("=")
    if not equals or not place:
        raise SettingsError(f"--source takes DATA=FOLDER such as cifar10=data/cifar10, got {text!r}")
    choose(outline.data, data, "--source")
    return data, str(Path(place).resolve()) if Path(place).exists() else place


def _refuse_another(request: Request) -> None:
    """Refuse a folder of another reproduction, scale or source; seeds and tables may be added.

    Raises:
        RunError: the folder holds something else.
    """
    folder, manifest = request.folder, request.folder / MANIFEST
    if not manifest.is_file():
        if folder.exists() and (
            not folder.is_dir() or any(not one.name.startswith(".") for one in folder.iterdir())
        ):
            raise RunError(f"{folder} exists already and has no reproduction: choose another name with --out")
        return
    held = read_yaml(manifest)
    other = [key for key, value in _identity(request).items() if held.get(key) != value]
    if other:
        raise RunError(
            f"{folder} holds another reproduction (its {' and '.join(other)} differ): choose another name with "
            "--out"
        )


def _refuse_changed(cells: Sequence[Cell], configs: Mapping[str, RunConfig]) -> None:
    """Refuse runs whose settings are no longer those of the reproduction, so that no row mixes two methods.

    Raises:
        RunError: a run of other settings, as after a change of its recipe or of its `config.yaml`.
    """
    for cell in cells:
        held, expected = configs[cell.name], cell.planned_config(read_recipe)
        if held.digest() != expected.digest():
            there, here = held.as_plain(), expected.as_plain()
            other = [key for key in here if key not in UNTRAINED_KEYS and here[key] != there.get(key)]
            raise RunError(
                f"{cell.folder} has other settings than the reproduction has now "
                f"(its {' and '.join(other)} differ): "
                "remove the folder to train the run again, or choose another name with --out"
            )


def _identity(request: Request) -> dict[str, object]:
    return {"name": request.outline.name, "scale": request.scale_name, "sources": dict(request.sources)}


def _write_manifest(request: Request) -> None:
    request.folder.mkdir(parents=True, exist_ok=True)
    write_text(request.folder / MANIFEST, yaml.safe_dump(_identity(request), sort_keys=False))


def _carried_out(console: Console, cells: Sequence[Cell], places: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Carry out the cells; returns error messages by name of the failed runs."""
    ended: dict[str, str] = {}
    began = time.monotonic()

    def progress(cell: Cell, reason: str) -> None:
        ended[cell.name] = reason
        spent = time.monotonic() - began
        rest = spent / len(ended) * (len(cells) - len(ended))
        words = f"failed: {reason}" if reason else "done"
        print_text(console, f"[{len(ended)}/{len(cells)}] {cell.name}: {words}; about {duration(rest)} left")

    if cells:
        carry_out_all(cells, carry_out, places, progress)
    return {name: reason for name, reason in ended.items() if reason}
