"""Networks that predict one class for every image, or are right no more often than guesses."""

from collections.abc import Sequence

import numpy as np

from robustly.evidence.provenance import class_name
from robustly.evidence.schema import ExampleColumns
from robustly.statistics import binomial_tail, collapsed_class

_FEWEST = 30
"""Images below which chance explains too much."""


def collapsed(examples: ExampleColumns) -> int | None:
    """The class that every clean image is predicted as while the labels differ; None if there is no such class.

    Ids of classes are compared as they stand: a damaged file may hold any number.

    Args:
        examples: labels and predictions; without examples, there is no such class.
    """
    ids, places = np.unique([examples.clean_prediction, examples.label], return_inverse=True)
    predicted, labels = (np.bincount(row).tolist() for row in places.reshape(2, -1))
    found = collapsed_class(predicted, labels)
    return None if found is None else int(ids[found])


def collapse_words(examples: ExampleColumns, classes: Sequence[str]) -> str:
    """A warning if all clean images are predicted as one class while their labels differ, or by chance; else empty.

    Args:
        examples: labels and predictions.
        classes: class names.
    """
    found = collapsed(examples)
    if found is None:
        return _chance_words(examples, len(classes))
    return (
        f"Every image is predicted as the class {class_name(classes, found)}: the network has collapsed. Its "
        "accuracies are the share of that class among the images, and attacks have nothing to change."
    )


def _chance_words(examples: ExampleColumns, classes: int) -> str:
    hits, count = int(examples.correct.sum()), len(examples.label)
    if count < _FEWEST or classes < 2 or binomial_tail(hits, count, 1 / classes) < 0.05:
        return ""
    return (
        f"The clean accuracy, {100 * hits / count:.1f} %, is that of guesses among {classes} classes: the order of "
        "the classes, the labels, the input normalisation or the weights may be wrong."
    )
