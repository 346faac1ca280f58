"""`robustly dossier`."""

import inspect
from pathlib import Path

from robustly.api import evidence_folder
from robustly.attacks import ATTACK_KINDS, ATTACKS, TITLES, Attack
from robustly.cli.audit_protocol import is_protocol
from robustly.cli.terminal import PlainConsole
from robustly.evaluation.recording import stored_threat
from robustly.evaluation.suites.suite import settings
from robustly.evidence import read_evidence
from robustly.evidence.audit_record import read_audit
from robustly.evidence.protocol_result import protocol_file, read_protocol
from robustly.evidence.storage import read_threat_arrays
from robustly.experiments.locks import repair_evaluations
from robustly.reports.dossier.attack_tables import KnownAttack
from robustly.reports.dossier.content import Floors, dossier
from robustly.reports.dossier.page import check_output, write_dossier
from robustly.reports.reading import read_run, run_of_evidence
from robustly.reports.run import RunEvidence
from robustly.settings import SettingsError
from robustly.threats import Threat

DOSSIER = "dossier.html"


def run_dossier(run: Path, out: Path | None, label: str | None, floors: Floors) -> int:
    """Write the dossier of an evaluation; returns the exit code.

    Args:
        run: a run folder, or a folder of evidence.
        out: file to write, `.md` or `.html`; None for `dossier.html` in the folder.
        label: name of the evaluation if the run has several.
        floors: least accuracies that the owner accepts.

    Raises:
        ValueError: there is no evaluation, it cannot be read, or the file has another suffix.
        OSError: the file cannot be written.
    """
    target = out or run / (DOSSIER if label is None else f"dossier_{label}.html")
    check_output(target)
    repair_evaluations(run)
    if label is not None and is_protocol(run, label):
        raise SettingsError(
            f"a dossier is on one threat, and {label} has several: name one of its evaluations with --as, such as "
            f"--as {_first_of(run, label)}; the dossier of the run has the numbers over all of them"
        )
    folder = evidence_folder(run, label)
    evidence = _evidence(run, folder)
    known: tuple[KnownAttack, ...] = ()
    if evidence.evaluation is not None:  # otherwise the dossier is refused below
        known = known_attacks(stored_threat(evidence.evaluation.threat, read_threat_arrays(folder)))
    written = write_dossier(dossier(evidence, known, floors), target)
    PlainConsole().print(f"dossier: {written.resolve().as_uri()}", soft_wrap=True, highlight=False, markup=False)
    return 0


def _first_of(run: Path, label: str) -> str:
    """Name of the first evaluation of a protocol."""
    return read_protocol(protocol_file(run, label)).columns[0].evaluation.removeprefix("evaluation_")


def _evidence(run: Path, folder: Path) -> RunEvidence:
    """The content of a run folder, or of a folder of evidence."""
    if folder != run:
        return read_run(run, folder)
    return run_of_evidence(read_evidence(folder), read_audit(folder))


def known_attacks(threat: Threat) -> tuple[KnownAttack, ...]:
    """All kinds of attacks and all presets of the package, and whether they are defined for a threat."""
    kinds = [_known(name, make(), threat, None) for name, make in ATTACK_KINDS.items()]
    presets = [_known(name, attack, threat, TITLES.get(name, name)) for name, attack in ATTACKS.items()]
    return (*kinds, *presets)


def _known(name: str, attack: Attack, threat: Threat, title: str | None) -> KnownAttack:
    words = (inspect.getdoc(type(attack)) or "").partition("\n")[0]
    return KnownAttack(
        name=name,
        words=words if title is None else f"{title}, a preset of {type(attack).__name__}",
        kind=type(attack).__name__,
        defined=attack.needs.accept(threat),
        needs=attack.needs.words(),
        settings=None if title is None else settings(attack),
    )
