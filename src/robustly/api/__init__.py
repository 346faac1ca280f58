"""Results as notebooks and pipelines use them."""

from robustly.api.result import Result, evidence_folder, read_result

__all__ = ["Result", "evidence_folder", "read_result"]
