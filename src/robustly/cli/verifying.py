"""`robustly verify` for one instance."""

from dataclasses import dataclass
from pathlib import Path

from robustly.certification.answers import Answer, answer
from robustly.certification.deadline import Deadline
from robustly.certification.vnnlib import result_word
from robustly.cli.terminal import PlainConsole
from robustly.files import write_text

SHORT_WITNESS = 20
"""Most lines of a counterexample that are printed."""


@dataclass(frozen=True)
class OneOptions:
    """Options for one instance.

    Args:
        model: ONNX file.
        property_: VNN-LIB file.
        timeout: seconds from the begin of the command.
        witness: file for a counterexample; None for none.
        result: file for the word and a counterexample; None for none.
    """

    model: Path
    property_: Path
    timeout: float
    witness: Path | None
    result: Path | None


def verify_one(options: OneOptions, began: float) -> int:
    """Decide one instance, print the answer and write the files; returns 0.

    Args:
        options: what to verify.
        began: value of `time.monotonic()` when the command began; the loading of packages counts as time.

    Raises:
        ValueError: the network or the property is wrong; the result file has the word "error" then.
        OSError: a file cannot be written.
    """
    for file in (options.result, options.witness):
        if file is not None and file.is_dir():
            raise ValueError(f"{file} is a folder: name a file to write")
    if wrong := _wrong_files(options.model, options.property_):
        _write(options, Answer("error"))
        raise ValueError(wrong)
    found = decide(options.model, options.property_, began + options.timeout)
    _write(options, found)
    if found.word == "error":
        raise ValueError(found.reason)
    console = PlainConsole(highlight=False, soft_wrap=True)
    console.print(result_word(found.word, found.version), markup=False)
    console.print(described(found), markup=False)
    lines = found.witness.splitlines()
    if lines and len(lines) <= SHORT_WITNESS:
        console.print(found.witness.rstrip(), markup=False)
    elif lines and options.witness is None and options.result is None:
        console.print(f"the counterexample has {len(lines)} values: --witness FILE writes it")
    return 0


def _wrong_files(model: Path, property_: Path) -> str:
    """The mistake in the names of the files; empty if there is none."""
    for file in (model, property_):
        if not file.is_file():
            return f"{file} does not exist" if not file.exists() else f"{file} is a folder, not a file"
    first, second = (file.name.removesuffix(".gz") for file in (model, property_))
    if first.endswith(".vnnlib") and second.endswith(".onnx"):
        return f"the network stands before the property: robustly verify {property_} {model}"
    return ""


def decide(model: Path, property_: Path, end: float) -> Answer:
    """Answer an instance until `time.monotonic()` is `end`; a small part is kept for what cannot be stopped."""
    from robustly.certification.problem import Budget, Problem  # noqa: PLC0415
    from robustly.certification.verify import verify  # noqa: PLC0415

    budget = Budget(attack_steps=40, domains=10**9)

    def prove(graph, inputs, spec, *, deadline, confirm):  # type: ignore[no-untyped-def]
        return verify(Problem(graph, inputs, spec, confirm), budget=budget, deadline=deadline)[0]

    left = Deadline(end).left
    return answer(model, property_, deadline=Deadline(end - min(0.5, 0.05 * left)), prove=prove)


def described(found: Answer) -> str:
    """One line on an answer."""
    what = {
        "unsat": "the property holds",
        "sat": "an input violates the property; onnxruntime confirms it",
        "timeout": "neither proved nor broken in the time",
        "unknown": "not decided",
        "error": "not run",
    }[found.word]
    how = f"{found.stage}, {found.work} domains, " if found.stage else ""
    reason = f" ({found.reason})" if found.reason else ""
    return f"{what}: {how}{found.seconds:.2f} s{reason}"


def _write(options: OneOptions, found: Answer) -> None:
    if options.result is not None:
        options.result.parent.mkdir(parents=True, exist_ok=True)
        write_text(options.result, f"{result_word(found.word, found.version)}\n{found.witness}")
    if options.witness is not None and found.witness:
        options.witness.parent.mkdir(parents=True, exist_ok=True)
        write_text(options.witness, found.witness)
