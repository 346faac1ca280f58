"""Exported models: safetensors with a description, and Hugging Face folders with a model card."""

from pathlib import Path
from typing import Any

import yaml

from robustly.data import hub_path
from robustly.evidence import Summary
from robustly.experiments.portable import HF_CONFIG, HF_WEIGHTS, KEY, Description, PortableModel, description_text
from robustly.files import write_json, write_text
from robustly.models.weights import write_tensors
from robustly.output_text import one_line
from robustly.statistics import Proportion


def write_safetensors(model: PortableModel, file: Path) -> None:
    """Write the weights, with the description in the file's metadata under the key `robustly`.

    Raises:
        OSError: the file cannot be written.
    """
    write_tensors(model.model, file, {"format": "pt", KEY: description_text(model.description)})


def write_hugging_face(model: PortableModel, folder: Path, name: str, summary: Summary | None) -> None:
    """Write the files of a folder as the Hugging Face hub holds it; other files of the folder stay.

    `config.json` (classes, shape and the description), `model.safetensors`, `preprocessor_config.json` (images in
    [0, 1], without normalisation, which is a layer of the model), and the model card `README.md`.

    Args:
        model: the model.
        folder: the folder.
        name: name of the model in the card.
        summary: the evaluation of these weights, for the card; None without one.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(model, folder / HF_WEIGHTS)
    write_json(folder / "preprocessor_config.json", preprocessor_config(model.description))
    write_text(folder / "README.md", model_card(model.description, name, summary))
    write_json(folder / HF_CONFIG, hugging_face_config(model.description))


def hugging_face_config(description: Description) -> dict[str, Any]:
    """The content of `config.json`."""
    channels, height, width = description.shape
    labels = dict(enumerate(description.classes))
    return {
        "model_type": KEY,
        "architectures": [description.model.name],
        "num_channels": channels,
        "image_size": height if height == width else [height, width],
        "id2label": {str(number): label for number, label in labels.items()},
        "label2id": {label: number for number, label in labels.items()},
        KEY: description.as_json(),
    }


def preprocessor_config(description: Description) -> dict[str, Any]:
    """The content of `preprocessor_config.json`: values in [0, 1], bicubic resizing, no normalisation."""
    _, height, width = description.shape
    return {
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": False,
    }


def model_card(description: Description, name: str, summary: Summary | None) -> str:
    """The model card: metrics from the evidence as YAML, then the same in words, with conditions and limits."""
    front: dict[str, Any] = {
        "library_name": KEY,
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "adversarial-robustness", KEY],
    }
    data_set = hub_path(description.source)
    if data_set is not None:
        front["datasets"] = [data_set.partition(":")[0]]
    if summary is not None:
        front["model-index"] = [{"name": name, "results": [_index_entry(summary)]}]
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n",
        f"# {_cell(name)}\n",
        _results_text(description, summary),
        _use_text(description),
        _origin_text(description, summary),
    ]
    return "\n".join(parts)


def _index_entry(summary: Summary) -> dict[str, Any]:
    metrics = summary.metrics
    under = f"{summary.threat.text}, suite {summary.suite.name}, {summary.data.count} images"
    rows = [
        {"type": "accuracy", "name": "Clean accuracy", "value": _percent(metrics.clean)},
        {
            "type": "robust_accuracy",
            "name": f"Robust accuracy ({under})",
            "value": _percent(metrics.worst_case.robust),
        },
    ]
    if metrics.certified is not None:
        certified = _percent(metrics.certified.robust)
        rows.append({"type": "certified_accuracy", "name": f"Certified accuracy ({under})", "value": certified})
    source = hub_path(summary.data.source) or summary.data.source
    return {
        "task": {"type": "image-classification"},
        "dataset": {"name": source, "type": source, "split": summary.data.split or "test"},
        "metrics": rows,
    }


def _results_text(description: Description, summary: Summary | None) -> str:
    if summary is None and description.results:  # of a model that was exported before
        facts = "".join(f"| {_cell(key)} | {_cell(str(value))} |\n" for key, value in description.results.items())
        return f"As the exported model states, whose evidence is not at hand:\n\n| | |\n| --- | --- |\n{facts}"
    if summary is None:
        return "This model has not been evaluated: no robust accuracy is known. `robustly evaluate` measures it.\n"
    metrics = summary.metrics
    bound = "at most this" if metrics.certified is None else "between the certified and the attacked number below"
    rows = [("clean", metrics.clean)]
    rows += [(one.attack.title, one.numbers.robust) for one in summary.outcomes if not one.state]
    rows.append(("worst case", metrics.worst_case.robust))
    rows += [] if metrics.certified is None else [("certified", metrics.certified.robust)]
    table = [f"| {_cell(title)} | {_percent(share)} % | {_interval(share)} |" for title, share in rows]
    lines = [
        f"{_percent(metrics.worst_case.robust)} % of {summary.data.count} test images stay correct against the "
        f"suite `{_cell(summary.suite.name)}` under the threat `{summary.threat.text}` "
        f"({_cell(summary.threat.words).rstrip('.')}); {_percent(metrics.clean)} % are correct without an attack. "
        f"The true robust accuracy is {bound}.\n",
        *(f"Warning: {_cell(sentence)}\n" for sentence in summary.masking),
        "| attack | accuracy | 95 % interval |",
        "| --- | ---: | ---: |",
        *table,
        "",
        f"Attacks of a kind seen in training or selection: {_cell(summary.seen_words)}. "
        f"Images: {_cell(summary.data.seen_words)}.\n",
    ]
    return "\n".join(lines)


def _use_text(description: Description) -> str:
    channels, height, width = description.shape
    return (
        "## Use\n"
        f"Images are float tensors `(N, {channels}, {height}, {width})` in [0, 1]; normalisation is a layer of the "
        f"model. The outputs are {len(description.classes)} logits.\n\n"
        "```\nrobustly predict FOLDER image.png\n```\n\n"
        "```python\n"
        "from pathlib import Path\n"
        "from robustly.experiments.portable import open_portable\n\n"
        "model = open_portable(Path(FOLDER), lambda name: False).model\n"
        "```\n"
    )


def _origin_text(description: Description, summary: Summary | None) -> str:
    facts = {
        "architecture": description.model.name,
        "training": description.recipe,
        "threat of the training": description.threat,
        "data": description.source,
        "SHA-256 of the weights": description.weights_sha256,
    }
    if summary is not None:
        facts |= {"evaluated": summary.created[:10], "SHA-256 of the test images": summary.data.sha256}
        facts |= {f"version of {package}": text for package, text in summary.versions.items()}
    rows = [f"| {title} | {_cell(text)} |" for title, text in facts.items() if text]
    return "\n".join(["## Origin", "| | |", "| --- | --- |", *rows, ""])


def _percent(share: Proportion) -> float:
    return round(100 * share.share, 2)


def _interval(share: Proportion) -> str:
    return f"[{100 * share.low:.1f}, {100 * share.high:.1f}]"


def _cell(text: str) -> str:
    """A name on one line that ends no cell of a table and begins no markup."""
    return one_line(text).replace("|", "/").replace("`", "'").replace("<", "&lt;").replace("[", "\\[")
