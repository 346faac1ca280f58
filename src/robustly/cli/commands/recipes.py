"""`robustly recipes`."""

import argparse

from robustly.cli.recipes import recipe_names, recipe_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `robustly recipes` to a parser."""
    parser.add_argument("name", nargs="?", help="dataset/method, to print its settings")


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    """Print the names of the recipes, or one of them; returns the exit code."""
    print(recipe_text(options.name) if options.name else "\n".join(recipe_names()))
    return 0
