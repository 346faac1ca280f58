"""What a sweep is: training recipes, each with every combination of values and every seed, and its runs by name."""

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from robustly.experiments.configuration import RunConfig, Settings, build_config
from robustly.experiments.overrides import apply_overrides
from robustly.settings import SettingsError

LONGEST = 40

ReadsRecipe = Callable[[str], Settings]


class SweepError(ValueError):
    """A sweep that makes no sense, or a folder that does not hold what it should."""


@dataclass(frozen=True)
class Axis:
    """A setting and the values that it takes in turn, as a person types them.

    Args:
        key: dotted key, such as `method.loss.beta`.
        values: texts that are read as YAML.

    Raises:
        SweepError: no key or no value, or the seed, which has an axis of its own.
    """

    key: str
    values: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.key or not self.values or "" in self.values:
            raise SweepError(
                f"over {self.key or '?'}: expected KEY=VALUE,VALUE,... such as threat=linf:0.1,linf:0.2"
            )
        if self.key == "seed":
            raise SweepError("seeds are given by --seeds 0,1,2, not as values to sweep over")


@dataclass(frozen=True)
class Sweep:
    """What is asked for: every recipe with every combination of values and every seed.

    Args:
        recipes: names or paths of recipes.
        seeds: seeds of the runs.
        over: settings that vary.
        settings: settings that are the same in all runs: dotted keys and texts.
        evaluate: whether every trained run is evaluated too.

    Raises:
        SweepError: nothing to do, something named twice, or a setting both fixed and varied.
    """

    recipes: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    over: tuple[Axis, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()
    evaluate: bool = False

    def __post_init__(self) -> None:
        if not self.recipes:
            raise SweepError(
                "name at least one recipe (see `robustly recipes`), a sweep's .yaml file or --resume FOLDER"
            )
        if not self.seeds:
            raise SweepError("give at least one seed, such as --seeds 0,1,2")
        fixed = [key for key, _ in self.settings]
        if "seed" in fixed:
            raise SweepError("a sweep takes --seeds 0,1,2 in place of --seed")
        varied = [axis.key for axis in self.over]
        both = sorted(set(fixed) & set(varied))
        if both:
            raise SweepError(f"{both[0]} is both swept over and set to one value")
        for what, given in (
            ("recipe", self.recipes),
            ("seed", self.seeds),
            ("swept setting", varied),
            ("setting", fixed),
            *((f"value of {axis.key}", axis.values) for axis in self.over),
        ):
            twice = [str(item) for item, count in Counter(given).items() if count > 1]
            if twice:
                raise SweepError(f"{what} {twice[0]} is given twice")

    def as_plain(self) -> dict[str, Any]:
        """What `sweep.yaml` holds, and what a sweep's YAML file may hold."""
        return {
            "recipes": list(self.recipes),
            "seeds": list(self.seeds),
            "over": {axis.key: list(axis.values) for axis in self.over},
            "settings": dict(self.settings),
            "evaluate": self.evaluate,
        }


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Args:
        recipe: name or path of its recipe.
        values: its value on every axis.
        seed: its seed.
    """

    recipe: str
    values: tuple[tuple[str, str], ...]
    seed: int


def parse_axis(text: str) -> Axis:
    """`KEY=VALUE,VALUE,...`; a comma inside brackets or braces belongs to its value.

    Raises:
        SweepError: anything else.
    """
    key, _, rest = text.partition("=")
    values, depth = [""], 0
    for letter in rest:
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and depth == 0:
            values.append("")
        else:
            values[-1] += letter
    return Axis(_plain_key(key), tuple(value.strip() for value in values))


def parse_seeds(text: str) -> tuple[int, ...]:
    """`0,1,2`.

    Raises:
        SweepError: anything else.
    """
    if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", text):
        raise SweepError(f"--seeds takes whole numbers with commas, such as 0,1,2, got {text!r}")
    return tuple(int(seed) for seed in text.split(","))


def sweep_from(plain: Mapping[str, Any], where: str) -> Sweep:
    """A sweep from the content of a YAML file.

    Args:
        plain: `recipes`, `seeds`, `over` (lists by dotted key), `settings` (dotted or nested) and `evaluate`.
        where: the file, for messages.

    Raises:
        SweepError: an unknown key, or a value of another type.
    """
    allowed = [field.name for field in fields(Sweep)]
    for key in plain:
        if key not in allowed:
            raise SweepError(f"{where}: unknown key {key!r}; allowed: {', '.join(allowed)}")
    recipes, seeds = plain.get("recipes"), plain.get("seeds", [0])
    over, settings = plain.get("over") or {}, plain.get("settings") or {}
    if not isinstance(recipes, list) or not all(isinstance(recipe, str) for recipe in recipes):
        raise SweepError(f"{where}: recipes: expected a list of names, got {recipes!r}")
    if not isinstance(seeds, list) or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise SweepError(f"{where}: seeds: expected a list of whole numbers, got {seeds!r}")
    if not isinstance(over, Mapping) or not all(isinstance(values, list) for values in over.values()):
        raise SweepError(f"{where}: over: expected a list of values by setting, got {over!r}")
    if not isinstance(settings, Mapping):
        raise SweepError(f"{where}: settings: expected settings by name, got {settings!r}")
    if not isinstance(plain.get("evaluate", False), bool):
        raise SweepError(f"{where}: evaluate: expected true or false, got {plain['evaluate']!r}")
    return Sweep(
        tuple(recipes),
        tuple(seeds),
        tuple(Axis(_plain_key(str(key)), tuple(map(_text, values))) for key, values in over.items()),
        settings_from(_flat(settings)),
        plain.get("evaluate", False),
    )


def settings_from(pairs: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Settings for all runs, in the one order and spelling that a manifest has."""
    return tuple(sorted((_plain_key(key), value) for key, value in pairs))


def _plain_key(key: str) -> str:
    return key.strip().removeprefix("--").replace("-", "_")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for key, value in settings.items():
        nested = isinstance(value, Mapping) and value
        pairs += _flat(value, f"{prefix}{key}.") if nested else [(f"{prefix}{key}", _text(value))]
    return pairs


def cells_of(sweep: Sweep) -> dict[str, Cell]:
    """All runs of a sweep by name, recipes outermost, seeds innermost.

    A name says recipe, values and seed; it depends on nothing but the sweep, and any file system takes it.
    """
    axes = [[(axis.key, value) for value in axis.values] for axis in sweep.over]
    cells = [
        Cell(recipe, values, seed)
        for recipe in sweep.recipes
        for values in itertools.product(*axes)
        for seed in sweep.seeds
    ]
    shown = _shown_keys([axis.key for axis in sweep.over])
    names = [_name(cell, shown) for cell in cells]
    count = Counter(name.casefold() for name in names)
    return {
        name if count[name.casefold()] == 1 else f"{name}__{_hash(repr(cell))}": cell
        for name, cell in zip(names, cells, strict=True)
    }


def _shown_keys(keys: Sequence[str]) -> dict[str, str]:
    """The last word of each key, where that tells enough."""
    last = Counter(key.rpartition(".")[2] for key in keys)
    short = {key: key.rpartition(".")[2] for key in keys}
    return {key: word if last[word] == 1 and word != "name" else key for key, word in short.items()}


def _name(cell: Cell, shown: Mapping[str, str]) -> str:
    is_file = cell.recipe.endswith((".yaml", ".yml"))
    recipe = Path(cell.recipe).stem if is_file else cell.recipe.replace("/", "_")
    values = [f"{_safe(shown[key])}={_safe(value)}" for key, value in cell.values]
    return "__".join([_safe(recipe), *values, f"seed={cell.seed}"])


def _safe(text: str) -> str:
    safe = re.sub(r"[^A-Za-z0-9._+-]+", "-", text)
    return safe if len(safe) <= LONGEST else f"{safe[:LONGEST]}-{_hash(text)}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def build_cells(sweep: Sweep, read: ReadsRecipe) -> dict[str, RunConfig]:
    """The full settings of every run, all checked, by name.

    Args:
        sweep: what is asked for.
        read: gives the settings of a recipe by its name or path.

    Raises:
        SweepError: two runs are the same one.
        SettingsError: an unknown recipe, key or value; the message names the run.
    """
    recipes = {recipe: read(recipe) for recipe in sweep.recipes}
    configs: dict[str, RunConfig] = {}
    known: dict[str, str] = {}
    for name, cell in cells_of(sweep).items():
        # what stands deeper goes later: a part first, then the settings of that part
        pairs = sorted((*cell.values, *sweep.settings), key=lambda pair: pair[0].count("."))
        words = [f"--{key}={value}" for key, value in (*pairs, ("seed", str(cell.seed)))]
        try:
            config = build_config(apply_overrides(recipes[cell.recipe], words))
        except SettingsError as error:
            raise SettingsError(f"{name}: {error}") from None
        meaning = yaml.safe_dump(config.as_plain() | {"recipe": None})
        if meaning in known:
            raise SweepError(f"{known[meaning]} and {name} are the same run: their settings are equal")
        known[meaning] = name
        configs[name] = config
    return configs
