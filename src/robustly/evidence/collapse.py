"""Networks that predict one class for every image."""

from collections.abc import Sequence

import numpy as np

from robustly.evidence.schema import ExampleColumns
from robustly.statistics import collapsed_class


def collapse_words(examples: ExampleColumns, classes: Sequence[str]) -> str:
    """A warning if all clean images are predicted as one class while their labels differ; else empty.

    Args:
        examples: labels and predictions.
        classes: class names.
    """
    predicted, labels = (
        np.bincount(values[values >= 0]).tolist() for values in (examples.clean_prediction, examples.label)
    )
    found = collapsed_class(predicted, labels)
    if found is None:
        return ""
    name = classes[found] if found < len(classes) else str(found)
    return (
        f"Every image is predicted as the class {name}: the network has collapsed. Its accuracies are the share of "
        "that class among the images, and attacks have nothing to change."
    )
