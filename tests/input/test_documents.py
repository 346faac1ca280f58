"""Limits of YAML, JSON and CSV documents."""

from pathlib import Path

import pytest

from robustly.documents import DocumentError, parse_json, parse_yaml, read_csv, read_json, read_yaml

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
YAML = [
    (BOMB, "more than 100,000 values by line 5"),
    ("a: " + "[" * 100_000, "line 1 is nested deeper than 32 levels"),
    ("a: " + "{b: " * 40 + "1" + "}" * 40, "nested deeper than 32"),
    ("a: &x [1, *x]", "anchor 'x' contains itself in line 1"),
    ("a: &x {b: *x}", "anchor 'x' contains itself"),
    ("? [a, b]\n: 1", "key in line 1 is a list or mapping"),
    ("? {a: 1}\n: 1", "key in line 1 is a list or mapping"),
    ("x: 1\n1: 2", "key '1' in line 2 is not text"),
    ("null: 2", "key 'null' in line 1 is not text"),
    ("on: 2", "key 'on' in line 1 is not text"),
    ("a: 1\nb: 2\na: 3", "key 'a' is given twice, the second time in line 3"),
    ("a: {b: 1, b: 2}", "key 'b' is given twice"),
    ("a: .nan", "a should be a finite number"),
    ("a: [1, -.inf]", r"a\[1\] should be a finite number"),
    ("a: 1.0e+999", "a should be a finite number"),
    ("a: " + "9" * 30, "at most 64 bits"),
    ("a: " + "9" * 5000, "cannot be read"),
    ("a: !!python/name:os.system", "is not allowed: use plain values"),
    ("a: !!set {b}", "is not allowed"),
    ("a: !!timestamp 2001-13-45", "is not allowed"),
    ('a: "\\ud800"', "surrogate"),
    ("a: [", "not readable YAML"),
    ("a: \x1b[31m", "not readable YAML"),
    ("--- 1\n--- 2", "not readable YAML"),
    ("a: *nothing", "not readable YAML"),
]
JSON = [
    ("[" * 100_000, "nested deeper than 32"),
    ("[" * 40 + "]" * 40, "nested deeper than 32"),
    ('{"a": 1, "a": 2}', "key 'a' is given twice"),
    ('{"a": NaN}', "NaN"),
    ('{"a": 1e999}', "a should be a finite number"),
    ('{"a": -Infinity}', "Infinity"),
    ('{"a": ' + "9" * 30 + "}", "64 bits"),
    ('{"a": ' + "9" * 5000 + "}", "not readable JSON"),
    ('{"a": "\\ud800"}', "surrogate"),
    ('{"\\ud800": 1}', "surrogate"),
    ('{"a": ', "not readable JSON"),
    ("", "not readable JSON"),
]


@pytest.mark.parametrize(("text", "words"), YAML)
def test_yaml_beyond_a_limit_is_refused(text: str, words: str) -> None:
    with pytest.raises(DocumentError, match=words) as refused:
        parse_yaml(text, "file.yaml")
    assert str(refused.value).startswith("file.yaml")
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(("text", "words"), JSON)
def test_json_beyond_a_limit_is_refused(text: str, words: str) -> None:
    with pytest.raises(DocumentError, match=words) as refused:
        parse_json(text, "file.json")
    assert str(refused.value).startswith("file.json")


def test_plain_values_are_read(tmp_path: Path) -> None:
    text = "a: &x {b: [1, 2.5, yes, null]}\nc: *x\nday: 2024-01-31\nd: {<<: *x, e: 1}\n'1': {}\n"
    (tmp_path / "f.yaml").write_text(text)
    inner = {"b": [1, 2.5, True, None]}
    assert read_yaml(tmp_path / "f.yaml") == {
        "a": inner, "c": inner, "day": "2024-01-31", "d": {**inner, "e": 1}, "1": {},
    }  # fmt: skip
    (tmp_path / "f.json").write_text('{"a": [1, -2.5e3, "ü", null, true]}')
    assert read_json(tmp_path / "f.json") == {"a": [1, -2500.0, "ü", None, True]}
    (tmp_path / "f.csv").write_text('a,b\n1,"x,\ny"\n')
    assert read_csv(tmp_path / "f.csv") == [["a", "b"], ["1", "x,\ny"]]


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_bytes(b"a: 1\nb: \xff")
    with pytest.raises(DocumentError, match="line 2 is not UTF-8"):
        read_yaml(file)
    file.write_text("a: " + "x" * 300_000)
    with pytest.raises(DocumentError, match="larger than 262,144 bytes"):
        read_yaml(file)
    file.write_text("- 1\n- 2")
    with pytest.raises(DocumentError, match="has no settings"):
        read_yaml(file)
    with pytest.raises(DocumentError, match="is a folder"):
        read_yaml(tmp_path)
    with pytest.raises(DocumentError, match="does not exist"):
        read_json(tmp_path / "none.json")
    with pytest.raises(DocumentError, match="not a regular file"):
        read_json(Path("/dev/zero"))
    (tmp_path / "f.csv").write_text("a\n" + "x" * 200_000)
    with pytest.raises(DocumentError, match="not readable CSV"):
        read_csv(tmp_path / "f.csv")
