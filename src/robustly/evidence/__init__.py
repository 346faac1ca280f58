"""Evidence of an evaluation: one typed schema of rows, stored images and summary; needs no PyTorch."""

from robustly.evidence.images import EightBitImages, EvidenceImages, StoredImages
from robustly.evidence.records import EvidenceError
from robustly.evidence.schema import SCHEMA, EvidenceTable, Verdict
from robustly.evidence.storage import Evidence, read_evidence, read_summary, write_evidence
from robustly.evidence.summary import Finding, Summary

__all__ = [
    "SCHEMA",
    "EightBitImages",
    "Evidence",
    "EvidenceError",
    "EvidenceImages",
    "EvidenceTable",
    "Finding",
    "StoredImages",
    "Summary",
    "Verdict",
    "read_evidence",
    "read_summary",
    "write_evidence",
]
