"""The result of an audit and the signature of an evaluation, as kept beside the evidence."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from robustly.evidence.costs import digest_of_costs
from robustly.evidence.records import EvidenceError, from_json, read_object, to_json
from robustly.evidence.schema import IMAGES, SUMMARY, TABLE
from robustly.files import file_sha256, write_json

AUDIT, SIGNATURE = "audit.json", "signature.json"
STATED = (
    "date and duration of the evaluation",
    "device and versions of the software",
    "precision of the searches",
    "batch size",
    "seed, where no repeated search depends on it",
    "name of a composed suite, and settings of the data that the test images do not depend on",
    "successes that a second pass did not confirm",
    "course of the training",
    "analysis of gradients and loss surfaces",
)
"""What an evaluation or its run states and an audit cannot derive; of the evaluation it checks only the form.

Names of model and data are stated too where there is no folder of a run."""


@dataclass(frozen=True)
class AuditRecord:
    """The result of an audit.

    Args:
        passed: whether every check passed.
        checks: number of checks.
        failed: names of the checks that failed.
        guarantee: the statement of a passed audit on the standing verdicts.
        notes: remarks, such as near-ties and settings that are not those of the run.
        created: time of the audit, in ISO format.
        evidence: SHA-256 of the summary that was audited.
        version: version of robustly that made the audit.
        costs: SHA-256 of the costs beside the evidence; empty without costs.
    """

    passed: bool
    checks: int
    failed: tuple[str, ...]
    guarantee: str
    notes: tuple[str, ...]
    created: str
    evidence: str
    version: str
    costs: str = ""


@dataclass(frozen=True)
class Signature:
    """A signature over the files of an evaluation.

    Args:
        algorithm: "ed25519".
        public_key: raw public key, in hexadecimal.
        created: time of the signature, in ISO format.
        files: SHA-256 of each signed file, by its path in the run's folder.
        signature: signature of the other fields, in hexadecimal.
    """

    algorithm: str
    public_key: str
    created: str
    files: Mapping[str, str]
    signature: str

    @property
    def fingerprint(self) -> str:
        """The first digits of the public key, for people."""
        return self.public_key[:16]


def write_audit(folder: Path, record: AuditRecord) -> None:
    """Write the result of an audit into the folder of its evaluation."""
    write_json(folder / AUDIT, to_json(record))


def read_audit(folder: Path) -> AuditRecord | None:
    """The result of the last audit of an evaluation; None without one, or if a file of the evidence changed since.

    Raises:
        EvidenceError: the file is damaged.
    """
    file = folder / AUDIT
    if not file.is_file():
        return None
    record = from_json(AuditRecord, read_object(file), str(file))
    named = read_object(folder / SUMMARY).get("files")
    if record.evidence != file_sha256(folder / SUMMARY) or not isinstance(named, dict):
        return None
    if record.costs != digest_of_costs(folder):
        return None
    parts = [folder / name for name in (TABLE, IMAGES)]
    return record if all(one.is_file() and file_sha256(one) == named.get(one.name) for one in parts) else None


def read_signature(folder: Path) -> Signature | None:
    """The signature of an evaluation, not verified; None without one.

    Raises:
        EvidenceError: the file is damaged.
    """
    file = folder / SIGNATURE
    if not file.is_file():
        return None
    found = from_json(Signature, read_object(file), str(file))
    if found.algorithm != "ed25519":
        raise EvidenceError(f"{file}: algorithm should be ed25519, but is {found.algorithm[:20]!r}")
    return found
