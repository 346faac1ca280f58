"""`robustly completion`."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `robustly completion` to a parser."""
    parser.description = (
        "Print a script that completes commands, options, recipes, suites and threats. "
        'bash: eval "$(robustly completion bash)" in ~/.bashrc. '
        'zsh: eval "$(robustly completion zsh)" in ~/.zshrc, after compinit. '
        "fish: robustly completion fish > ~/.config/fish/completions/robustly.fish"
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    """Print the script of a shell; returns the exit code."""
    from robustly.cli.completion import completion_script

    print(completion_script(options.shell), end="")
    return 0
