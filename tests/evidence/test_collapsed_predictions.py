"""Evidence of networks that predict one class for every image."""

import numpy as np
import pytest

from robustly.evidence.collapse import collapse_words, collapsed
from robustly.evidence.schema import ExampleColumns


def examples(predicted, labels):
    numbers = [np.array(values, np.int64) for values in (np.arange(len(labels)), labels, predicted)]
    return ExampleColumns(*numbers, clean_margin=np.zeros(len(labels), np.float32))


@pytest.mark.parametrize(
    ("predicted", "labels", "found"),
    [
        ([2, 2, 2], [0, 1, 2], 2),
        ([2, 2, 2], [2, 2, 2], None),
        ([2, 2, 1], [0, 1, 2], None),
        ([], [], None),
        ([-1, -1, -1], [0, 1, 2], -1),
        ([-1, 0, 0], [0, 1, 2], None),
        ([-1, 5, 5], [0, 1, 5], None),
        ([3, 3], [-1, 0], 3),
        ([2**62, 2**62], [0, 1], 2**62),
    ],
)
def test_one_predicted_class_of_several_labels_is_a_collapse(predicted, labels, found):
    assert collapsed(examples(predicted, labels)) == found


def test_the_sentence_names_the_class_or_its_number():
    names = ("night", "day")
    assert "the class day: the network has collapsed" in collapse_words(examples([1, 1], [0, 1]), names)
    assert "the class 7: the" in collapse_words(examples([7, 7], [0, 1]), names)
    assert "the class -1: the" in collapse_words(examples([-1, -1], [0, 1]), names)
    assert collapse_words(examples([0, 1], [0, 1]), names) == ""
