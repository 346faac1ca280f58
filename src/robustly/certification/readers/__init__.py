"""Readers: networks of other formats as graphs of the verifier."""
