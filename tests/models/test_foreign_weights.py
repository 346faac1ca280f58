"""Weights as other programs leave them: names, nesting, foreign objects, formats, folders, and attacks."""

import argparse
import collections
import json
import os
import pathlib
import pickle
import shlex
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from robustly.models import ModelConfig, WeightsError, build_model, load_weights, read_weights
from robustly.models.layers import Normalize

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".t7", ".pth.tar", ".weights", "")


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 4))


def state(fill: float | None = None) -> dict[str, Tensor]:
    found = net().state_dict()
    return {name: value if fill is None else torch.full_like(value, fill) for name, value in found.items()}


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in tensors.items()}


def holds(model: nn.Module, tensors: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("legacy", [False, True])
def test_the_content_decides_not_the_name(tmp_path: Path, suffix: str, legacy: bool) -> None:
    file, tensors = tmp_path / f"w{suffix}", state()
    if suffix == ".safetensors":
        save_file(tensors, file)
    else:
        torch.save({"state_dict": tensors}, file, _use_new_zipfile_serialization=not legacy)
    model = net()
    load_weights(model, file)
    assert holds(model, tensors)
    if suffix != ".safetensors":
        save_file(tensors, file)  # safetensors under another name
        load_weights(model, file)


@pytest.mark.parametrize(
    "prefix", ["module.", "module.model.", "attacker.model.", "_orig_mod.module.", "net.", "a.b.backbone."]
)
def test_any_prefix_of_all_names_is_removed(tmp_path: Path, prefix: str) -> None:
    tensors = state()
    torch.save(under(prefix, tensors), tmp_path / "w.pt")
    model = net()
    load_weights(model, tmp_path / "w.pt")
    assert holds(model, tensors)


def test_wrappers_inside_of_names_are_removed(tmp_path: Path) -> None:
    model, tensors = nn.Sequential(), state()
    model.add_module("features", net())
    torch.save(under("features.module._orig_mod.", tensors), tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")
    assert holds(model.get_submodule("features"), tensors)


def test_a_network_behind_a_normalisation_takes_the_weights_of_the_network(tmp_path: Path) -> None:
    model, tensors = nn.Sequential(Normalize([0.5] * 3, [0.25] * 3), net()), state()
    torch.save(under("module.", tensors), tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")
    assert holds(model[1], tensors)
    del tensors["3.bias"]
    torch.save(tensors, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"missing 1\.3\.bias"):
        load_weights(model, tmp_path / "w.pt")


def test_two_different_networks_in_one_file_are_refused(tmp_path: Path) -> None:
    student, teacher = state(), state(0.5)
    torch.save(under("student.", student) | under("teacher.", teacher), tmp_path / "w.pt")
    model = net()
    with pytest.raises(WeightsError, match=r"weights_key (student|teacher), .*weights_key (student|teacher)"):
        load_weights(model, tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt", "teacher")
    assert holds(model, teacher)


def test_tensors_beside_the_network_are_named(tmp_path: Path) -> None:
    tensors = state()
    torch.save(under("model.", tensors) | {"loss.weight": torch.ones(4)}, tmp_path / "w.ckpt")
    model = net()
    with pytest.warns(UserWarning, match=r"loss\.weight are not of the model and are not used"):
        load_weights(model, tmp_path / "w.ckpt")
    assert holds(model, tensors)
    torch.save(tensors | {"loss.weight": torch.ones(4)}, tmp_path / "w.ckpt")
    with pytest.raises(WeightsError, match=r"unexpected loss\.weight"):
        load_weights(model, tmp_path / "w.ckpt")


def robustness(tensors: dict[str, Tensor], mean: float, std: float) -> dict[str, Any]:
    """A checkpoint of MadryLab's `robustness`: the network twice, and its normalisation twice."""
    layers = {
        f"module.{layer}.new_{name}": torch.full((3, 1, 1), value)
        for layer in ("normalizer", "attacker.normalize")
        for name, value in (("mean", mean), ("std", std))
    }
    return {
        "model": under("module.model.", tensors) | under("module.attacker.model.", tensors) | layers,
        "epoch": 3,
    }


def test_the_normalisation_of_robustness_is_compared(tmp_path: Path) -> None:
    tensors = state()
    torch.save(robustness(tensors, 0.5, 0.25), tmp_path / "w.pt")
    model = nn.Sequential(Normalize([0.5] * 3, [0.25] * 3), net())
    bare = net()
    with pytest.warns(UserWarning, match=r"--model\.mean '\[0\.5, 0\.5, 0\.5\]' --model\.std '\[0\.25"):
        load_weights(bare, tmp_path / "w.pt")
    assert holds(bare, tensors)
    ours = build_model(ModelConfig("resnet18", width=0.05), 0)
    torch.save(robustness(dict(ours.state_dict()), 0.5, 0.25), tmp_path / "r.pt")
    with pytest.raises(WeightsError, match=r"the model has none: use --model\.mean '\[0\.5"):
        load_weights(ours, tmp_path / "r.pt")
    same = build_model(ModelConfig("resnet18", width=0.05, mean=(0.5,) * 3, std=(0.25,) * 3), 1)
    load_weights(same, tmp_path / "r.pt")
    assert torch.equal(same.state_dict()["conv1.weight"], ours.state_dict()["conv1.weight"])
    other = build_model(ModelConfig("resnet18", width=0.05, mean=(0.4,) * 3, std=(0.25,) * 3), 1)
    with pytest.raises(WeightsError, match="another input normalisation than the model has"):
        load_weights(other, tmp_path / "r.pt")
    assert holds(model[1], model[1].state_dict())


@pytest.mark.parametrize(
    ("content", "key", "expected"),
    [
        ({"net": state(1), "acc": 0.9, "epoch": torch.tensor(3)}, None, 1),
        ({"generator": state(1), "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}, None, 1),
        ({"checkpoint": {"inner": {"weights": state(1)}}}, None, 1),
        ({"netG": state(1), "netD": state(2)}, "netD", 2),
        ({"model": state(1), "teacher": state(2)}, None, 1),
        ({"model": state(1), "teacher": state(2)}, "teacher", 2),
        ({"models": {"ema.v1": under("module.", state(3)), "last": state(1)}}, "models.ema.v1", 3),
        ({"state_dict": under("model.", state(1)) | under("model_ema.", state(3))}, "model_ema", 3),
        ({"state_dict": under("model.", state(1)) | under("model_ema.", state(3))}, "state_dict.model_ema", 3),
        ({"ema": state(3), "epoch": 1}, None, 3),
        ({"semantic": state(1), "thema": 3}, None, 1),
        ({"model": state(1), "ema": {"decay": torch.ones(3)}}, None, 1),
    ],
)
def test_state_dicts_are_found_or_chosen(tmp_path: Path, content: Any, key: str | None, expected: float) -> None:
    torch.save(content, tmp_path / "w.pt")
    model = net()
    load_weights(model, tmp_path / "w.pt", key)
    assert holds(model, state(expected))


@pytest.mark.parametrize("names", [("model", "ema"), ("state_dict", "state_dict_ema"), ("params", "params_ema")])
def test_averaged_weights_are_taken_and_the_choice_is_stated(tmp_path: Path, names: tuple[str, str]) -> None:
    torch.save({names[0]: state(1), names[1]: under("module.", state(3))}, tmp_path / "w.pt")
    model = net()
    with pytest.warns(UserWarning, match=f"averaged ones are taken; --model.weights_key {names[0]} takes"):
        load_weights(model, tmp_path / "w.pt")
    assert holds(model, state(3))
    load_weights(model, tmp_path / "w.pt", names[0])
    assert holds(model, state(1))


def test_wrong_keys_and_several_state_dicts_are_refused(tmp_path: Path) -> None:
    torch.save({"netG": state(1), "netD": state(2)}, tmp_path / "w.pt")
    with pytest.raises(
        WeightsError, match=r"several state dicts \(netG, netD\): choose one with --model.weights_key"
    ):
        read_weights(tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"nothing under the key 'netX'; it holds netG, netD"):
        read_weights(tmp_path / "w.pt", "netX")


class Settings:
    """A class of the user's own, in a file of weights."""

    def __init__(self) -> None:
        self.rate = 0.1


@pytest.mark.parametrize("legacy", [False, True])
def test_objects_beside_tensors_are_passed_over(tmp_path: Path, legacy: bool) -> None:
    content = {
        "state_dict": state(1),
        "args": argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath("/x")),
        "best": np.float64(0.9),
        "curve": np.arange(3),
        "dtype": np.dtype("float32"),
        "seen": collections.Counter("aab"),
        "own": Settings(),
        "reduce": torch.nn.functional.relu,
    }
    torch.save(content, tmp_path / "w.pth.tar", _use_new_zipfile_serialization=not legacy)
    before = set(torch.serialization.get_safe_globals())
    model = net()
    load_weights(model, tmp_path / "w.pth.tar")
    assert holds(model, state(1))
    assert set(torch.serialization.get_safe_globals()) == before  # the permission ends with the call


def test_the_weights_of_a_pickled_module_are_taken_without_its_code(tmp_path: Path) -> None:
    model, other = net(), net()
    model[1].running_mean.fill_(0.5)  # type: ignore[union-attr, operator]
    torch.save({"model": nn.DataParallel(model), "epoch": 3}, tmp_path / "w.pt")
    load_weights(other, tmp_path / "w.pt")
    assert holds(other, dict(model.state_dict()))


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.filterwarnings("ignore:.*weights_only")
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("legacy", [False, True])
def test_no_command_of_a_file_is_run(tmp_path: Path, suffix: str, legacy: bool) -> None:
    ran, file = tmp_path / "ran", tmp_path / f"w{suffix}"
    for payload in (Payload(os.system, f"touch {ran}"), Payload(eval, f"open({str(ran)!r}, 'w')")):
        content = {"state_dict": state(), "x": payload}
        torch.save(content, file, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(WeightsError) as refused:
            read_weights(file)
        assert not ran.exists()
        assert "weights_only=False" not in str(refused.value)  # no advice to run it
        file.write_bytes(pickle.dumps(content))
        with pytest.raises(WeightsError):
            read_weights(file)
        assert not ran.exists()
    torch.save({"x": Payload(os.system, f"touch {ran}")}, tmp_path / "live")
    torch.load(tmp_path / "live", weights_only=False)
    assert ran.exists()  # the payload works, so that the test above means something


def test_functions_that_do_no_harm_are_not_called_either(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    torch.save({"state_dict": state(1), "x": Payload(np.savetxt, str(ran), [1])}, tmp_path / "w.pt")
    model = net()
    load_weights(model, tmp_path / "w.pt")
    assert holds(model, state(1))
    assert not ran.exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pickle", "zip", "old"])
def test_what_cannot_be_read_safely_gives_the_line_that_converts_it(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "a w.pkl"
    if kind == "pickle":
        file.write_bytes(pickle.dumps({name: value.numpy() for name, value in state(1).items()}))
    else:
        content = {"state_dict": state(1), "x": collections.defaultdict(list, a=[1])}
        torch.save(content, file, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(WeightsError, match=r"never unpickled; if you trust its source.*: python -c ") as refused:
        read_weights(file)
    command = shlex.split(str(refused.value).partition("with: ")[2])
    subprocess.run([sys.executable, *command[1:]], check=True)
    model = net()
    load_weights(model, tmp_path / "a w.converted.pt")
    assert holds(model, state(1))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "damaged or not"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "download failed"),
        (b"\x1f\x8b\x08\x00", "unpack it first"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x93NUMPY\x01", "NumPy"),
        (b"\x00" * 100, "damaged or not"),
        (b"\x80\x02\x8a\nl\xfc", "converts?|never unpickled|damaged"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".bin", ".t7"])
def test_other_files_are_named_for_what_they_are(tmp_path: Path, content: bytes, words: str, suffix: str) -> None:
    (tmp_path / f"w{suffix}").write_bytes(content)
    with pytest.raises(WeightsError, match=words):
        read_weights(tmp_path / f"w{suffix}")


def test_archives_of_other_programs_are_refused(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "m.pt"))
    with pytest.raises(WeightsError, match=r"torchscript archive.*--trust-code"):
        read_weights(tmp_path / "m.pt")
    with zipfile.ZipFile(tmp_path / "m.pt2", "w") as archive:  # the members that torch.export.save writes first
        archive.writestr("m/models/model.json", "{}")
        archive.writestr("m/archive_format", "pt2")
    with pytest.raises(WeightsError, match=r"program of torch\.export"):
        read_weights(tmp_path / "m.pt2")
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    with pytest.raises(WeightsError, match="NumPy arrays"):
        read_weights(tmp_path / "a.npz")
    with tarfile.open(tmp_path / "w.tar", "w") as tape:
        tape.add(tmp_path / "a.npz", "a.npz")
    with pytest.raises(WeightsError, match=r"w\.tar: "):
        read_weights(tmp_path / "w.tar")


def sharded(folder: Path, tensors: dict[str, Tensor]) -> None:
    names = list(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:3], "model-00002-of-00002.safetensors": names[3:]}
    for file, own in parts.items():
        save_file({name: tensors[name] for name in own}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, own in parts.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_sharded_folders_are_read(tmp_path: Path) -> None:
    tensors = state(1)
    sharded(tmp_path, tensors)
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        model = net()
        load_weights(model, path)
        assert holds(model, tensors)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model-00002"):
        read_weights(tmp_path)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors"])
def test_an_index_names_no_files_elsewhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(WeightsError, match="no weight_map from names of weights to files beside it"):
        read_weights(tmp_path)


def test_folders_give_their_weights_or_a_sentence(tmp_path: Path) -> None:
    tensors = state(1)
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    save_file(state(2), run / "checkpoints" / "best.safetensors")
    assert torch.equal(read_weights(run)["3.bias"], state(2)["3.bias"])
    save_file(tensors, run / "model.safetensors")
    assert torch.equal(read_weights(run)["3.bias"], tensors["3.bias"])
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(WeightsError, match="a folder with none as files of weights"):
        read_weights(other)
    save_file(tensors, other / "a.safetensors")
    assert torch.equal(read_weights(other)["3.bias"], tensors["3.bias"])
    save_file(tensors, other / "b.safetensors")
    with pytest.raises(WeightsError, match=r"a\.safetensors, b\.safetensors"):
        read_weights(other)
