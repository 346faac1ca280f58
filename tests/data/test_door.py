"""Everything that people have becomes the same 8-bit images, labels and names; the rest is one sentence."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled_pictures import COUNT, FORMS, IMAGES, LABELS, NAMES, PIXELS, Pictures, check
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Subset,
    TensorDataset,
)

from robustly.data import DataConfig, as_image_data, load_test

INTEGERS = [
    torch.int8,
    torch.uint8,
    torch.int16,
    torch.uint16,
    torch.int32,
    torch.uint32,
    torch.int64,
    torch.uint64,
]
LAYOUTS: dict[str, Callable[[Tensor], Any]] = {
    "NCHW": lambda x: x,
    "NHWC": lambda x: x.permute(0, 2, 3, 1),
    "NCHW numpy": lambda x: x.numpy(),
    "NHWC numpy": lambda x: x.permute(0, 2, 3, 1).numpy(),
    "reversed": lambda x: x.flip(0).numpy()[::-1],
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "list": list,
    "list of numpy HWC": lambda x: [image.permute(1, 2, 0).numpy() for image in x],
}
VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "uint8": lambda x: x,
    "int64": lambda x: x.to(torch.int64),
    "float16": lambda x: (x.double() / 255).to(torch.float16),
    "float32": lambda x: x.float() / 255,
    "float64": lambda x: x.double() / 255,
    "multiplied": lambda x: x.float() * (1 / 255),
}
LABEL_FORMS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda y: y,
    "column": lambda y: y[:, None],
    "numpy": lambda y: y.numpy(),
    "big-endian": lambda y: y.to(torch.int64).numpy().astype(">i4"),
    "list": lambda y: y.tolist(),
    "list of tensors": list,
    "list of numpy": lambda y: list(y.numpy()),
    "list of arrays of one": lambda y: list(y.numpy()[:, None]),
    "objects": lambda y: y.numpy().astype(object),
}


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(sorted(LAYOUTS)),
    st.sampled_from(sorted(VALUES)),
    st.sampled_from(sorted(LABEL_FORMS)),
    st.sampled_from(INTEGERS),
    st.sampled_from([tuple, list]),
)
def test_arrays_and_tensors_of_any_type_and_layout(
    layout: str, values: str, form: str, integer: torch.dtype, pair: Callable[[Any], Any]
) -> None:
    given = VALUES[values](PIXELS.clone())
    before, numbers = given.clone(), LABELS.to(integer)
    data = as_image_data(pair([LAYOUTS[layout](given), LABEL_FORMS[form](numbers)]))
    check(data)
    assert torch.equal(given, before)  # numbers of 64 bits need no conversion, so that a copy is easily forgotten
    assert torch.equal(numbers, LABELS.to(integer))
    assert (data.classes, data.source, data.ids.tolist()) == (("0", "1", "2", "3"), "memory", list(range(COUNT)))


def test_other_forms_of_pairs() -> None:
    learned = (PIXELS.float() / 255).requires_grad_()
    check(as_image_data((learned, LABELS)))
    assert learned.grad is None
    check(as_image_data((IMAGES, LABELS.tolist())))
    check(as_image_data({"image": PIXELS.numpy(), "label": LABELS.numpy()}))
    check(as_image_data(list(zip(IMAGES, LABELS.tolist(), strict=True))))
    check(as_image_data(TensorDataset(PIXELS.float() / 255, LABELS)))
    grey = PIXELS[:, 0]
    check(as_image_data((grey, LABELS)), grey[:, None])
    binary = as_image_data((PIXELS, LABELS > 1))
    assert (binary.num_classes, binary.labels.tolist()) == (2, (LABELS > 1).long().tolist())
    check(as_image_data(((PIXELS.numpy() / 255).astype(">f4"), LABELS)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tensors_on_another_device_stay_there() -> None:
    data = as_image_data(((PIXELS.float() / 255).cuda(), LABELS))
    assert data.images.is_cuda
    assert data.labels.is_cuda
    check(data.to("cpu"))


def test_image_data_are_returned_as_they_are() -> None:
    data = as_image_data((PIXELS, LABELS))
    assert as_image_data(data) is data
    assert as_image_data(data, limit=8).ids.tolist() == list(range(8))
    assert as_image_data(data, classes=NAMES, source="farm").classes == tuple(NAMES)


def test_rounding_only_on_demand() -> None:
    off = (PIXELS.float() + 0.2).clamp(max=255) / 255
    with pytest.raises(ValueError, match=r"0\.2 grey levels off .* round_to_8_bits=True"):
        as_image_data((off, LABELS))
    check(as_image_data((off, LABELS), round_to_8_bits=True))
    check(as_image_data(Pictures(lambda place: off[place]), round_to_8_bits=True))
    with pytest.raises(ValueError, match="round_to_8_bits=True"):
        as_image_data(((PIXELS / 255).to(torch.bfloat16), LABELS))


def test_class_names_of_data_sets() -> None:
    data = Pictures(FORMS["uint8"])
    data.classes = NAMES  # type: ignore[attr-defined]
    for wrapped in (data, Subset(data, range(COUNT)), DataLoader(Subset(data, range(COUNT)), batch_size=4)):
        assert as_image_data(wrapped).classes == tuple(NAMES)
    found = as_image_data(data, classes=["cat", *reversed(NAMES)])
    check(found, labels=4 - LABELS)
    with pytest.raises(ValueError, match="classes ant, bee are not among the 2 class names"):
        as_image_data(data, classes=["dog", "cow"])


def test_class_names_of_arrays(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    for classes in (NAMES, tmp_path / "names.txt", str(tmp_path / "names.txt"), dict(enumerate(NAMES))):
        assert as_image_data((PIXELS, LABELS), classes=classes).classes == tuple(NAMES)
    words = [NAMES[label] for label in LABELS.tolist()]
    check(as_image_data((PIXELS, np.array(words)), classes=NAMES))
    check(as_image_data(Pictures(FORMS["uint8"], words), classes=["x", *NAMES]), labels=LABELS + 1)
    with pytest.raises(ValueError, match=r"labels are text, such as 'ant'.*classes=\[\.\.\.\]"):
        as_image_data((PIXELS, words))
    with pytest.raises(ValueError, match="label 'dog' is not one of the class names"):
        as_image_data((PIXELS, words), classes=NAMES[:3])


def test_a_few_examples_of_many_classes() -> None:
    data = as_image_data((PIXELS[:3], [950, 3, 71]))
    assert data.num_classes == 951
    assert data.widened(1000).labels.tolist() == [950, 3, 71]
    with pytest.raises(ValueError, match="holds the label 100000 but"):
        as_image_data((PIXELS[:3], [100_000, 3, 71]))


def test_labels_from_one_are_named() -> None:
    with pytest.warns(UserWarning, match="memory: the smallest label is 1"):
        as_image_data((PIXELS, LABELS + 1))


def test_images_of_different_sizes_need_a_size() -> None:
    data = Pictures(lambda place: IMAGES[place].resize((6 + place % 2, 5)))
    with pytest.raises(ValueError, match="Pictures: image 1: is 5x7 pixels but image 0 is 5x6: set image_size"):
        as_image_data(data)
    with pytest.raises(ValueError, match="image_size"):
        as_image_data(DataLoader(Pictures(lambda place: PIXELS[place, :, : 3 + place % 2]), batch_size=4))
    assert as_image_data(data, image_size=4).shape == (3, 4, 4)
    mixed = Pictures(lambda place: IMAGES[place].convert("L" if place % 2 else "RGB"))
    with pytest.raises(ValueError, match="image 1: has 1 channels but image 0 has 3: set channels"):
        as_image_data(mixed)
    assert as_image_data(mixed, channels=1).shape == (1, 5, 6)
    assert as_image_data((PIXELS, LABELS), image_size=4).shape == (3, 4, 4)


FLOATS = PIXELS.float() / 255
NAN = FLOATS.clone()
NAN[[3, 5], 0, 0, 0] = float("nan")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (((FLOATS - 0.5) / 0.25, LABELS), r"leave Normalize out .* robustly\.wrap\(model, mean="),
        (Pictures(lambda place: (FLOATS[place] - 0.5) / 0.25), r"Pictures: .*leave Normalize out"),
        ((FLOATS * 255, LABELS), "did you mean to divide by 255"),
        ((NAN, LABELS), "2 of 24 images hold NaN, the first is image 3"),
        ((PIXELS, LABELS.float()), r"labels are float32 of shape \(24,\): give integers"),
        ((PIXELS, torch.eye(24)), r"one-hot labels give labels\.argmax\(1\)"),
        ((PIXELS, LABELS - 1), "holds the label -1"),
        ((PIXELS, LABELS[:5]), "holds 24 images but 5 labels"),
        ((PIXELS, None), "labels"),
        ((PIXELS, 3), "labels have the shape"),
        ((PIXELS, np.array([2**63] * COUNT, np.uint64)), "holds the label 9223372036854775808"),
        ((PIXELS > 3, LABELS), "images are torch.bool"),
        ((PIXELS.to(torch.int16) * 3, LABELS), "images are torch.int16 from 0 to 765"),
        (((PIXELS > 9).int(), LABELS), "images are torch.int32 from 0 to 1"),
        ((PIXELS.flatten(1), LABELS), r"shape \(24, 90\): use \(N, H, W\)"),
        ((np.zeros((24, 3, 9, 3), np.uint8), LABELS), "first or last, which is not clear"),
        ((FLOATS.to_sparse(), LABELS), "images are a sparse, quantised or meta tensor"),
        (Pictures(FORMS["uint8"], torch.eye(24)), r"one-hot labels give labels\.argmax\(1\)"),
        (Pictures(FORMS["uint8"], [{"boxes": 1}] * 24), "labels are object"),
        (TensorDataset(PIXELS), "its items are tuple of 1 values: they should be pairs"),
        ((PIXELS[:0], LABELS[:0]), "is empty"),
        ((PIXELS, LABELS, LABELS), r"is a tuple of 3 values: give \(x, y\)"),
        (([object()] * 24, LABELS), "image 0 is of the type object"),
        (PIXELS, "data are of the type Tensor: give ImageData"),
        (7, "data are of the type int: give ImageData"),
        (None, "data are of the type NoneType"),
        ({"a": 1}, "data are of the type dict"),
        ([], "is empty"),
        (Pictures(FORMS["uint8"], []), "Pictures: is empty"),
        (list(PIXELS), "is a list of 24 values: give"),
        (Pictures(lambda place: 1 / 0), r"Pictures: item 0 cannot be read \(ZeroDivisionError: division by zero\)"),
        ([{"picture": PIXELS[0], "label": 1}], "has no image: its keys are picture, label, not"),
        ([(Image.new("I;16", (4, 4)), 0)], "image 0: it has more than 8 bits a channel"),
        (DataLoader(Pictures(FORMS["uint8"]), 4, collate_fn=lambda items: items[0]), "makes 1 examples of 24"),
        ("nowhere", "'nowhere' is not a file or folder"),
    ],
)  # fmt: skip
def test_what_is_refused(data: Any, words: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        as_image_data(data)


def test_paths(tmp_path: Path) -> None:
    for place, image in enumerate(IMAGES):
        (tmp_path / "images" / NAMES[place % 4]).mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "images" / NAMES[place % 4] / f"{place:02}.png")
    order = LABELS.argsort(stable=True)
    data = as_image_data(tmp_path / "images")
    check(data, PIXELS[order], LABELS[order])
    assert as_image_data(str(tmp_path / "images"), limit=8).labels.bincount().tolist() == [2] * 4
    wide = as_image_data(tmp_path / "images", classes=["x", *NAMES], source="farm")
    assert (wide.source, wide.labels.tolist()) == ("farm", (LABELS[order] + 1).tolist())
    files = [str(tmp_path / "images" / NAMES[place % 4] / f"{place:02}.png") for place in range(COUNT)]
    check(as_image_data((files, LABELS)))
    check(as_image_data(list(zip(files, LABELS.tolist(), strict=True))))


def test_the_shipped_digits_are_the_test_digits() -> None:
    assert as_image_data("mnist5k").digest() == load_test(DataConfig()).digest()


def test_no_warning_without_cause() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_image_data((PIXELS[:2], [3, 5]))
        as_image_data(DataLoader(Pictures(FORMS["floats"]), batch_size=3, shuffle=True))
