"""The rows that a run was trained and selected on, and its test rows: recorded at the start, compared ever after.

`data.safetensors` of a run holds the digests of its training, validation and test rows. Rows of a folder that has
grown are split anew, so that training images may become test images. A run therefore refuses other rows than its
own, and every evaluation counts the test rows that were trained or selected on.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from robustly.data import ImageData, Splits
from robustly.data.digests import RowDigests, joined_digests, row_digests
from robustly.data.sources import load_left_out
from robustly.evidence.domain_names import Part
from robustly.experiments.configuration import RunConfig
from robustly.experiments.run_folder import RunError
from robustly.files import whole_file
from robustly.models import weights_hash
from robustly.randomness import derive_seed
from robustly.training import Job
from robustly.training.engine.loop import BEST, FINAL, LAST

DATA, FORMAT = "data.safetensors", "robustly-run-data-1"
TRAIN, VALIDATION, TEST, EXTRA = "train", "validation", "test", "extra"
SOURCE_TEST = "source_test"
EARLIER_TRAIN, EARLIER_VALIDATION = "earlier_train", "earlier_validation"
_FIXED = {TRAIN: "training", VALIDATION: "validation", EXTRA: "extra"}
_COLUMNS = ("images", "labels", "ids")


@dataclass(frozen=True)
class RunData:
    """Digests of the rows of a run.

    Args:
        parts: digests by part: "train", "validation", "test", "extra"; "source_test" are test rows of the domains
            that were trained on, if one was left out, which gives "test"; "earlier_train" and "earlier_validation"
            are the rows of the run that trained the initial weights.
        complete: False if the initial weights were trained elsewhere, on rows that are not known.
        settings: hash of the settings of the data; empty without them.
    """

    parts: Mapping[str, RowDigests] = field(default_factory=dict)
    complete: bool = True
    settings: str = ""


@dataclass(frozen=True)
class SeenRows:
    """Numbers of test rows that were trained on, and selected on; None if unknown."""

    trained_on: int | None = None
    selected_on: int | None = None


def data_of_job(config: RunConfig, job: Job, splits: Splits) -> RunData:
    """Digests of all rows of a training run, with those of the run from whose weights it starts."""
    parts = {TRAIN: row_digests(job.train), VALIDATION: row_digests(job.validation), TEST: row_digests(splits.test)}
    if splits.source_test is not None:
        parts[SOURCE_TEST] = row_digests(splits.source_test)
    if job.extra is not None:
        parts[EXTRA] = row_digests(job.extra.data)
    earlier = data_of_weights(config.model.weights)
    # settings that later versions added; at their defaults, the hash is that of runs begun before
    text = repr(replace(config.data, expected_classes=None, in_memory="auto"))
    for added in (
        ", classes=None",
        ", expected_classes=None",
        ", domains=None",
        ", leave_out=None",
        ", in_memory='auto'",
    ):
        text = text.replace(added, "")
    settings = f"{derive_seed(text):016x}"
    return RunData({**parts, **earlier.parts}, earlier.complete, settings)


def shared_by_processes(config: RunConfig, job: Job, data: RunData) -> dict[str, str]:
    """Settings, images and networks that must be the same in all processes of a training run, by their names.

    Files may have other places on another machine, so that the images and the frozen weights are compared instead.
    """
    plain = config.as_plain()
    found = {
        f"setting {name}": str(value)
        for section, values in plain.items()
        if section not in ("recipe", "evaluation")
        for name, value in _flat(section, values)
    }
    for part, words in _FIXED.items():
        if (rows := data.parts.get(part)) is not None:
            content = rows.images.tobytes() + rows.labels.tobytes() + rows.ids.tobytes()
            found[f"{words} images"] = hashlib.sha256(content).hexdigest()
    networks = {"model": job.model, **{name: network.module for name, network in job.networks.items()}}
    for name, network in networks.items():
        is_frozen = name in job.networks and job.networks[name].frozen
        shapes = [(key, tuple(value.shape), str(value.dtype)) for key, value in network.state_dict().items()]
        found[f"network {name}"] = weights_hash(network) if is_frozen else f"{derive_seed(repr(shapes)):016x}"
    return found


def _flat(name: str, value: object) -> Iterator[tuple[str, object]]:
    """Settings with their whole names, without the places of files."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}", inner)
    elif name not in _PLACES and not (name.endswith(".weights") and not name.startswith("method.")):
        yield name, value


_PLACES = "data.source", "data.extra_source"


def data_of_weights(weights: str | None) -> RunData:
    """The rows that weights were trained and selected on, from the folder of the run that holds them."""
    if weights is None:
        return RunData()
    folders = Path(weights).resolve().parents
    found = next((one for folder in folders[:2] if (one := read_run_data(folder)) is not None), None)
    if found is None:
        return RunData(complete=False)
    groups = {EARLIER_TRAIN: (TRAIN, EXTRA, EARLIER_TRAIN), EARLIER_VALIDATION: (VALIDATION, EARLIER_VALIDATION)}
    kept = {name: [found.parts[part] for part in group if part in found.parts] for name, group in groups.items()}
    return RunData({name: joined_digests(parts) for name, parts in kept.items() if parts}, found.complete)


def refuse_seen_target(config: RunConfig) -> None:
    """Refuse initial weights, of the model or of a network beside it, that have seen the left-out domain.

    Weights from elsewhere pass, because their images are not known.

    Raises:
        RunError: images of the left-out domain were trained or selected on.
    """
    named = {"model": config.model, **{name: network.model for name, network in config.networks.items()}}
    known = {role: data_of_weights(model.weights).parts for role, model in named.items()}
    if config.data.domains is None or not any(known.values()):
        return
    target = row_digests(load_left_out(config.data))
    for role, parts in known.items():
        seen = int(np.any([target.found_in(part) for part in parts.values()], axis=0).sum()) if parts else 0
        if seen:
            raise RunError(
                f"{named[role].weights}, the weights of the {role}, were trained or selected on {seen} images of "
                f"the left-out domain {config.data.leave_out}: start from other weights"
            )


def write_run_data(folder: Path, data: RunData) -> None:
    """Write the digests of a run that has none yet.

    A run that was trained without a record stays without one, since its earlier rows are not known.

    Raises:
        OSError: the folder is read-only or the disk is full.
    """
    if not data.parts or (folder / DATA).is_file() or (folder / LAST).is_file():
        return
    tensors = {f"{name}.{key}": getattr(part, key) for name, part in data.parts.items() for key in _COLUMNS}
    hashes = {f"{name}.sha256": part.sha256() for name, part in data.parts.items()}
    about = {"format": FORMAT, "complete": str(data.complete).lower(), "parts": " ".join(data.parts)}
    about |= {"settings": data.settings, **hashes}
    with whole_file(folder / DATA) as temporary:
        try:
            temporary.write_bytes(save(tensors, metadata=about))
        except SafetensorError as error:
            raise OSError(f"could not write {folder / DATA}: {error}") from error


def read_run_data(folder: Path) -> RunData | None:
    """Digests of the rows of a run; None if it has no record of them.

    Raises:
        RunError: the file is damaged.
    """
    file = folder / DATA
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="np") as tensors:
            about = tensors.metadata() or {}
            if about.get("format") != FORMAT:
                raise RunError(f"{file} is not a record of a run's rows (its format is not {FORMAT!r})")
            parts = {
                name: RowDigests(*(tensors.get_tensor(f"{name}.{key}") for key in _COLUMNS))
                for name in about["parts"].split()
            }
    except (SafetensorError, OSError, KeyError, AttributeError) as error:
        raise RunError(f"{file} is damaged ({' '.join(str(error).split())[:120]})") from None
    wrong = [name for name, part in parts.items() if part.sha256() != about.get(f"{name}.sha256")]
    if wrong:
        raise RunError(f"{file} is damaged: the rows of {', '.join(wrong)} do not have the hash that it states")
    return RunData(parts, about.get("complete") == "true", about.get("settings", ""))


def refuse_other_training_rows(folder: Path, source: str, now: RunData) -> None:
    """Refuse to continue a run on other training, validation or extra rows than those it was started with.

    Args:
        folder: the run.
        source: its data, for the message.
        now: digests of the rows that are loaded now.

    Raises:
        RunError: rows, or the settings of the data, differ from the record of the run.
    """
    kept = read_run_data(folder)
    if kept is None:
        return
    if kept.settings != now.settings:
        raise RunError(
            f"{folder} was started with another configuration of its data than config.yaml holds now: restore "
            "config.yaml, or start a new run"
        )
    for part, words in _FIXED.items():
        before, after = kept.parts.get(part), now.parts.get(part)
        if before is None and after is None:
            continue
        if before is not None and after is not None and before.sha256() == after.sha256():
            continue
        raise RunError(
            f"the {words} images are not those that {folder} was started with: {_difference(before, after)}; "
            f"restore the data of {source}, or start a new run"
        )


def _difference(before: RowDigests | None, after: RowDigests | None) -> str:
    if before is None or after is None:
        return "there were none" if before is None else f"all {len(before)} are missing"
    missing, new = before.exchanged(after)
    if not missing and not new:
        return f"the same {len(before)} are in another order"
    return f"{missing} of {len(before)} are missing and {new} are new"


def kept_rows(folder: Path, config: RunConfig) -> RunData | None:
    """The record of a run; of weights that were trained before, that of their run. None if there is none.

    Raises:
        RunError: the record is damaged.
    """
    kept = read_run_data(folder)
    own = any((folder / name).is_file() for name in (LAST, BEST, FINAL))
    if kept is not None or own or config.model.weights is None:
        return kept
    earlier = data_of_weights(config.model.weights)
    return earlier if earlier.parts else None


def check_test_rows(folder: Path, config: RunConfig, data: ImageData, part: Part = "target") -> SeenRows:
    """Refuse other test rows than those that a run recorded, and count those that it was trained or selected on.

    Args:
        folder: the run; a folder that does not exist is a new one for weights that were trained before.
        config: its settings.
        data: the test rows, or some of them.
        part: with domains, those whose rows they are.

    Raises:
        RunError: rows that the run did not record.
    """
    kept = kept_rows(folder, config)
    if kept is None:
        return SeenRows()
    rows = row_digests(data)
    other = other_test_rows(kept, rows, part)
    if other:
        raise RunError(
            f"the test images are not those that {folder} recorded at its start: {other}; restore the data of "
            f"{config.data.source}, or evaluate its weights in a new folder, which counts the images trained on"
        )
    return seen_rows(kept, rows)


def other_test_rows(kept: RunData, rows: RowDigests, part: Part = "target") -> str:
    """A statement on test rows that the run did not record; empty if there are none, or no record of test rows."""
    recorded = kept.parts.get(TEST if part == "target" else SOURCE_TEST)
    if recorded is None:
        return ""
    other = int(np.count_nonzero(~rows.same_in(recorded)))
    if not other:
        return ""
    trained = seen_rows(kept, rows).trained_on
    return f"{other} of {len(rows)} are others" + (f", {trained} were trained on" if trained else "")


def seen_rows(kept: RunData, rows: RowDigests) -> SeenRows:
    """Count the rows whose image was trained or selected on, under any label.

    Where a part of the earlier rows is not known, a number above 0 is a lower bound, and 0 becomes None.
    """

    def number(*names: str) -> int | None:
        masks = [rows.found_in(kept.parts[name]) for name in names if name in kept.parts]
        found = int(np.any(masks, axis=0).sum()) if masks else 0
        return found if found or kept.complete else None

    return SeenRows(number(TRAIN, EXTRA, EARLIER_TRAIN), number(VALIDATION, EARLIER_VALIDATION))
