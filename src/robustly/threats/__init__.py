"""Threats: what an adversary may do to an input."""

from robustly.threats.lp import NORMS, Norm, ThreatError, ThreatModel, fraction_text, parse_epsilon, parse_threat

__all__ = ["NORMS", "Norm", "ThreatError", "ThreatModel", "fraction_text", "parse_epsilon", "parse_threat"]
