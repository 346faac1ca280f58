"""The recipes that the package ships, by name."""

from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from robustly.documents import parse_yaml
from robustly.experiments.keys import TOP_LEVEL
from robustly.experiments.overrides import overlay, read_yaml
from robustly.settings import SettingsError, nearest


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
    """The text of a shipped recipe, comments included.

    Raises:
        SettingsError: an unknown name.
    """
    names = recipe_names()
    if name not in names:
        hint = nearest(name, names) or ":"
        raise SettingsError(
            f"unknown recipe {name!r}{hint} `robustly recipes` lists all; the path of a .yaml file is also allowed"
        )
    dataset, _, method = name.partition("/")
    return _root().joinpath(dataset, f"{method}.yaml").read_text(encoding="utf-8")


def read_recipe(name: str) -> dict[str, object]:
    """Settings of a shipped recipe or of a YAML file, which may start from a recipe (key `base`).

    Raises:
        SettingsError: an unknown name, a file that cannot be read, or a file with the key `recipe` that is not
            the complete `config.yaml` of a run.
    """
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise SettingsError(f"there is no file {name}")
        return _of_file(Path(name))
    settings: dict[str, object] = parse_yaml(recipe_text(name), name)
    return {"recipe": name, **settings}


def _of_file(path: Path) -> dict[str, object]:
    settings = read_yaml(path)
    base = settings.pop("base", None)
    there = {*settings, *(["threat"] if "threats" in settings else [])}
    missing = [key for key in TOP_LEVEL if key not in there]
    if "recipe" in settings and (missing or base is not None):
        raise SettingsError(
            f"{path}: the key 'recipe' is allowed only in the complete config.yaml of a run; to start from a "
            "recipe write 'base: NAME'"
        )
    if base is None:
        return {"recipe": path.stem, **settings}
    if not isinstance(base, str) or base not in recipe_names():
        raise SettingsError(
            f"{path}: base: expected the name of a shipped recipe (see `robustly recipes`), got {base!r}"
        )
    return overlay(read_recipe(base), settings) | {"recipe": path.stem}


def _root() -> Traversable:
    return resources.files("robustly").joinpath("recipes")
