"""Sweeps: recipes, each with every combination of values and every seed. The runs are called cells."""

import hashlib
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from shlex import join
from typing import Any

from robustly.experiments.configuration import RunConfig, build_config, with_absolute_paths
from robustly.experiments.keys import Settings
from robustly.experiments.overrides import apply_overrides
from robustly.experiments.run_folder import CONFIG, evaluation_folder, open_run
from robustly.settings import SettingsError, build, plain_values
from robustly.training.engine.loop import FINAL

LONGEST = 40


@dataclass(frozen=True)
class Sweep:
    """A sweep: every recipe with every combination of values and every seed.

    Args:
        recipes: names or paths of recipes.
        seeds: seeds of the runs, at least 0.
        over: values as text of the settings that vary, by dotted key.
        settings: value as text of the settings that all runs share, by dotted key.
        evaluate: whether trained runs are evaluated too.

    Raises:
        SettingsError: no recipe, seed or value, or a setting that is both fixed and varied.
    """

    recipes: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    over: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    evaluate: bool = False

    def __post_init__(self) -> None:
        if not self.recipes:
            raise SettingsError(
                "name at least one recipe (see `robustly recipes`), a sweep's file or --resume FOLDER"
            )
        if not self.seeds or min(self.seeds) < 0:
            raise SettingsError("give at least one seed, a whole number of at least 0, such as --seeds 0,1,2")
        if "seed" in (*self.over, *self.settings):
            raise SettingsError("a sweep takes seeds by --seeds 0,1,2, not as a setting")
        for key, values in self.over.items():
            if not key or not values or "" in values:
                raise SettingsError(f"over {key or '?'}: expected KEY=VALUE,... such as threat=linf:0.1,linf:0.2")
            if key in self.settings:
                raise SettingsError(f"{key} is both swept over and set to one value")


@dataclass(frozen=True)
class CellEvaluation:
    """An evaluation of a cell: words of `robustly evaluate` behind the run, and its name (`--as`) if it has one."""

    words: tuple[str, ...] = ()
    label: str | None = None

    def command(self, run: Path) -> list[str]:
        """Words, after `robustly`, of the evaluation of a run."""
        named = [] if self.label is None else ["--as", self.label]
        return ["evaluate", str(run), *self.words, *named, "--keep"]

    def is_done(self, run: Path) -> bool:
        """Return True if a run has this evaluation."""
        return (evaluation_folder(run, self.label) / "summary.json").is_file()


@dataclass(frozen=True)
class Cell:
    """One run of a sweep, complete enough to be carried out on another machine.

    Args:
        name: recipe, values and seed, as a valid name of a file.
        recipe: name or path of its recipe.
        overrides: changes of the recipe, as words of a command line.
        sweep: folder of the sweep, as an absolute path.
        evaluations: evaluations after training.
        threads: threads of its processes.
        trust_code: whether models that settings name may be imported.
        started_in: working folder of its processes.
    """

    name: str
    recipe: str
    overrides: tuple[str, ...]
    sweep: Path
    evaluations: tuple[CellEvaluation, ...] = ()
    threads: int = 1
    trust_code: bool = False
    started_in: Path = field(default_factory=Path.cwd)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.sweep / self.name

    @property
    def is_trained(self) -> bool:
        """True if the run has its final weights."""
        return (self.folder / FINAL).is_file()

    @property
    def commands(self) -> list[list[str]]:
        """Words, after `robustly`, of the commands that are left to run; each continues where it stopped."""
        trust = ["--trust-code"] if self.trust_code else []
        train = ["train", "--resume", str(self.folder), *trust]
        left = [one.command(self.folder) + trust for one in self.evaluations if not one.is_done(self.folder)]
        return [*([] if self.is_trained else [train]), *left]

    @property
    def shell_command(self) -> str:
        """The same commands as one shell line that works from any folder."""
        lines = [join([sys.executable, "-P", "-m", "robustly", *words]) for words in self.commands]
        return " && ".join([join(["cd", str(self.started_in)]), f"export OMP_NUM_THREADS={self.threads}", *lines])

    def config(self, read: Callable[[str], Settings]) -> RunConfig:
        """All settings, from the run's folder if there is one, else from the recipe.

        Args:
            read: returns the settings of a recipe, given its name or path.

        Raises:
            SettingsError: an unknown recipe, key or value; the message names the cell.
        """
        return open_run(self.folder) if (self.folder / CONFIG).is_file() else self.planned_config(read)

    def planned_config(self, read: Callable[[str], Settings]) -> RunConfig:
        """All settings from the recipe, whatever the run's folder holds.

        Args:
            read: returns the settings of a recipe, given its name or path.

        Raises:
            SettingsError: as `config`.
        """
        try:
            return with_absolute_paths(build_config(apply_overrides(read(self.recipe), self.overrides)))
        except SettingsError as error:
            raise SettingsError(f"{self.name}: {error}") from None


def cells_of(sweep: Sweep, folder: Path) -> list[Cell]:
    """All cells of a sweep, recipes outermost, seeds innermost. Names depend on the sweep only.

    Raises:
        SettingsError: two cells are the same.
    """
    last = {key: key.rpartition(".")[2] for key in sweep.over}
    unclear = [word for word, count in Counter([*last.values(), "name"]).items() if count > 1 or word == "name"]
    axes = [[(key, str(value)) for value in values] for key, values in sweep.over.items()]
    cells = []
    evaluations = (CellEvaluation(),) if sweep.evaluate else ()
    for recipe, values, seed in itertools.product(sweep.recipes, itertools.product(*axes), sweep.seeds):
        is_file = recipe.endswith((".yaml", ".yml"))
        shown = [_safe(Path(recipe).stem if is_file else recipe.replace("/", "_"))]
        shown += [f"{_safe(key if last[key] in unclear else last[key])}={_safe(value)}" for key, value in values]
        # shorter keys first: a part, then the settings of that part
        pairs = sorted((*values, *sweep.settings.items()), key=lambda pair: pair[0].count("."))
        overrides = tuple(f"--{key}={value}" for key, value in (*pairs, ("seed", seed)))
        cells.append(Cell("__".join([*shown, f"seed={seed}"]), recipe, overrides, folder, evaluations))
    count = Counter(cell.name.casefold() for cell in cells)
    named = {
        cell.name + (f"__{_hash((cell.recipe, cell.overrides))}" if count[cell.name.casefold()] > 1 else ""): cell
        for cell in cells
    }
    if len(named) < len(cells):
        raise SettingsError("two runs of the sweep are the same: name each recipe, seed and value once")
    return [replace(cell, name=name) for name, cell in named.items()]


def parse_over(text: str) -> tuple[str, tuple[str, ...]]:
    """Key and values from `KEY=VALUE,...`; a comma inside brackets or inside a threat does not separate values."""
    key, _, rest = text.partition("=")
    if plain_key(key) == "threat":  # "affine:rotation=10,shift=1" is one, and another begins with its KIND:
        return "threat", tuple(value.strip() for value in re.split(r",(?=\s*(?:\w+\s*:|$))", rest))
    values, depth = [""], 0
    for letter in rest:
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and depth == 0:
            values.append("")
        else:
            values[-1] += letter
    return plain_key(key), tuple(value.strip() for value in values)


def sweep_from(plain: Mapping[str, Any], where: str) -> Sweep:
    """The sweep of a YAML file. Its `settings` may be nested and its values may be numbers.

    Raises:
        SettingsError: an unknown key or a value of another type; the message begins with `where`.
    """
    try:
        given = build(Sweep, plain, "")
        over = {plain_key(key): tuple(map(_text, values)) for key, values in given.over.items()}
        return replace(given, over=over, settings=dict(sorted(_flat(given.settings))))
    except SettingsError as error:
        raise SettingsError(f"{where}: {error}") from None


def as_plain(sweep: Sweep) -> dict[str, Any]:
    """The content of `sweep.yaml`; the inverse of `sweep_from`."""
    return dict(plain_values(asdict(sweep)))


def plain_key(key: str) -> str:
    """A key in the spelling of settings: `training.batch_size` for `--training.batch-size`."""
    return key.strip().removeprefix("--").replace("-", "_")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for key, value in settings.items():
        nested = isinstance(value, Mapping) and value
        pairs += _flat(value, f"{prefix}{key}.") if nested else [(plain_key(f"{prefix}{key}"), _text(value))]
    return pairs


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _safe(text: str) -> str:
    safe = re.sub(r"[^A-Za-z0-9._+-]+", "-", text)
    return safe if len(safe) <= LONGEST else f"{safe[:LONGEST]}-{_hash(text)}"


def _hash(value: object) -> str:
    return hashlib.sha256(str(value).encode()).hexdigest()[:6]
