"""Kinds of threats that an audit reads from texts alone."""

import pytest

from robustly.cli.audit_protocol import _kinds


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("linf:8/255", {"linf"}),
        ("linf:0.3@3f2a9c81d0e4", {"linf"}),
        ("rotation:3+linf:0.3@3f2a9c81d0e4", {"rotation", "linf"}),
        ("subspace:2@3f2a9c81d0e4&shift:1", {"subspace", "shift"}),
        ("affine:rotation=3,scale=0.1", {"rotation", "scale"}),
    ],
)
def test_kinds_are_read_without_the_stored_arrays(text: str, kinds: set[str]) -> None:
    assert _kinds(text) == kinds
