"""The command `robustly`: the words of a command line, its parser, and its exit codes.

The commands are in `robustly.cli.commands`.
"""

import argparse
import logging
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from typing import NoReturn

import robustly
from robustly.cli.allocator import keep_compiled_code, keep_freed_memory
from robustly.cli.arguments import PROCESSES, STRATEGY, split_overrides
from robustly.cli.commands import COMMANDS
from robustly.cli.interruption import Stopped, lasting_output, stoppable
from robustly.output_text import one_line
from robustly.signals import STARTED_BY

USER_ERROR, FAULT, INTERRUPTED = 2, 3, 130
LONGEST = 1000
"""Most characters of a message."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    0: success. 1: the command ran, and its answer is negative: a failed audit or diagnostic. 2: wrong input, with
    one sentence on stderr. 3: a fault of robustly itself; the sentence names a file with the traceback. 130:
    Ctrl-C. 143: SIGTERM. 129: SIGHUP. A closed pipe ends no command. With the variable `ROBUSTLY_TRACEBACK` set,
    the traceback of 2 and 3 is printed too.
    """
    for name in ("lightning.fabric", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # frames of C++ beside the sentence on a lost process
    keep_freed_memory()
    keep_compiled_code()
    with lasting_output():
        return _exit_code(list(sys.argv[1:] if arguments is None else arguments))


def _exit_code(arguments: list[str]) -> int:
    try:
        with stoppable(), warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            code = _run(arguments)
            if sys.stdout is not None:
                sys.stdout.flush()  # a full disk is an error, unlike a closed pipe
            return code
    except Stopped as stop:
        _say(f"robustly: {stop}", is_of_all=True)
        return stop.exit_code
    except KeyboardInterrupt:
        _say("robustly: interrupted", is_of_all=True)
        return INTERRUPTED
    except Exception as error:
        if os.environ.get("ROBUSTLY_TRACEBACK"):
            traceback.print_exc()
        error = _of_device(error)
        is_fault = not (isinstance(error, ValueError | OSError | ImportError) or _is_out_of_memory(error))
        sentence = one_line(_report(error) if is_fault else _sentence(error))
        shown = sentence if len(sentence) <= LONGEST else f"{sentence[:LONGEST]}..."
        _say(f"robustly: {shown}", is_of_all=isinstance(error, ConnectionError))
        return FAULT if is_fault else USER_ERROR


def _say(sentence: str, is_of_all: bool) -> None:
    """Print why a command ends, unless the process that has started this one prints it for all."""
    if not (is_of_all and STARTED_BY in os.environ):
        print(sentence, file=sys.stderr)  # noqa: T201


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}; files written before are kept"
    if _is_out_of_memory(error):
        return f"there is not enough memory: use smaller batches, models or images ({str(error)[:120]})"
    if type(error).__name__ == "DeviceError":
        return f"{error}; files written before are kept, and the same command continues after them"
    return str(error).strip() or type(error).__name__


def _of_device(error: Exception) -> Exception:
    """The error, or that of a lost GPU in its place; without PyTorch, which loads slowly, there is none."""
    if isinstance(error, RuntimeError) and "torch" in sys.modules:
        from robustly.runtime import with_lost_device  # noqa: PLC0415 (slow to import)

        return with_lost_device(error)
    return error


def _is_out_of_memory(error: Exception) -> bool:
    """Return True for a MemoryError and for `torch.OutOfMemoryError`, by its name, because PyTorch loads slowly."""
    names = {(kind.__module__, kind.__name__) for kind in type(error).__mro__}
    return isinstance(error, MemoryError) or ("torch", "OutOfMemoryError") in names


def _report(error: Exception) -> str:
    """The sentence on a fault of robustly itself; writes the traceback to a temporary file."""
    with tempfile.NamedTemporaryFile("w", prefix="robustly-", suffix=".txt", encoding="utf-8", delete=False) as log:
        log.write("".join(traceback.format_exception(error)).encode("utf-8", "replace").decode())
    return (
        f"this is a fault of robustly ({type(error).__name__}: {str(error)[:160]}): please report it with the file "
        f"{log.name}; files written before are kept"
    )


def _show_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    """Print warnings of the category UserWarning, without file and line."""
    if issubclass(category, UserWarning):
        print(f"warning: {one_line(str(message))}", file=sys.stderr)  # noqa: T201


def _run(arguments: list[str]) -> int:
    words, overrides = split_overrides(arguments)
    options = _options(words, overrides)
    command = COMMANDS[options.command]
    allowed = (f"--{PROCESSES}", f"--{STRATEGY}") if command.takes_processes else ()
    wrong = [word for word in overrides if word.startswith("--") and word.partition("=")[0] not in allowed]
    if wrong and not command.takes_settings:
        others = f" but {' and '.join(allowed)}" if allowed else ""
        raise ValueError(f"{options.command} takes no settings{others}, got {wrong[0]}")
    return command.run(options, overrides)


def _options(words: list[str], overrides: list[str]) -> argparse.Namespace:
    """The parsed words. After the options that `--help` prints, those of the configuration follow."""
    try:
        return parser().parse_args(words)
    except SystemExit:  # after --help and --version
        command = COMMANDS.get(words[0]) if words else None
        if command is not None and command.settings_help is not None:
            sys.stdout.flush()  # the settings take some seconds
            print(f"\n{command.settings_help(words[1:], overrides)}")  # noqa: T201
        raise


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line, without settings such as `--training.epochs 5`."""
    whole = _Parser(
        prog="robustly",
        description="Train robust networks, attack them, and report the evidence.",
        allow_abbrev=False,
    )
    whole.add_argument("--version", action="version", version=f"robustly {robustly.__version__}")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.add_arguments(
            commands.add_parser(name, allow_abbrev=False, help=command.help, description=command.help)
        )
    return whole
