"""`robustly train`: its arguments, and the settings of a recipe."""

import argparse
import shutil
from pathlib import Path

from robustly.cli.arguments import add_trust


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `robustly train` to a parser."""
    parser.description = (
        "Train from a recipe (see `robustly recipes`) or a YAML file. Any setting can be changed: "
        "--training.epochs 5, --threat linf:0.2, --threats linf:0.3 l1:10, --method.loss.beta 3. "
        "`robustly train RECIPE --help` lists them all with the recipe's values."
    )
    add_trust(parser)
    parser.add_argument("recipe", nargs="?", help="dataset/method, or the path of a .yaml file")
    parser.add_argument("--out", type=Path, help="run folder to create (default: runs/RECIPE)")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="continue a stopped run")
    parser.add_argument("--dry-run", action="store_true", help="check all settings, print the parts and their cost")
    parser.add_argument(
        "--observers",
        metavar="NAME,NAME",
        help="also send the metrics of every epoch to tensorboard, mlflow or wandb",
    )


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    """Train; returns the exit code. See `run_training`."""
    from robustly.cli.train import run_training

    return run_training(
        options.recipe,
        options.out,
        options.resume,
        overrides,
        options.trust_code,
        options.dry_run,
        options.observers,
    )


def settings_help(words: list[str], overrides: list[str]) -> str:
    """Every setting of a recipe with its value, changed by the settings of the command line.

    Raises:
        ValueError: an unknown recipe, or a wrong setting.
    """
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    recipe = parser.parse_known_args([word for word in words if word not in ("-h", "--help")])[0].recipe
    if recipe is None:
        return "settings: `robustly train RECIPE --help` lists them with the values of the recipe"
    from robustly.cli.recipes import read_recipe
    from robustly.experiments.configuration import build_config
    from robustly.experiments.overrides import apply_overrides
    from robustly.experiments.settings_help import help_text, settings_of

    config = build_config(apply_overrides(read_recipe(recipe), overrides))
    width = shutil.get_terminal_size().columns
    return f"settings of {recipe}:\n{help_text(settings_of(config), width)}"
