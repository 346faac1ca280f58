"""`robustly gate`."""

import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass, replace
from pathlib import Path

from rich.markup import escape

from robustly.api import evidence_folder
from robustly.api.gate import Gate, Limits, audit_condition, gate
from robustly.api.gate_protocol import ProtocolGate, gate_protocol, with_audit
from robustly.cli.audit import AuditOptions, run_audit
from robustly.cli.audit_protocol import is_protocol, run_protocol_audit
from robustly.cli.terminal import PlainConsole
from robustly.evaluation import Sampling
from robustly.evidence.audit_record import read_audit
from robustly.experiments.locks import repair_evaluations
from robustly.experiments.run_folder import CONFIG
from robustly.files import write_json, write_text
from robustly.output_text import one_line
from robustly.settings import SettingsError

_NOT_XML = re.compile("[\ufffe\uffff]")  # one_line replaces the other characters that XML does not have


@dataclass(frozen=True)
class GateOptions:
    """The options of `robustly gate`.

    Args:
        label: name of the evaluation if the run has several.
        audit: whether the evaluation is audited first.
        junit: file for the conditions as JUnit XML.
        json: file for the conditions as JSON.
        trust_code: whether the audit may import the model's factory.
    """

    label: str | None = None
    audit: bool = False
    junit: Path | None = None
    json: Path | None = None
    trust_code: bool = False


def run_gate(run: Path, limits: Limits, options: GateOptions) -> int:
    """Print one line for each condition, and write the files that are given; 0 if all hold, else 1.

    Args:
        run: a run folder, or a folder of evidence.
        limits: the limits.
        options: the other options.

    Raises:
        ValueError: there is no evaluation, it cannot be read, or a folder without a run is to be audited.
        OSError: a file cannot be written.
    """
    for file in (options.junit, options.json):
        if file is not None and file.is_dir():
            raise SettingsError(f"{file} is a folder: name a file to write")
    repair_evaluations(run)
    if is_protocol(run, options.label):
        return _run_protocol_gate(run, limits, options)
    folder = evidence_folder(run, options.label)
    if options.audit and not (run / CONFIG).is_file():
        raise SettingsError(f"--audit needs the run with its weights, but {run} has no {CONFIG}")
    if options.audit:
        run_audit(run, AuditOptions(Sampling(), options.label), options.trust_code)
    result = gate(folder, limits)
    if options.audit:
        result = replace(result, conditions=(*result.conditions, audit_condition(read_audit(folder))))
    name = one_line(folder.resolve().name if folder == run else run.resolve().name)
    summary = result.summary
    tested = f"{summary.data.count} examples of {summary.data.source} under {summary.threat.text}"
    seen = summary.data.seen_words if summary.data.seen else ""
    _print(result, f"{summary.model.name} on {tested}", seen, audited=options.audit)
    _write(name, result, as_plain(name, result), options)
    return 0 if result.passed else 1


def _run_protocol_gate(run: Path, limits: Limits, options: GateOptions) -> int:
    """The gate on a suite of several threats; see `run_gate`."""
    assert options.label is not None
    if options.audit and not (run / CONFIG).is_file():
        raise SettingsError(f"--audit needs the run with its weights, but {run} has no {CONFIG}")
    result = gate_protocol(run, options.label, limits)
    if options.audit:
        audited = run_protocol_audit(run, AuditOptions(Sampling(), options.label), options.trust_code)
        result = with_audit(result, audited == 0)
    name, numbers = one_line(run.resolve().name), result.result
    tested = f"{numbers.clean.count} examples of {result.source} by {numbers.terms.protocol}"
    _print(result, f"{result.model} on {tested}, {len(numbers.columns)} threats", "", audited=options.audit)
    about = {
        "threats": [one.threat for one in numbers.columns],
        "suite": numbers.terms.protocol,
        "data": {"source": result.source, "count": numbers.clean.count, "sha256": numbers.data_sha256},
        "model": {"name": result.model, "weights_sha256": numbers.weights_sha256},
        "created": numbers.created,
    }
    _write(name, result, {**_outcome(name, result), **about}, options)
    return 0 if result.passed else 1


def _write(name: str, result: Gate | ProtocolGate, content: dict[str, object], options: GateOptions) -> None:
    """Write the files that are given."""
    if options.junit is not None:
        options.junit.parent.mkdir(parents=True, exist_ok=True)
        write_text(options.junit, junit(name, result))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.json, content)


def junit(name: str, result: Gate | ProtocolGate) -> str:
    """JUnit XML with one test case for each condition.

    Args:
        name: name of the run.
        result: the conditions.
    """
    failed = sum(not one.passed for one in result.conditions)
    counts = {"tests": str(len(result.conditions)), "failures": str(failed), "errors": "0"}
    root = ET.Element("testsuites", {"name": "robustly gate", **counts})
    suite = ET.SubElement(root, "testsuite", {"name": f"robustly gate {name}", "skipped": "0", **counts})
    for one in result.conditions:
        case = ET.SubElement(suite, "testcase", {"classname": f"robustly.gate.{name}", "name": one.name})
        words = one_line(_NOT_XML.sub("?", one.words))
        if one.passed:
            ET.SubElement(case, "system-out").text = words
        else:
            ET.SubElement(case, "failure", {"message": words, "type": "condition"}).text = words
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def as_plain(name: str, result: Gate) -> dict[str, object]:
    """The conditions as a JSON object, with what they were decided on.

    Args:
        name: name of the run.
        result: the conditions.
    """
    summary = result.summary
    return {
        **_outcome(name, result),
        "threat": summary.threat.text,
        "suite": summary.suite.name,
        "data": {"source": summary.data.source, "count": summary.data.count, "sha256": summary.data.sha256},
        "model": {"name": summary.model.name, "weights_sha256": summary.model.weights_sha256},
        "created": summary.created,
    }


def _outcome(name: str, result: Gate | ProtocolGate) -> dict[str, object]:
    return {
        "run": name,
        "passed": result.passed,
        "conditions": [
            {"name": one.name, "passed": one.passed, "words": one.words, "value": one.value, "limit": one.limit}
            for one in result.conditions
        ],
    }


def _print(result: Gate | ProtocolGate, tested: str, seen: str, audited: bool) -> None:
    console = PlainConsole()
    console.print(tested, highlight=False, soft_wrap=True, markup=False)
    for one in result.conditions:
        mark = "[green]ok    [/]" if one.passed else "[red]FAILED[/]"
        console.print(f"{mark} {escape(f'{one.name}: {one.words}')}", highlight=False, soft_wrap=True)
    if seen:
        console.print(f"[yellow]note  [/] {escape(seen)}", highlight=False, soft_wrap=True)
    if not audited:
        console.print("not audited: --audit checks the evidence with the model first", highlight=False)
    count = sum(one.passed for one in result.conditions)
    verdict = "[green]gate passed" if result.passed else "[red]GATE FAILED"
    console.print(f"{verdict}[/]: {count} of {len(result.conditions)} conditions", highlight=False)
