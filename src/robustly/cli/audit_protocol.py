"""`robustly audit RUN --as LABEL` for the evaluations of a protocol."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.markup import escape

from robustly.cli.audit import AuditOptions, run_audits
from robustly.cli.protocol_choice import untrained
from robustly.cli.terminal import PlainConsole
from robustly.cli.together import leads
from robustly.data import load_test
from robustly.evaluation import PROTOCOLS, Check
from robustly.evaluation.suites.protocol import AS_STRONG, ImageShape, Protocol, without_file
from robustly.evidence import EvidenceError, read_evidence, read_summary
from robustly.evidence.protocol_result import ProtocolResult, contradiction, protocol_file, read_protocol
from robustly.experiments.class_planes import planes_problem
from robustly.experiments.configuration import RunConfig
from robustly.experiments.run_folder import EVALUATION, RunError, evaluation_data, open_run
from robustly.experiments.trained_on import trained_on
from robustly.threats import parse_threat


def is_protocol(folder: Path, label: str | None) -> bool:
    """Return True if a label is that of a protocol's evaluations in a run."""
    return label is not None and label.isidentifier() and protocol_file(folder, label).is_file()


def run_protocol_audit(folder: Path, options: AuditOptions, trust_code: bool) -> int:
    """Re-check every evaluation of a protocol and the numbers over all of them; 0 if every check passed, else 1.

    Args:
        folder: the run.
        options: the options; the label is that of the protocol.
        trust_code: whether models that only a file names may be imported.

    Raises:
        ValueError: there is no such protocol, or weights or data cannot be read.
        OSError: a key cannot be read.
    """
    if options.label is None:
        raise RunError("an audit of a protocol needs its name: give it with --as")
    stated = read_protocol(protocol_file(folder, options.label))
    names = [one.evaluation.removeprefix(EVALUATION).removeprefix("_") or None for one in stated.columns]
    audits = run_audits(folder, [replace(options, label=name, brief=True) for name in names], trust_code)
    if not leads():
        return sum(audits)
    console = PlainConsole()
    checks = protocol_checks(folder, stated)
    failed = not all(check.passed for check in checks)
    for column in stated.columns:
        console.print(f"{column.evaluation}, {column.threat}", highlight=False, soft_wrap=True, markup=False)
        failed |= next(audits) != 0
    for _ in audits:  # there are no more: ends the other processes
        pass
    console.print(protocol_file(folder, options.label).name, highlight=False, soft_wrap=True, markup=False)
    for check in checks:
        mark = "[green]ok    [/]" if check.passed else "[red]FAILED[/]"
        tail = f": {check.problem}" if check.problem else ""
        console.print(f"{mark} {escape(check.name + tail)}", highlight=False, soft_wrap=True)
    console.print(
        "stated, not checked: date of the suite; threats of the training that the user named; principal directions "
        "for a model that was trained elsewhere",
        highlight=False,
        soft_wrap=True,
    )
    if absent := _absent(open_run(folder), stated):
        console.print(
            f"the threats are those of an earlier version of {stated.terms.protocol}, without {', '.join(absent)}",
            highlight=False,
            soft_wrap=True,
        )
    verdict = "[red]AUDIT FAILED" if failed else "[green]audit passed"
    console.print(f"{verdict}[/]: {len(stated.columns)} evaluations of {stated.terms.protocol}")
    return int(failed)


def protocol_checks(folder: Path, stated: ProtocolResult) -> list[Check]:
    """Check the file of a protocol: its numbers, its text, and the choice of its threats.

    Args:
        folder: the run.
        stated: the content of the file.
    """
    config = open_run(folder)
    return [
        Check("the numbers of the protocol follow from its evaluations", contradiction(folder, stated)),
        Check("the description and the notes are those of the protocol", _text_problem(stated)),
        Check("the threats are those of the protocol", _threats_problem(config, stated)),
        Check("the threats of the training are those of the run", _training_problem(config, stated)),
        Check("the attacks under the threats of the training are as strong as the suite's", _weak(folder, stated)),
        *_planes_checks(folder, config, stated),
    ]


def _text_problem(stated: ProtocolResult) -> str:
    terms, protocol = stated.terms, PROTOCOLS.get(stated.terms.protocol)
    if protocol is None:
        return f"there is no protocol {terms.protocol!r}"
    pairs = {
        "words": (terms.words, protocol.words),
        "mean": (terms.mean, protocol.mean),
        "compares": (terms.compares, protocol.compares),
        "notes": (terms.notes, protocol.notes),
    }
    wrong = [name for name, (there, here) in pairs.items() if there != here]
    wrong += [one.evaluation for one in stated.tested if one.suite != protocol.name]
    return f"wrong: {', '.join(wrong)}" if wrong else ""


def _threats_problem(config: RunConfig, stated: ProtocolResult) -> str:
    """The threats of the protocol that are neither tested, nor left out for a reason that holds."""
    protocol = PROTOCOLS.get(stated.terms.protocol)
    if protocol is None:
        return ""
    if stated.terms.chosen and protocol.compares:
        return "threats left out of those that the user chose" if stated.left_out else ""
    if stated.terms.chosen:
        return f"the threats of {protocol.name} cannot be chosen"
    return _problem_and_absent(config, stated, protocol)[0]


def _problem_and_absent(
    config: RunConfig, stated: ProtocolResult, protocol: Protocol
) -> tuple[str, tuple[str, ...]]:
    """The problem with the threats of a result, and the threats of today that its version of the protocol has not.

    A result of an earlier version has no problem. If no version fits, the problem is that of today's.
    """
    shape = load_test(evaluation_data(config)).shape
    today = protocol.threats(shape)
    for texts in (today, *protocol.earlier(shape)):
        if not _version_problem(config, stated, protocol, texts, shape):
            return "", tuple(text for text in today if text not in texts)
    return _version_problem(config, stated, protocol, today, shape), ()


def _absent(config: RunConfig, stated: ProtocolResult) -> tuple[str, ...]:
    """The threats of today that the version of the result has not; none if no version fits."""
    protocol = PROTOCOLS.get(stated.terms.protocol)
    if protocol is None or stated.terms.chosen:
        return ()
    return _problem_and_absent(config, stated, protocol)[1]


def _version_problem(
    config: RunConfig, stated: ProtocolResult, protocol: Protocol, texts: Sequence[str], shape: ImageShape
) -> str:
    wanted = [without_file(text) for text in texts]
    left_out: tuple[str, ...] = ()
    if protocol.compares:
        trained = [*map(str, trained_on(config) or ()), *stated.terms.stated]
        threats, left_out = untrained([parse_threat(text) for text in texts], trained, shape)
        wanted = list(map(str, threats))
    tested = [without_file(one.threat) for one in stated.tested]
    missing = [text for text in wanted if text not in tested]
    added = [text for text in tested if text not in wanted]
    found = [f"{', '.join(missing)} missing"] if missing else []
    found += [f"{', '.join(added)} added"] if added else []
    found += ["other threats left out than stated"] if stated.left_out != left_out else []
    return "; ".join(found)


def _weak(folder: Path, stated: ProtocolResult) -> str:
    """The evaluations under threats of the training whose suite is not one of those that the protocol takes."""
    found = []
    for one in stated.columns:
        suite = one.suite.partition("+")[0]
        try:
            composed = read_summary(folder / one.evaluation).composed is not None
        except EvidenceError:
            continue  # the numbers cannot be computed again, which is a check of its own
        if one.role == "trained" and (composed or suite not in (*AS_STRONG, stated.terms.protocol)):
            found.append(f"{one.evaluation} is by the suite {one.suite}")
    return f"{', '.join(found)}: evaluate again" if found else ""


def _planes_checks(folder: Path, config: RunConfig, stated: ProtocolResult) -> list[Check]:
    """Check the principal directions of GPGD against the training images of the run."""
    found = []
    for one in stated.tested:
        if one.threat.partition(":")[0] != "subspace":
            continue
        try:
            arrays = read_evidence(folder / one.evaluation).images.threat
        except EvidenceError:
            continue  # as above
        for values in arrays.values():
            name = f"the directions of {one.threat} are the principal ones of the training images"
            found.append(Check(name, planes_problem(config, values)))
    return found


def _training_problem(config: RunConfig, stated: ProtocolResult) -> str:
    if not stated.terms.compares:
        return ""
    trained = [one.threat for one in stated.columns if one.role == "trained"]
    known = [str(one) for one in trained_on(config) or ()]
    missing = [text for text in known if text not in trained]
    others = [text for text in trained if text not in known and text not in stated.terms.stated]
    found = [f"{', '.join(missing)} missing"] if missing else []
    found += [f"{', '.join(others)} neither of the run nor named by its user"] if others else []
    untried = [text for text in stated.terms.stated if text not in trained]
    found += [f"{', '.join(untried)} named by the user and not evaluated"] if untried else []
    return "; ".join(found)
