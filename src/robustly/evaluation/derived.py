"""Contents of a report that follow from the rows and images: the gallery and its words, warning sentences."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from robustly.evaluation.recording import as_array, stored_images
from robustly.evaluation.target import EvaluationTarget
from robustly.evidence import StoredImages
from robustly.threats import Described

GALLERY = 12
"""Largest number of originals in the gallery."""


def gallery(target: EvaluationTarget, images: Mapping[str, StoredImages]) -> StoredImages:
    """Originals of some broken examples of each class, for the report's pictures.

    Args:
        target: the data.
        images: stored images of each attack.
    """
    data = target.data
    ids, labels = as_array(data.ids), as_array(data.labels)
    broken = np.isin(ids, np.concatenate([ids[:0], *(kept.ids for kept in images.values())]))
    by_class = [np.flatnonzero((labels == label) & broken).tolist() for label in range(data.num_classes)]
    rows: list[int] = []
    for turn in range(GALLERY):
        rows += [members[turn] for members in by_class if turn < len(members)]
    chosen = torch.tensor(rows[:GALLERY], dtype=torch.int64, device=data.device)
    return stored_images(data.ids[chosen], data.floats(chosen))


def picture_words(
    target: EvaluationTarget, images: Mapping[str, StoredImages], shown: StoredImages
) -> dict[str, dict[str, str]]:
    """Perturbations of the report's pictures in words, by attack and id; empty for threats without parameters.

    Args:
        target: the data and the threat.
        images: stored images of each attack.
        shown: originals of the pictures.
    """
    row = {identity: place for place, identity in enumerate(target.data.ids.tolist())}
    found = {}
    for name, kept in images.items():
        chosen = kept.only(np.isin(kept.ids, shown.ids))
        if chosen.theta is None or len(chosen) == 0:
            continue
        ids = chosen.ids.tolist()
        rows = torch.tensor([row[identity] for identity in ids], device=target.data.device)
        allowed = target.threat.around(target.data.floats(rows).cpu())
        if isinstance(allowed, Described) and allowed.identity().shape == chosen.theta.shape:
            words = allowed.describe(torch.from_numpy(chosen.theta))
            found[name] = {str(identity): one for identity, one in zip(ids, words, strict=True)}
    return found


def looks_like_probabilities(logits: Tensor) -> bool:
    """Return True if every row is non-negative and adds up to one."""
    sums = logits.sum(1)
    return bool((logits >= -1e-5).all() and (logits <= 1 + 1e-5).all() and ((sums - 1).abs() <= 1e-4).all())


def _looks_like_one_probability(logits: Tensor) -> bool:
    """Return True if the logits are (-z/2, z/2) with every z in [0, 1], of at least eight images."""
    if logits.shape[1] != 2 or len(logits) < 8 or not torch.equal(logits[:, 0], -logits[:, 1]):
        return False
    return bool((logits[:, 1] >= 0).all() and (logits[:, 1] <= 0.5).all())


def derived_warnings(clean: Tensor, invalid: int, failures: Mapping[str, str]) -> tuple[str, ...]:
    """Warning sentences that follow from the evidence and the clean pass; an audit derives them again.

    Args:
        clean: logits of the clean images, `(N, K)`.
        invalid: number of examples with NaN outputs under attack.
        failures: error messages of attacks that raised.
    """
    found = [
        f"The attack {name!r} failed ({message}). Robust accuracy is an upper bound without it."
        for name, message in failures.items()
    ]
    if looks_like_probabilities(clean):
        found.append(
            "The model seems to return probabilities, not logits: gradients vanish, and robust accuracy may be "
            "overestimated. Remove the final softmax."
        )
    elif _looks_like_one_probability(clean):
        found.append(
            "The model seems to return one probability for each image, not one logit: 0.5 is taken as positive. "
            "Remove the final sigmoid."
        )
    if invalid:
        found.append(f"The model returned NaN for {invalid} attacked images; they count as broken.")
    return tuple(found)


def unconfirmed_warning(count: int) -> str:
    """The sentence on attack successes that a second forward pass did not confirm."""
    return f"A second forward pass did not confirm {count} attack successes; they are not counted."


def unconfirmed_counterexamples(count: int, name: str) -> str:
    """The sentence on counterexamples of a certificate that a forward pass did not confirm."""
    return (
        f"A forward pass did not confirm {count} counterexamples of the certificate {name!r}; these examples "
        "count as unknown."
    )
