"""Lists of instances: headers, places of files, names of networks, and wrong rows."""

from pathlib import Path

import pytest

from robustly.certification.instances import InstancesError, read_instances


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("onnx/a.onnx.gz", "vnnlib/p.vnnlib.gz", "b.onnx", "q.vnnlib"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def read(folder: Path, text: str) -> list[tuple[object, ...]]:
    (folder / "instances.csv").write_text(text)
    return [
        (
            one.network and one.network.relative_to(folder).as_posix(),
            one.property_ and one.property_.relative_to(folder).as_posix(),
            one.timeout,
            one.expected,
        )
        for one in read_instances(folder / "instances.csv")
    ]


def test_with_and_without_header(folder: Path) -> None:
    rows = "onnx/a.onnx,vnnlib/p.vnnlib,116\n./b.onnx , q.vnnlib.gz,5.5\n\n"
    expected = [("onnx/a.onnx.gz", "vnnlib/p.vnnlib.gz", 116.0, ""), ("b.onnx", "q.vnnlib", 5.5, "")]
    assert read(folder, rows) == expected
    assert read(folder, "\ufeffonnx,vnnlib,timeout\n" + rows) == expected


def test_columns_by_name(folder: Path) -> None:
    text = "expected,timeout_s,vnnlib,onnx\nsat,7,p.vnnlib,a.onnx\nno idea,,q.vnnlib,b.onnx\n"
    assert read(folder, text) == [
        ("onnx/a.onnx.gz", "vnnlib/p.vnnlib.gz", 7.0, "sat"),
        ("b.onnx", "q.vnnlib", None, ""),
    ]


def test_named_networks_missing_files_and_repeated_rows(folder: Path) -> None:
    text = "f:onnx/a.onnx,q.vnnlib,1\nb.onnx,none.vnnlib,1\nf:b.onnx;g:b.onnx,q.vnnlib,1\nb.onnx,none.vnnlib,2\n"
    assert read(folder, text) == [
        ("onnx/a.onnx.gz", "q.vnnlib", 1.0, ""),
        ("b.onnx", None, 1.0, ""),
        (None, "q.vnnlib", 1.0, ""),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no instances"),
        ("onnx,vnnlib,timeout\n", "has no instances"),
        ("b.onnx,q.vnnlib,soon\n", "line 1: the time limit 'soon' is not a positive number"),
        ("b.onnx,q.vnnlib,1\nb.onnx,q.vnnlib,-3\n", "line 2: the time limit '-3'"),
        ("b.onnx\n", "line 1: expected onnx,vnnlib,timeout, found 'b.onnx'"),
    ],
)
def test_wrong_rows(folder: Path, text: str, message: str) -> None:
    with pytest.raises(InstancesError, match=r"instances\.csv") as refused:
        read(folder, text)
    assert message in str(refused.value)


def test_a_binary_file(folder: Path) -> None:
    (folder / "instances.csv").write_bytes(b"\xff\x00\x00")
    with pytest.raises(InstancesError, match="is not a table in CSV"):
        read_instances(folder / "instances.csv")


def test_the_shared_lists_are_complete(shared_data: Path) -> None:
    counts = {}
    for file in sorted((shared_data / "verify").glob("*/instances.csv")):
        instances = read_instances(file)
        assert all(one.network and one.property_ and one.expected for one in instances)
        counts[file.parent.name] = len(instances)
    assert counts == {
        "acasxu": 186,
        "mnist_fc": 30,
        "reach_prob_density": 36,
        "rl_benchmarks": 200,
        "verivital": 60,
    }
