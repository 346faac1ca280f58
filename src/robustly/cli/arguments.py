"""Settings on the command line: which words are options of a command, and which change the configuration."""

from collections.abc import Sequence

from robustly.configuration import TOP_LEVEL


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take out `--a.b value`, `--a.b=value` and the settings without a dot (`--seed 1`, `--threat linf:0.2`).

    Returns:
        The other words, and the settings, each in their order.
    """
    words: list[str] = []
    overrides: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        key, equals, _ = word.removeprefix("--").partition("=")
        if word.startswith("--") and ("." in key or key in TOP_LEVEL):
            overrides.append(word)
            if not equals and rest:
                overrides.append(rest.pop(0))
        else:
            words.append(word)
    return words, overrides


def names_model(overrides: Sequence[str]) -> bool:
    """Whether the person at the keyboard named a model, and so trusts its code."""
    return any(word.partition("=")[0] in ("--model.name", "--guide.name") for word in overrides)
