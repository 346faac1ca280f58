"""The recipes that the package ships, by name."""

import difflib
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import yaml

from robustly.configuration import ConfigurationError
from robustly.runs import read_yaml


def recipe_names() -> list[str]:
    """Names of all shipped recipes, as `dataset/method`."""
    folders = [entry for entry in _root().iterdir() if entry.is_dir()]
    return sorted(
        f"{folder.name}/{entry.name.removesuffix('.yaml')}"
        for folder in folders
        for entry in folder.iterdir()
        if entry.name.endswith(".yaml")
    )


def recipe_text(name: str) -> str:
    """A shipped recipe as its file has it, comments included.

    Raises:
        ConfigurationError: no recipe of that name.
    """
    names = recipe_names()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f", did you mean {close[0]!r}?" if close else ""
        raise ConfigurationError(
            f"unknown recipe {name!r}{hint}; there are {', '.join(names)}, or give the path of a .yaml file"
        )
    dataset, _, method = name.partition("/")
    return _root().joinpath(dataset, f"{method}.yaml").read_text(encoding="utf-8")


def read_recipe(name: str) -> dict[str, object]:
    """Settings of a shipped recipe, or of a YAML file given by its path.

    Raises:
        ConfigurationError: unknown name, unreadable file.
    """
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise ConfigurationError(f"there is no file {name}")
        return {"recipe": Path(name).stem, **read_yaml(Path(name))}
    settings: dict[str, object] = yaml.safe_load(recipe_text(name))
    return {"recipe": name, **settings}


def _root() -> Traversable:
    return resources.files("robustly").joinpath("recipes")
