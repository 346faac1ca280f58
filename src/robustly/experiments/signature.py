"""Sign the files of an evaluation with Ed25519 (RFC 8032), and verify the signature."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from robustly.evaluation import Check
from robustly.evidence import EvidenceError
from robustly.evidence.audit_record import SIGNATURE, Signature, read_signature
from robustly.evidence.costs import COSTS, PAIR_IMAGES, PAIRS
from robustly.evidence.domains import DOMAINS
from robustly.evidence.provenance import now
from robustly.evidence.records import to_json
from robustly.evidence.schema import IMAGES, SUMMARY, TABLE
from robustly.experiments.run_folder import CONFIG, RunError
from robustly.files import file_sha256, write_json
from robustly.training.engine.loop import FINAL

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_NAME = "signed by the given key"


def sign(run: Path, evaluation: Path, key: Path) -> Signature:
    """Sign evidence, settings and weights of a run; writes `signature.json` beside the evidence.

    Args:
        run: folder of the run.
        evaluation: folder of the evaluation in it.
        key: file of an Ed25519 private key without a password, as PEM or in the format of OpenSSH.

    Raises:
        RunError: `cryptography` is not installed, or the file has no such key.
        OSError: a file cannot be read or written.
    """
    secret = read_private_key(key)
    files = {_place(run, file): file_sha256(file) for file in _files(run, evaluation)}
    public = secret.public_key().public_bytes_raw().hex()
    unsigned = Signature("ed25519", public, now(), files, "")
    signed = Signature("ed25519", public, unsigned.created, files, secret.sign(message(unsigned)).hex())
    write_json(evaluation / SIGNATURE, to_json(signed))
    return signed


def signature_check(run: Path, evaluation: Path, key: Path) -> Check:
    """Check that the files of an evaluation are those that the owner of a public key signed.

    Args:
        run: folder of the run.
        evaluation: folder of the evaluation in it.
        key: file of an Ed25519 public key, as PEM or in the format of OpenSSH.

    Raises:
        RunError: `cryptography` is not installed, or the file has no such key.
        OSError: a file cannot be read.
    """
    public = read_public_key(key)
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415

    try:
        signed = read_signature(evaluation)
    except EvidenceError as error:
        return Check(_NAME, str(error))
    if signed is None:
        return Check(_NAME, f"{evaluation} has no {SIGNATURE}")
    if public.public_bytes_raw().hex() != signed.public_key:
        return Check(_NAME, f"it is signed by another key, {signed.fingerprint}...")
    try:
        public.verify(bytes.fromhex(signed.signature), message(signed))
    except (InvalidSignature, ValueError):
        return Check(_NAME, "the signature is not of these hashes")
    present = {_place(run, file): file_sha256(file) for file in _files(run, evaluation)}
    changed = sorted(name for name in {**present, **signed.files} if present.get(name) != signed.files.get(name))
    return Check(_NAME, f"changed after the signature: {', '.join(changed)}" if changed else "")


def message(signature: Signature) -> bytes:
    """The signed bytes: all fields but the signature, as JSON with sorted keys and without spaces."""
    fields = {key: value for key, value in to_json(signature).items() if key != "signature"}
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def read_private_key(file: Path) -> "Ed25519PrivateKey":
    """An Ed25519 private key.

    Raises:
        RunError: `cryptography` is not installed, or the file has no such key, or it has a password.
    """
    _require_cryptography()
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415

    content = file.read_bytes()
    openssh = content.startswith(b"-----BEGIN OPENSSH")
    try:
        read = serialization.load_ssh_private_key if openssh else serialization.load_pem_private_key
        key = read(content, password=None)
    except (ValueError, TypeError) as error:
        raise RunError(f"{file} is not an Ed25519 private key without a password ({error})") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise RunError(f"{file} has a key of another kind: --sign takes an Ed25519 private key")
    return key


def read_public_key(file: Path) -> "Ed25519PublicKey":
    """An Ed25519 public key.

    Raises:
        RunError: `cryptography` is not installed, or the file has no such key.
    """
    _require_cryptography()
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415

    content = file.read_bytes()
    openssh = content.startswith(b"ssh-")
    try:
        read = serialization.load_ssh_public_key if openssh else serialization.load_pem_public_key
        key = read(content)
    except ValueError as error:
        raise RunError(f"{file} is not an Ed25519 public key ({error})") from None
    if not isinstance(key, Ed25519PublicKey):
        raise RunError(f"{file} has a key of another kind: --verify takes an Ed25519 public key")
    return key


def _require_cryptography() -> None:
    if find_spec("cryptography") is None:
        raise RunError("signatures need cryptography: pip install 'robustly[sign]'")


def _files(run: Path, evaluation: Path) -> list[Path]:
    """The signed files that exist."""
    names = [evaluation / name for name in (SUMMARY, TABLE, IMAGES, COSTS, PAIRS, PAIR_IMAGES, DOMAINS)]
    return [file for file in (*names, run / CONFIG, run / FINAL) if file.is_file()]


def _place(run: Path, file: Path) -> str:
    return file.relative_to(run).as_posix()
