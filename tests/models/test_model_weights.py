"""Weights: round trips, foreign checkpoints, damaged files, and the hash."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from robustly.models import (
    ModelConfig,
    WeightsError,
    WideResNet,
    build_model,
    load_weights,
    read_weights,
    save_weights,
    weights_hash,
)

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)


def net(seed: int = 0, normalised: bool = False) -> nn.Module:
    mean, std = (MEAN, STD) if normalised else (None, None)
    return build_model(ModelConfig("resnet18", width=0.05, mean=mean, std=std), seed)


def test_round_trip(tmp_path: Path) -> None:
    model, other = net(0, True), net(1, True)
    save_weights(model, tmp_path / "w.safetensors")
    assert weights_hash(other) != weights_hash(model)
    load_weights(other, tmp_path / "w.safetensors")
    assert weights_hash(other) == weights_hash(model)
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_weights(net(0), tmp_path / "w.safetensors")
    before = (tmp_path / "w.safetensors").read_bytes()

    def fail(_descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("robustly.models.weights.os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_weights(net(1), tmp_path / "w.safetensors")
    assert (tmp_path / "w.safetensors").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.", "module._orig_mod.model."])
@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_checkpoints_of_others_load(tmp_path: Path, suffix: str, prefix: str, key: str | None) -> None:
    model = net(0)
    state: dict[str, Any] = {prefix + name: value for name, value in model.state_dict().items()}
    torch.save({key: state, "epoch": 3} if key else state, tmp_path / f"w{suffix}")
    other = net(1)
    load_weights(other, tmp_path / f"w{suffix}")
    assert weights_hash(other) == weights_hash(model)


def test_a_model_that_uses_such_a_prefix_keeps_it(tmp_path: Path) -> None:
    model = nn.Sequential()
    model.add_module("model", nn.Linear(2, 2))
    save_weights(model, tmp_path / "w.safetensors")
    nn.init.zeros_(model.get_parameter("model.weight"))
    load_weights(model, tmp_path / "w.safetensors")
    assert model.get_parameter("model.weight").abs().sum() > 0


def test_the_unused_block_of_trades_is_passed_over(tmp_path: Path) -> None:
    model, other = WideResNet(10, 1.0), WideResNet(10, 1.0)
    state = model.state_dict()
    extra = {name.replace("block1.", "sub_block1."): value for name, value in state.items() if "block1." in name}
    assert extra
    torch.save({**state, **extra}, tmp_path / "w.pt")
    load_weights(other, tmp_path / "w.pt")
    assert weights_hash(other) == weights_hash(model)
    torch.save({**net(0).state_dict(), "sub_block1.weight": torch.zeros(1)}, tmp_path / "r.pt")
    with pytest.raises(WeightsError, match=r"unexpected sub_block1\.weight"):
        load_weights(net(0), tmp_path / "r.pt")


def test_files_without_normalisation_keep_the_configured_one(tmp_path: Path) -> None:
    save_file(net(0).state_dict(), tmp_path / "w.safetensors")
    model = net(1, normalised=True)
    load_weights(model, tmp_path / "w.safetensors")
    assert model.state_dict()["normalize.mean"].flatten().tolist() == pytest.approx(MEAN)
    assert torch.equal(model.state_dict()["conv1.weight"], net(0).state_dict()["conv1.weight"])


def test_a_file_of_ours_says_that_there_was_no_normalisation(tmp_path: Path) -> None:
    save_weights(net(0), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="was trained without input normalisation"):
        load_weights(net(1, normalised=True), tmp_path / "w.safetensors")
    load_weights(net(1), tmp_path / "w.safetensors")


def test_another_normalisation_is_refused(tmp_path: Path) -> None:
    state = net(0, normalised=True).state_dict()
    state["normalize.mean"] = state["normalize.mean"] + 0.1
    save_weights(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"normalize\.mean.*configured with"):
        load_weights(net(0, normalised=True), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"unexpected normalize\.mean, normalize\.std"):
        load_weights(net(0), tmp_path / "w.safetensors")


def test_all_mismatches_are_in_one_sentence_and_nothing_is_loaded(tmp_path: Path) -> None:
    state = dict(net(0).state_dict())
    del state["conv1.weight"]
    state["surplus"] = torch.zeros(1)
    state["linear.bias"] = torch.zeros(7)
    save_weights(state, tmp_path / "w.safetensors")
    model = net(1)
    before = weights_hash(model)
    words = r"missing conv1\.weight; unexpected surplus; wrong shape: linear\.bias is \(7,\) instead of \(10,\)"
    with pytest.raises(WeightsError, match=words):
        load_weights(model, tmp_path / "w.safetensors")
    assert weights_hash(model) == before


def test_long_lists_are_cut(tmp_path: Path) -> None:
    save_weights({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"missing .* and \d+ more; unexpected a"):
        load_weights(net(0), tmp_path / "w.safetensors")


def test_two_tensors_for_one_name_are_refused(tmp_path: Path) -> None:
    state = net(0).state_dict()
    torch.save({**state, "module.conv1.weight": state["conv1.weight"]}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"two tensors for conv1\.weight"):
        load_weights(net(0), tmp_path / "w.pt")


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    state = net(0).state_dict()
    state["linear.bias"] = torch.full((10,), float("nan"))
    save_weights(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"linear\.bias .*not finite"):
        load_weights(net(0), tmp_path / "w.safetensors")


class Payload:
    """Would write a file when unpickled."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (Path(self.target),)  # type: ignore[return-value]


def test_code_in_a_file_is_never_run(tmp_path: Path) -> None:
    torch.save({"state_dict": Payload(str(tmp_path / "ran"))}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="never unpickled"):
        read_weights(tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "w.pt", weights_only=False)
    assert (tmp_path / "ran").exists()  # the payload works, so that the test above means something


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.999])
def test_truncated_files_are_refused(tmp_path: Path, name: str, kept: float) -> None:
    file = tmp_path / name
    if name == "w.pt":
        torch.save(net(0).state_dict(), file)
    else:
        save_weights(net(0), file)
    content = file.read_bytes()
    file.write_bytes(content[: int(kept if kept >= 1 else kept * len(content))])
    with pytest.raises(WeightsError, match=str(file)):
        read_weights(file)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth"])
def test_foreign_files_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8)
    with pytest.raises(WeightsError, match=name):
        read_weights(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (torch.zeros(3), "holds Tensor"),
        ({}, "holds dict"),
        ({"epoch": 3, "w": torch.zeros(1)}, "epoch hold no tensors"),
    ],
)
def test_files_of_something_else_are_refused(tmp_path: Path, content: object, words: str) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=words):
        read_weights(tmp_path / "w.pt")


def test_paths_are_checked(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file of weights"):
        read_weights(tmp_path / "none.pt")
    with pytest.raises(WeightsError, match="must end in it"):
        save_weights(net(0), tmp_path / "w.pt")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        save_weights(net(0), tmp_path / "none" / "w.safetensors")


def test_hash_ignores_format_and_memory_layout_but_not_values(tmp_path: Path) -> None:
    model = net(0)
    expected = weights_hash(model)
    channels_last = {
        name: value.to(memory_format=torch.channels_last) if value.dim() == 4 else value
        for name, value in model.state_dict().items()
    }
    torch.save(model.state_dict(), tmp_path / "w.pt")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "w.safetensors")
    assert weights_hash(read_weights(tmp_path / "w.pt")) == expected
    assert weights_hash(read_weights(tmp_path / "w.safetensors")) == expected
    assert weights_hash(dict(reversed(model.state_dict().items()))) == expected
    assert weights_hash(channels_last) == expected
    changed = dict(model.state_dict())
    changed["linear.bias"] = changed["linear.bias"].nextafter(torch.tensor(9.0))
    assert weights_hash(changed) != expected
    assert weights_hash({name: value.double() for name, value in model.state_dict().items()}) != expected
    assert weights_hash({f"{name}x": value for name, value in model.state_dict().items()}) != expected


def test_tied_and_empty_tensors_are_saved(tmp_path: Path) -> None:
    value = torch.rand(3)
    save_weights({"a": value, "b": value, "c": torch.zeros(0), "d": value[::2]}, tmp_path / "w.safetensors")
    assert weights_hash(read_weights(tmp_path / "w.safetensors")) == weights_hash(
        {"a": value, "b": value, "c": torch.zeros(0), "d": value[::2]}
    )


def test_the_same_weights_make_the_same_file(tmp_path):
    about = {str(place): "text" for place in range(9)}
    files = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for file in files:
        save_weights({"w": torch.arange(3.0)}, file, about)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert torch.equal(read_weights(files[0])["w"], torch.arange(3.0))
