"""Files of arrays: written whole, mapped without a copy, and refused when they are damaged."""

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.torch import save_file

from robustly.array_files import map_arrays, read_arrays, write_arrays

KINDS = ("?", "u1", "i1", "u2", "i4", "i8", "f2", "f4", "f8")
ARRAYS = st.dictionaries(
    st.text("abc.8", min_size=1, max_size=4),
    st.sampled_from(KINDS).flatmap(lambda kind: arrays(kind, array_shapes(min_dims=0, min_side=0))),
    max_size=4,
)


@given(values=ARRAYS, about=st.none() | st.dictionaries(st.text(min_size=1), st.text()))
def test_mapped_and_read_arrays_are_those_that_were_written(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, NDArray], about: dict[str, str] | None
) -> None:
    path = tmp_path_factory.mktemp("arrays") / "file.safetensors"
    write_arrays(path, values, about)
    for found in (map_arrays(path), read_arrays(path)):
        assert found.about == (about or {})
        assert found.arrays.keys() == values.keys() == load_file(path).keys()
        for name, array in values.items():
            assert found.arrays[name].dtype == array.dtype
            assert found.arrays[name].shape == array.shape
            assert found.arrays[name].tobytes() == np.ascontiguousarray(array).tobytes()


def test_changes_of_mapped_arrays_stay_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    write_arrays(path, {"a": np.arange(5)})
    before = path.read_bytes()
    mapped = map_arrays(path).arrays["a"]
    mapped[:] = 7
    assert mapped.tolist() == [7] * 5
    assert path.read_bytes() == before


def test_mapped_arrays_outlive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    write_arrays(path, {"a": np.arange(5)})
    mapped = map_arrays(path).arrays["a"]
    write_arrays(path, {"a": np.zeros(5)})
    path.unlink()
    assert mapped.tolist() == [0, 1, 2, 3, 4]
    assert torch.from_numpy(mapped).sum() == 10


@pytest.mark.skipif(os.name == "nt", reason="on Windows the arrays are read")
def test_a_mapped_array_is_a_view_of_the_file(tmp_path: Path) -> None:
    write_arrays(tmp_path / "file.safetensors", {"a": np.arange(5)})
    assert not map_arrays(tmp_path / "file.safetensors").arrays["a"].flags.owndata


def test_a_transposed_array_is_written_in_its_own_order(tmp_path: Path) -> None:
    values = np.arange(6).reshape(2, 3).T
    write_arrays(tmp_path / "file.safetensors", {"a": values})
    assert map_arrays(tmp_path / "file.safetensors").arrays["a"].tolist() == values.tolist()


@pytest.mark.parametrize("read", [map_arrays, read_arrays])
@pytest.mark.parametrize("damage", ["empty", "cut", "header", "offsets"])
def test_a_damaged_file_is_refused(tmp_path: Path, read, damage: str) -> None:
    path = tmp_path / "file.safetensors"
    write_arrays(path, {"a": np.arange(5)})
    content = path.read_bytes()
    beyond = json.dumps({"a": {"dtype": "I64", "shape": [9], "data_offsets": [0, 72]}}).encode()
    damaged = {
        "empty": b"",
        "cut": content[:-1],
        "header": b"\xff" * 8 + content[8:],
        "offsets": struct.pack("<Q", len(beyond)) + beyond + bytes(40),
    }
    path.write_bytes(damaged[damage])
    with pytest.raises((SafetensorError, OSError)):
        read(path)


def test_numbers_that_numpy_lacks_are_refused_by_name(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3, dtype=torch.bfloat16)}, tmp_path / "file.safetensors")
    with pytest.raises(SafetensorError, match=r"a has numbers of the kind BF16"):
        map_arrays(tmp_path / "file.safetensors")


def test_a_folder_that_is_missing_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        write_arrays(tmp_path / "missing" / "file.safetensors", {"a": np.arange(5)})
