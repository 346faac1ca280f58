"""The runs of a reproduction at one scale, as cells like those of a sweep."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from robustly.experiments.keys import NETWORKS, Settings
from robustly.experiments.reproductions import AUTOATTACK, COLUMNS, Outline, RunOfScale, Scale
from robustly.experiments.shortening import shortened
from robustly.experiments.sweeps import Cell, CellEvaluation


@dataclass(frozen=True)
class Plan:
    """The runs of a reproduction.

    Args:
        cells: one for each run and seed, and the repetition last.
        folders: folders by run, one for each seed.
        repetition: the folders of the run that is carried out twice with one seed.
    """

    cells: tuple[Cell, ...]
    folders: Mapping[str, tuple[Path, ...]]
    repetition: tuple[Path, Path]


def planned(
    outline: Outline,
    scale: Scale,
    folder: Path,
    read: Callable[[str], Settings],
    *,
    seeds: int,
    tables: Sequence[str],
    sources: Mapping[str, str],
) -> Plan:
    """The runs of the tables at a scale.

    Args:
        outline: the reproduction.
        scale: one of its scales.
        folder: folder of the reproduction, as an absolute path.
        read: returns the settings of a recipe.
        seeds: runs of each row, with the seeds 0, 1, ...
        tables: keys of the tables.
        sources: places of the data in place of the recipes', by data set.
    """
    columns: dict[str, set[str]] = {}
    for key in tables:
        for row in outline.tables[key].rows:
            columns.setdefault(row.run, set()).update(outline.tables[key].columns)
    for run in (*outline.curves.values(), outline.repeated):  # trained, and evaluated if a table has them
        columns.setdefault(run, set())
    settings = {}
    for run in columns:
        chosen = scale.runs[run]
        settings[run] = _settings(scale, chosen, read, sources, outline.data[chosen.data].classes)
    first: dict[tuple[str, tuple[tuple[str, str], ...]], str] = {}
    same = {
        run: first.setdefault((scale.runs[run].recipe, tuple(sorted(pairs.items()))), run)
        for run, pairs in settings.items()
    }
    attacks = {
        name: set[str]().union(*(columns[run] for run in columns if same[run] == name)) for name in same.values()
    }

    def cell(run: str, seed: int, name: str, evaluations: tuple[CellEvaluation, ...]) -> Cell:
        # shorter keys first: a part, then the settings of that part
        pairs = sorted(settings[run].items(), key=lambda pair: pair[0].count("."))
        words = tuple(f"--{key}={value}" for key, value in (*pairs, ("seed", str(seed))))
        return Cell(name, scale.runs[run].recipe, words, folder, evaluations)

    cells = [
        cell(run, seed, f"{run}__seed={seed}", _evaluations(scale, attacks[run]))
        for seed in range(seeds)
        for run in dict.fromkeys(same.values())
    ]
    twice = same[outline.repeated]
    cells.append(cell(twice, 0, f"{twice}__again", ()))
    folders = {run: tuple(folder / f"{name}__seed={seed}" for seed in range(seeds)) for run, name in same.items()}
    return Plan(tuple(cells), folders, (folders[twice][0], cells[-1].folder))


def _settings(
    scale: Scale, run: RunOfScale, read: Callable[[str], Settings], sources: Mapping[str, str], classes: int
) -> dict[str, str]:
    """Settings of a run in place of its recipe's, as texts by dotted key; `classes` are those of its data."""
    recipe = read(run.recipe)
    found = shortened(recipe, scale.epochs, scale.steps) if scale.epochs is not None else {}
    for role in ("model", *NETWORKS):
        if role == "model" or recipe.get(role) is not None:
            found |= {f"{role}.{key}": str(value) for key, value in scale.networks.items()}
    method = recipe.get("method")
    inner = method.get("inner") if isinstance(method, Mapping) else None
    if isinstance(inner, Mapping) and inner.get("mode", "eval") != "eval":
        found["method.inner.mode"] = "eval"
    if run.data in sources:
        found |= {"data.source": sources[run.data], "data.expected_classes": str(classes)}
    return found | {key: str(value) for key, value in (*scale.settings.items(), *run.settings.items())}


def _evaluations(scale: Scale, columns: set[str]) -> tuple[CellEvaluation, ...]:
    """The evaluations that fill the columns of a run."""
    common = [] if scale.threat is None else ["--threat", scale.threat]
    common += ["--evaluation.curve", "off"]
    names = [attack for column, attack in COLUMNS.items() if column in columns]
    found = []
    if names:
        limit = [] if scale.images is None else ["--evaluation.count", str(scale.images)]
        found.append(CellEvaluation(("--suite", ",".join(names), "--evaluation.mode", "every", *limit, *common)))
    if AUTOATTACK in columns:
        images = scale.autoattack_images
        limit = [] if images is None else ["--evaluation.count", str(images)]
        found.append(CellEvaluation(("--suite", "aa_standard", *limit, *common), "aa"))
    return tuple(found)
