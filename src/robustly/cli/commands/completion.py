"""`robustly completion`: scripts that complete command lines in bash, zsh and fish, generated from the parser."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from robustly.cli.commands.suites import SUITE_WORDS
from robustly.cli.recipes import recipe_names
from robustly.experiments.keys import SECTIONS

if TYPE_CHECKING:
    from robustly.cli.commands import Command

THREATS = ("linf:8/255", "linf:4/255", "linf:0.3", "l2:0.5", "l1:12", "l0:10", "rotation:30")
"""Threats that are offered; any other may be typed."""


@dataclass(frozen=True)
class Completion:
    """The words that may follow in one command.

    Args:
        help: a few words on the command.
        options: its options with a few words on each, and settings of the configuration without their last part.
        values: allowed values of an option, by option.
        words: words that are not options, such as names of recipes; beside them, files are completed.
    """

    help: str
    options: dict[str, str]
    values: dict[str, tuple[str, ...]]
    words: tuple[str, ...]


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
    print(completion_script(options.shell), end="")
    return 0


def completions() -> dict[str, Completion]:
    """The words of every command, from its parser."""
    from robustly.cli.commands import COMMANDS  # this command is one of them

    return {name: _completion(name, command) for name, command in COMMANDS.items()}


def completion_script(shell: str) -> str:
    """The script of a shell.

    Args:
        shell: "bash", "zsh" or "fish".
    """
    scripts: dict[str, Callable[[dict[str, Completion]], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
    return scripts[shell](completions())


def _completion(name: str, command: "Command") -> Completion:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    options: dict[str, str] = {}
    values: dict[str, tuple[str, ...]] = {}
    words: tuple[str, ...] = ()
    for action in parser._actions:
        text = (action.help or "").replace("%%", "%")
        names = [one for one in action.option_strings if one.startswith("--")]
        choices = tuple(map(str, action.choices or ())) or _names(name, action.dest)
        for one in names:
            options[one] = text
            if choices:
                values[one] = choices
        words += () if names else choices
    if command.takes_settings:
        options |= {
            "--threat": "the allowed perturbations",
            "--threats": "several of them",
            "--seed": "seed of all random numbers",
        }
        options |= {f"--{section}.": "settings" for section in (*SECTIONS, "method")}
        values |= {"--threat": THREATS, "--threats": THREATS, "--evaluation.suite": tuple(SUITE_WORDS)}
    return Completion(command.help, options, values, words)


def _names(command: str, argument: str) -> tuple[str, ...]:
    """Names that an argument without choices often has."""
    if argument == "suite" or (command, argument) == ("suites", "name"):
        return tuple(SUITE_WORDS)
    if argument in ("recipe", "recipes") or (command, argument) == ("recipes", "name"):
        return tuple(recipe_names())
    return THREATS if argument == "threat" else ()


def _bash(commands: dict[str, Completion]) -> str:
    lines = [
        "# Completion of robustly in bash.",
        "_robustly() {",
        '    local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" words=""',
        "    COMPREPLY=()",
        "    if [ \"$COMP_CWORD\" -eq 1 ]; then",
        f"        words={_quoted([*commands, '--help', '--version'])}",
        "    else",
        '        case "${COMP_WORDS[1]} $before" in',
    ]  # fmt: skip
    for name, one in commands.items():
        lines += [
            f'            "{name} {option}") words={_quoted(found)};;' for option, found in one.values.items()
        ]
    lines += ["            *)", '                case "${COMP_WORDS[1]} $word" in']
    for name, one in commands.items():
        lines.append(f'                    "{name} -"*) words={_quoted(one.options)};;')
        if one.words:
            lines.append(f'                    "{name} "*) words={_quoted(one.words)};;')
    lines += [
        "                esac;;",
        "        esac",
        "    fi",
        '    COMPREPLY=($(compgen -W "$words" -- "$word"))',
        '    if [ "${#COMPREPLY[@]}" -eq 1 ] && [ "${COMPREPLY[0]: -1}" = "." ]; then',
        "        compopt -o nospace 2>/dev/null",
        "    fi",
        "}",
        "complete -o default -F _robustly robustly",
    ]
    return "\n".join(lines) + "\n"


def _zsh(commands: dict[str, Completion]) -> str:
    lines = [
        "#compdef robustly",
        "# Completion of robustly in zsh.",
        "_robustly() {",
        "    local -a found",
        "    if (( CURRENT == 2 )); then",
        f"        found=({_described({name: one.help for name, one in commands.items()})})",
        "        _describe command found; return",
        "    fi",
        '    case "${words[2]} ${words[CURRENT-1]}" in',
    ]
    for name, one in commands.items():
        for option, values in one.values.items():
            lines.append(f'        "{name} {option}") compadd -- {" ".join(map(_word, values))}; return;;')
    lines += ["    esac", '    case "${words[2]} ${words[CURRENT]}" in']
    for name, one in commands.items():
        lines.append(f'        "{name} -"*) found=({_described(one.options)}); _describe option found; return;;')
    lines += ["    esac", '    case "${words[2]}" in']
    for name, one in commands.items():
        if one.words:
            lines.append(f"        {name}) compadd -- {' '.join(map(_word, one.words))};;")
    lines += ["    esac", "    _files", "}", "compdef _robustly robustly"]
    return "\n".join(lines) + "\n"


def _fish(commands: dict[str, Completion]) -> str:
    lines = ["# Completion of robustly in fish."]
    for name, one in commands.items():
        lines.append(f"complete -c robustly -n __fish_use_subcommand -f -a {name} -d {_word(one.help)}")
    for name, one in commands.items():
        here = f"complete -c robustly -n '__fish_seen_subcommand_from {name}'"
        for option, text in one.options.items():
            values = f" -x -a {_word(' '.join(one.values[option]))}" if option in one.values else ""
            lines.append(f"{here} -l {option[2:]}{values} -d {_word(text)}")
        if one.words:
            lines.append(f"{here} -a {_word(' '.join(one.words))}")
    return "\n".join(lines) + "\n"


def _quoted(words: Sequence[str] | dict[str, str]) -> str:
    return _word(" ".join(words))


def _described(words: dict[str, str]) -> str:
    """Words with their descriptions for zsh, whose separator is a colon."""
    return " ".join(_word(f"{word.replace(':', chr(92) + ':')}:{text}") for word, text in words.items())


def _word(text: str) -> str:
    """A word in single quotes."""
    return "'" + text.replace("'", "'\\''") + "'"
