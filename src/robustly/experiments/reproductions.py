"""Reproductions of a paper: its tables and figures as rows of runs, and the budgets at which they are carried out.

A reproduction is a YAML file of the package. Its tables name runs, and each scale gives every run a recipe. Runs of
equal recipe and settings are one run, which may stand in several rows.
"""

from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any

from robustly.documents import parse_yaml
from robustly.experiments.keys import Settings
from robustly.experiments.reproduction_cost import DataSize
from robustly.settings import SettingsError, build, check_keys, choose

COLUMNS = {
    "pgd_10": "pgd_10",
    "pgd_20": "pgd_20",
    "pgd_50": "pgd_50",
    "pgd_100": "pgd_100",
    "apgd": "apgd",
    "cw": "cw_20",
}
"""Attacks of the columns that are single attacks, in the order in which they run."""
AUTOATTACK = "aa"


@dataclass(frozen=True)
class OutlineRow:
    """A row of a table: the text of its first column, its name in the paper, and the run."""

    group: str
    name: str
    run: str


@dataclass(frozen=True)
class OutlineTable:
    """A table of a paper.

    Args:
        title: its title.
        columns: keys of its columns.
        rows: its rows.
        setting: networks and data of the published numbers.
        heading: title of the first column; empty for none.
        published: source of the published numbers; empty for a table that the paper does not have.
        note: a sentence below the table.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[OutlineRow, ...]
    setting: str = ""
    heading: str = ""
    published: str = ""
    note: str = ""


@dataclass(frozen=True)
class RunOfScale:
    """Recipe of a run, settings in place of its own, as texts by dotted key, and the data set of its images."""

    recipe: str
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def data(self) -> str:
        """Data set of the recipe."""
        return self.recipe.partition("/")[0]


@dataclass(frozen=True)
class Scale:
    """A budget at which the tables are reproduced.

    Args:
        about: sentences on data, networks, epochs and attacks.
        runs: recipes by run.
        tables: the tables that it makes by default; all without it.
        settings: settings of all runs in place of their recipes', as texts by dotted key.
        networks: settings of the model and of the guide if there is one.
        epochs: epochs of every run; None for those of the recipes.
        steps: most steps of the training attacks; None for those of the recipes.
        threat: threat of the evaluations; None for that of the training.
        images: test images of all columns but AutoAttack; None for all.
        autoattack_images: the first test images, for AutoAttack; None for all.
        large: whether it is meant for GPUs: on a CPU it needs the user's consent.
    """

    about: str
    runs: dict[str, RunOfScale]
    tables: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    networks: dict[str, Any] = field(default_factory=dict)
    epochs: int | None = None
    steps: int | None = None
    threat: str | None = None
    images: int | None = None
    autoattack_images: int | None = None
    large: bool = False


@dataclass(frozen=True)
class Outline:
    """A paper's tables and figures as runs, and the scales.

    Args:
        name: name of the reproduction.
        title: title of the method.
        source: the paper.
        paper: settings of the paper in words, by the keys of `robustly.reports.reproduction.settings`.
        data: sizes of the data sets, by the folder of their recipes.
        tables: tables by key.
        curves: names of the lines of the figure of convergence, and their runs.
        clean: tables whose clean accuracies are drawn.
        hybrid: table of the figure of all attacks.
        controls: runs of the comparison that decides: "guided", "at_ce", "at_kl".
        repeated: the run that is carried out twice with one seed.
        scales: scales by name.
    """

    name: str
    title: str
    source: str
    paper: dict[str, str]
    data: dict[str, DataSize]
    tables: dict[str, OutlineTable]
    curves: dict[str, str]
    clean: tuple[str, ...]
    hybrid: str
    controls: dict[str, str]
    repeated: str
    scales: dict[str, Scale]


def reproduction_names() -> list[str]:
    """Names of the reproductions of the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _root().iterdir() if entry.name.endswith(".yaml"))


def read_outline(name: str) -> Outline:
    """A reproduction of the package by its name.

    Raises:
        SettingsError: an unknown name.
    """
    choose({one: one for one in reproduction_names()}, name, "reproduce")
    content = parse_yaml(_root().joinpath(f"{name}.yaml").read_text(encoding="utf-8"), f"{name}.yaml")
    return outline_from(name, content)


def outline_from(name: str, content: Settings) -> Outline:
    """The reproduction that a mapping describes.

    Raises:
        SettingsError: an unknown key, a value of another type, a row whose run a scale lacks, or an unknown column.
    """
    keys = (
        "title",
        "source",
        "paper",
        "data",
        "tables",
        "curves",
        "clean",
        "hybrid",
        "controls",
        "repeated",
        "scales",
    )
    check_keys(content, keys, name)
    tables = {key: _table(value, f"{name}.tables.{key}") for key, value in content["tables"].items()}
    scales = {key: _scale(value, f"{name}.scales.{key}") for key, value in content["scales"].items()}
    data = {key: build(DataSize, value, f"{name}.data.{key}") for key, value in content["data"].items()}
    plain = {key: content[key] for key in keys if key not in ("data", "tables", "scales")}
    outline = build(Outline, {"name": name, "data": {}, "tables": {}, "scales": {}, **plain}, name)
    for scale_name, scale in scales.items():
        made = scale.tables or tuple(tables)
        needed = [row.run for key in made for row in tables[key].rows]
        needed += [outline.repeated, *outline.curves.values(), *outline.controls.values()]
        missing = [run for run in needed if run not in scale.runs]
        if missing:
            raise SettingsError(f"{name}.scales.{scale_name}: no recipe for the run {missing[0]!r}")
    return replace(outline, data=data, tables=tables, scales=scales)


def _table(given: Any, where: str) -> OutlineTable:
    plain = dict(given)
    rows = tuple(OutlineRow(*map(str, row)) for row in plain.pop("rows"))
    table = build(OutlineTable, {**plain, "rows": []}, where)
    for column in table.columns:
        choose({**dict.fromkeys(COLUMNS), "clean": None, AUTOATTACK: None, "all": None}, column, f"{where}.columns")
    return replace(table, rows=rows)


def _scale(given: Any, where: str) -> Scale:
    plain = dict(given)
    runs = {
        name: RunOfScale(run) if isinstance(run, str) else build(RunOfScale, run, f"{where}.runs.{name}")
        for name, run in plain.pop("runs").items()
    }
    return replace(build(Scale, {**plain, "runs": {}}, where), runs=runs)


def _root() -> Any:
    return resources.files("robustly").joinpath("reproductions")
