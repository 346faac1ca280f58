"""Class names in the order of a model's outputs, and data with some of its classes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from robustly.cli.recipes import read_recipe
from robustly.data import DataConfig, ImageData, fitted_to, load_splits, load_test, read_class_names
from robustly.experiments.configuration import build_config, with_absolute_paths
from robustly.experiments.overrides import apply_overrides

WORDS = ["tench", "great white shark", "English springer", "crane", "cassette player", "crane"]
IDS = ["n01440764", "n01484850", "n02102040", "n02012849", "n02979186", "n03126707"]
PAIRS = list(zip(IDS, WORDS, strict=True))


def made(classes: tuple[str, ...], labels: list[int] | None = None) -> ImageData:
    numbers = list(range(len(classes))) if labels is None else labels
    images = torch.zeros(len(numbers), 1, 2, 2, dtype=torch.uint8)
    return ImageData(images, torch.tensor(numbers), torch.arange(len(numbers)), classes, "made")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.txt", "\n".join(f"{number} {word}" for number, word in PAIRS) + "\n"),
        ("names.txt", "\ufeff" + "\r\n".join(f"{number}: {word}" for number, word in PAIRS)),
        ("imagenet_class_index.json", json.dumps({str(place): pair for place, pair in enumerate(PAIRS)})),
        ("list.json", json.dumps(PAIRS)),
    ],
)
def test_files_of_class_names(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    names = read_class_names(tmp_path / name)
    assert names == tuple(PAIRS)
    found = made((IDS[4], IDS[0], "English springer")).renumbered(names)
    assert found.labels.tolist() == [4, 0, 2]
    assert found.classes == (*WORDS[:3], "crane (n02012849)", WORDS[4], "crane (n03126707)")
    with pytest.raises(ValueError, match="class 'crane' is the name of the classes 3 and 5"):
        made(("crane",)).renumbered(names)


@pytest.mark.parametrize(
    "content",
    [
        {"id2label": {"1": "dog", "0": "tench, Tinca tinca"}, "model_type": "resnet"},
        {"dog": 1, "tench, Tinca tinca": 0},
        ["tench, Tinca tinca", "dog"],
        "{0: 'tench, Tinca tinca',\n 1: 'dog'}",
        "0: tench, Tinca tinca\n1: dog",
        "0 tench, Tinca tinca\n1 dog\n",
        '["tench, Tinca tinca", "dog"]',
    ],
)
def test_other_forms(tmp_path: Path, content: object) -> None:
    file = tmp_path / ("names.txt" if isinstance(content, str) else "config.json")
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    data = made(("dog", "Tinca_Tinca")).renumbered(read_class_names(file))
    assert (data.labels.tolist(), data.classes) == ([1, 0], ("tench, Tinca tinca", "dog"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "holds no class names"),
        ("a\n\nb", "entry of class 1 is ''"),
        ('{"0": "a", "2": "b"}', "keys are not the numbers 0 to 1"),
        ('{"id2label": 3}', "holds no class names"),
        ("[1, 2]", "entry of class 0 is '1', not a name"),
        ("[", "not readable JSON"),
        (b"\xff\xfe\x00", "in UTF-8"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: str | bytes, words: str) -> None:
    (tmp_path / "names").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=f"names.*{words}"):
        read_class_names(tmp_path / "names")
    with pytest.raises(ValueError, match="'nowhere' does not exist"):
        read_class_names("nowhere")


@settings(max_examples=50, deadline=None)
@given(st.permutations([f"class {place}" for place in range(9)]), st.integers(1, 9))
def test_renumbering_is_by_name(order: list[str], count: int) -> None:
    data = made(tuple(f"Class_{place}" for place in range(count)), [place % count for place in range(12)])
    found = data.renumbered(order)
    assert [order[label] for label in found.labels.tolist()] == [f"class {label}" for label in data.labels.tolist()]
    assert torch.equal(found.ids, data.ids)


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"its class tensh is not among the 6 .* did you mean 'tench'"):
        made(("tensh",)).renumbered(WORDS)
    with pytest.raises(ValueError, match=r"classes x, y are not among the 6 .*, such as tench, great"):
        made(("x", "y")).renumbered(WORDS)
    with pytest.raises(ValueError, match="classes tench, Tench have the same number"):
        made(("tench", "Tench")).renumbered(["tench"])


def test_a_number_is_kept_where_it_is_a_part_of_the_name(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("0 - zero\n1 - one")
    assert read_class_names(tmp_path / "names.txt") == (("0 - zero",), ("1 - one",))


def test_numbers_take_the_names_in_order() -> None:
    assert made(("0", "1")).renumbered(["a", "b", "c"]).classes == ("a", "b", "c")
    with pytest.raises(ValueError, match="has 2 classes, but 1 class names are given"):
        made(("0", "1")).renumbered(["a"])


def test_numbers_are_widened_and_names_are_not() -> None:
    wide = made(("0", "1")).widened(4)
    assert (wide.classes, wide.labels.tolist()) == (("0", "1", "2", "3"), [0, 1])
    with pytest.raises(ValueError, match="has 2 classes, more than 1"):
        made(("0", "1")).widened(1)
    for names in (("cat", "dog"), ("1", "2"), ("00", "01")):
        with pytest.raises(ValueError, match=r"classes= in Python, --data\.classes FILE"):
            made(names).widened(4)


def test_data_are_fitted_to_the_outputs_of_a_model() -> None:
    named = made(("cat", "dog"))
    assert fitted_to(named, 2) is named
    assert fitted_to(made(("0", "1")), 1000).num_classes == 1000
    with pytest.raises(ValueError, match=r"made: has 2 classes \(cat, dog\) but .* 10 outputs: .*data\.classes"):
        fitted_to(named, 10)
    with pytest.raises(ValueError, match="has 2 classes but the model has 1 output: choose"):
        fitted_to(named, 1)


def test_a_folder_with_some_classes_of_a_model(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"{number} {word}" for number, word in PAIRS))
    for place, name in enumerate((IDS[4], IDS[2], IDS[0])):
        (tmp_path / "images" / name).mkdir(parents=True)
        for row in range(6):
            Image.new("L", (4, 4), 40 * place + row).save(tmp_path / "images" / name / f"{row}.png")
    config = DataConfig(source=str(tmp_path / "images"), classes=str(names))
    splits = load_splits(config)
    assert splits.test.num_classes == 6
    for data in (splits.train, splits.validation, splits.test):
        grey = data.images[:, 0, 0, 0] // 40  # the class by its pixels
        assert torch.equal(torch.tensor([4, 2, 0])[grey.long()], data.labels)
    assert load_test(config).digest() == splits.test.digest()


def test_few_rows_of_many_classes_without_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 2, 2), np.uint8), labels=np.array([950, 0, 3, 999]))
    (tmp_path / "names.txt").write_text("\n".join(f"class {place}" for place in range(1000)))
    config = DataConfig(source=str(tmp_path / "a.npz"), classes=str(tmp_path / "names.txt"), evaluation_only=True)
    data = load_test(config)
    assert (data.labels.tolist(), data.classes[950]) == ([950, 0, 3, 999], "class 950")


def test_a_run_names_its_file_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("names.txt").write_text("a\nb")
    config = build_config(apply_overrides(read_recipe("mnist5k/pgd_at"), ["--data.classes", "names.txt"]))
    assert with_absolute_paths(config).data.classes == str(tmp_path.resolve() / "names.txt")
