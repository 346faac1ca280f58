"""Texts of threats as people type them: spaces, empty parts, several threats in one word, files."""

import os
from pathlib import Path

import pytest
import torch

from robustly.threats import Planes, ThreatError, allows_nothing, parse_threat
from robustly.threats.planes import write_planes


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("rotation:30 + linf:8/255", "rotation:30+linf:8/255"),
        (" Rotation : 30 & LINF : 0.1 ", "rotation:30&linf:0.1"),
        ("affine:rotation=30, shift=3 + linf:0.1", "affine:rotation=30,shift=3+linf:0.1"),
        ("linf:1e-2+rotation:1e+1", "linf:0.01+rotation:10"),
    ],
)
def test_spaces_and_capitals_do_not_matter(text: str, meaning: str) -> None:
    assert str(parse_threat(text)) == meaning


@pytest.mark.parametrize(
    ("text", "empty"),
    [
        ("rotation:0", True),
        ("linf:0", True),
        ("ace:1", True),
        ("patch:0", True),
        ("affine:rotation=0,shift=0", True),
        ("rotation:0+linf:0", True),
        ("rotation:0.001", False),
        ("ace:1.01", False),
        ("affine:rotation=0,shift=1", False),
        ("rotation:0+linf:1/255", False),
        ("corruption:1", False),
        ("mnist_c:1", False),
    ],
)
def test_threats_that_allow_no_change_are_known(text: str, empty: bool) -> None:
    assert allows_nothing(parse_threat(text)) is empty


def test_spaces_behind_the_name_of_a_file_do_not_belong_to_it(tmp_path: Path) -> None:
    file = write_planes(tmp_path / "a, l2:b+c.safetensors", Planes(torch.eye(5)[None, :3]))
    assert str(parse_threat(f"subspace:2@{file} + linf:0.1")).endswith("+linf:0.1")


@pytest.mark.parametrize(
    "text", ["rotation:30+", "+rotation:30", "rotation:30&", "rotation:30++shift:2", "rotation:30 && shift:2", "+"]
)
def test_empty_parts_are_named(text: str) -> None:
    with pytest.raises(ThreatError, match="has an empty part"):
        parse_threat(text)


@pytest.mark.parametrize(
    "text", ["linf:8/255 l2:0.5", "hue:0.5,brightness:0.2", "rotation:30;shift:3", "rotation:30 linf:0.1+hue:0.2"]
)
def test_several_threats_in_one_word_are_refused_with_both_ways_out(text: str) -> None:
    with pytest.raises(ThreatError, match=r"names several threats: join them by '\+'.*--threats"):
        parse_threat(text)


@pytest.mark.parametrize(
    ("text", "quantity"),
    [("patch:5x5", "side of a patch"), ("corruption:fog", "severity of corruptions"), ("rotation:x", "rotation")],
)
def test_a_size_that_is_no_number_is_called_by_its_name(text: str, quantity: str) -> None:
    with pytest.raises(ThreatError, match=quantity) as refused:
        parse_threat(text)
    assert "epsilon" not in str(refused.value)


def test_what_cannot_be_a_part_of_a_chain_is_refused_before_there_are_images() -> None:
    with pytest.raises(ThreatError, match="corruption:3 cannot be a part of a chain"):
        parse_threat("corruption:3+linf:0.1")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("rotation:10+affine:rotation=5,shift=1", "rotation"),
        ("affine:rotation=5,shift=1&linf:0.1&shift:2", "shift"),
        ("scale:0.1+hue:0.5+affine:scale=0.2", "scale"),
        ("affine:rotation=5,shear=3+shear:1", "shear"),
    ],
)
def test_a_part_of_an_affine_threat_may_not_be_a_part_of_the_chain_too(text: str, kind: str) -> None:
    with pytest.raises(
        ThreatError, match=rf"both {kind}:\S+ and affine:\S+ allow a {kind}: put its limit into one"
    ):
        parse_threat(text)


def test_an_affine_threat_and_other_parts_make_a_chain() -> None:
    text = "affine:rotation=5,shift=1+shear:3+scale:0.1+linf:0.1"
    assert str(parse_threat(text)) == text


@pytest.mark.parametrize("text", ["features:1@{}", "subspace:1@{}", "linf:0.1@{}"])
def test_files_without_an_end_and_pipes_are_not_read(text: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for file in ("/dev/zero", tmp_path / "pipe", tmp_path):
        with pytest.raises(ThreatError, match="not a regular file"):
            parse_threat(text.format(file))


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("l_inf:0.1", "linf"),
        ("L∞:0.1", "linf"),
        ("translation:3", "shift"),
        ("rotatoin:3", "rotation"),
        ("StAdv:1", "flow"),
        ("mnist-c:1", "mnist_c"),
    ],
)
def test_other_names_of_a_kind_are_told(text: str, meant: str) -> None:
    with pytest.raises(ThreatError, match=f"did you mean '{meant}'"):
        parse_threat(text)


def test_a_name_of_nothing_has_no_suggestion() -> None:
    with pytest.raises(ThreatError, match="unknown threat 'qqqq': allowed are linf"):
        parse_threat("qqqq:1")


def test_pi_rounded_up_is_not_taken_for_degrees() -> None:
    with pytest.raises(ThreatError, match=r"half a turn is 3\.14159"):
        parse_threat("hue:3.1416")
    with pytest.raises(ThreatError, match=r"30 degrees are 0\.5236 radians"):
        parse_threat("hue:30")
