"""Kinds of threats that an audit reads from texts alone."""

import pytest

from robustly.cli.protocol_choice import kinds_of_text, untrained
from robustly.threats import parse_threat


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("linf:8/255", {"linf"}),
        ("linf:0.3@3f2a9c81d0e4", {"linf"}),
        ("rotation:3+linf:0.3@3f2a9c81d0e4", {"rotation", "linf"}),
        ("subspace:2@3f2a9c81d0e4&shift:1", {"subspace", "shift"}),
        ("affine:rotation=3,scale=0.1", {"rotation", "scale"}),
        ("affine:rotation=3,scale=0.1+linf:0.3@3f2a9c81d0e4", {"rotation", "scale", "linf"}),
    ],
)
def test_kinds_are_read_without_the_stored_arrays(text: str, kinds: set[str]) -> None:
    assert kinds_of_text(text) == kinds


def test_the_threat_of_the_training_is_not_among_those_that_are_left_out() -> None:
    every = [parse_threat(text) for text in ("linf:0.3", "l2:2", "affine:rotation=30,shift=3", "patch:50")]
    tested, left_out = untrained(every, ["linf:0.3", "rotation:10", "shift:1"], (1, 28, 28))
    assert [str(one) for one in tested] == ["l2:2"]
    same, undefined = left_out
    assert same == "affine:rotation=30,shift=3: the network was trained on threats of this kind"
    assert undefined.startswith("patch:50: ")
    # another size of the same kind is left out, with the reason
    tested, left_out = untrained(every[:2], ["linf:0.1"], (1, 28, 28))
    assert [str(one) for one in tested] == ["l2:2"]
    assert left_out == ("linf:0.3: the network was trained on threats of this kind",)
