"""Tasks of Ray workers: what is sent is complete, and what they compute is what one process computes."""

import importlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from robustly.attacks import PGD
from robustly.certification.certificates import BoundCertificate
from robustly.data import ImageData
from robustly.evaluation import EvaluationTarget, Suite, evaluate
from robustly.evaluation.certificates import SCREEN
from robustly.evaluation.checkpoint import Speed
from robustly.evaluation.confirmation import attack_part
from robustly.evaluation.parts import Task
from robustly.evaluation.ray_tasks import (
    SendingError,
    Sent,
    Subject,
    WholeEvaluation,
    carry_out_part,
    carry_out_whole,
    send,
    send_images,
)
from robustly.evidence import Evidence
from robustly.ray_cluster import Cluster
from robustly.runtime import RuntimeConfig
from robustly.threats import parse_threat

pytestmark = pytest.mark.slow

THREAT = parse_threat("linf:0.1")
SUITE = Suite(
    "test", {"pgd": PGD(steps=2)}, curve=None, certificates={"bounds": BoundCertificate("crown", halvings=0)}
)


def data(dtype: torch.dtype = torch.float32, shape: tuple[int, int] = (6, 4)) -> ImageData:
    """Gray images that are not square."""
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (12, 1, *shape), generator=draws).to(torch.uint8)
    return ImageData(pixels, torch.arange(12) % 3, torch.arange(12) + 7, ("a", "b", "c"), "noise")


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


class Store:
    """The package ray with an object store of this process."""

    def __init__(self, cloudpickle: Any) -> None:
        self.cloudpickle = cloudpickle
        self._kept: list[bytes] = []

    def put(self, value: object) -> int:
        self._kept.append(self.cloudpickle.dumps(value))
        return len(self._kept) - 1

    def get(self, number: int) -> Any:
        return self.cloudpickle.loads(self._kept[number])


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store(pytest.importorskip("ray.cloudpickle", reason="ray is not installed: pip install ray"))
    own = importlib.import_module
    monkeypatch.setattr(
        "robustly.evaluation.ray_tasks.importlib.import_module",
        lambda name, package=None: store if name == "ray" else own(name, package),
    )
    return store


def sent(ray: Store, network: nn.Module, suite: Suite = SUITE) -> Sent:
    cluster = Cluster(ray, threads=torch.get_num_threads())
    return send(cluster, Subject(network, THREAT, suite, None, 5), send_images(cluster, data()))


def test_a_part_is_that_of_one_process(ray: Store) -> None:
    network, rows = model(), np.array([0, 3, 4])
    found = carry_out_part(sent(ray, network), Speed(4, True), Task("attack", "pgd", "0.1"), 2, {"rows": rows})
    assert not found.error
    alone = attack_part(EvaluationTarget(network, data(), THREAT, 5, 4), PGD(steps=2), "pgd", {"rows": rows})
    assert found.value.keys() == alone.keys()
    for name, values in alone.items():
        assert np.array_equal(found.value[name], values, equal_nan=values.dtype.kind == "f"), name


def test_certificates_are_parts_too(ray: Store) -> None:
    task = Task(SCREEN, "bounds", "0.1")
    found = carry_out_part(sent(ray, model()), Speed(4, True), task, 2, {"rows": np.arange(5)})
    assert not found.error
    assert len(found.value["ids"]) == 5


def test_a_whole_evaluation_is_that_of_one_process(ray: Store) -> None:
    network = model()
    settings = WholeEvaluation("every", 5, None, RuntimeConfig(device="cpu"))
    found = carry_out_whole(sent(ray, network), settings)
    assert not found.error
    assert isinstance(found.value, Evidence)
    alone = evaluate(network, data(), THREAT, SUITE, seed=5, batch_size=5, curve_count=None)
    ours, theirs = found.value.summary.metrics, alone.summary.metrics
    assert (ours.clean, ours.worst_case, ours.proved) == (theirs.clean, theirs.worst_case, theirs.proved)
    assert np.array_equal(found.value.table.attacks["pgd"].broken, alone.table.attacks["pgd"].broken)
    assert np.array_equal(found.value.images.attacks["pgd"].images, alone.images.attacks["pgd"].images)


def test_errors_and_other_code_come_back_as_words(ray: Store) -> None:
    packed = sent(ray, model())
    task = Task("attack", "missing", "0.1")
    found = carry_out_part(packed, Speed(4, True), task, 2, {"rows": np.arange(2)})
    assert found.error == "KeyError: 'missing'"
    found = carry_out_part(replace(packed, code="other"), Speed(4, True), task, 2, {"rows": np.arange(2)})
    assert "the code of robustly, or the version of PyTorch, differs" in found.refusal
    wrong = sent(ray, nn.Sequential(nn.Flatten(), nn.Linear(5, 3)))
    found = carry_out_whole(wrong, WholeEvaluation("every", 5, None, RuntimeConfig(device="cpu")))
    assert found.is_wrong_input
    assert found.error


def test_models_of_torchscript_are_sent(ray: Store) -> None:
    network = model()
    scripted = torch.jit.trace(network, data().first(2))
    subject = ray.cloudpickle.loads(ray.get(sent(ray, nn.Sequential(scripted)).subject))
    assert torch.equal(subject.model(data().first(4)), network(data().first(4)))


def test_a_model_that_cannot_be_sent_is_refused(ray: Store) -> None:
    network = model()
    network.lock = (one for one in [])  # type: ignore[assignment]
    with pytest.raises(SendingError, match=r"cannot be sent to the cluster \(TypeError: cannot pickle 'generator'"):
        sent(ray, network)


@pytest.mark.slow
def test_a_module_of_the_working_folder_is_sent_with_the_model(
    ray: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a second one that it imports; a process that has neither can load the model."""
    (tmp_path / "my_scaling.py").write_text("FACTOR = 3\ndef scaled(x):\n    return FACTOR * x\n")
    (tmp_path / "my_network.py").write_text(
        "from torch import nn\nimport my_scaling\nclass Net(nn.Module):\n    def forward(self, x):\n"
        "        return my_scaling.scaled(x.flatten(1)[:, :3])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    make: Callable[[], nn.Module] = importlib.import_module("my_network").Net
    content = tmp_path / "model.pickle"
    content.write_bytes(ray.get(sent(ray, make(), replace(SUITE, certificates={})).subject))
    script = (
        "import sys, torch, ray.cloudpickle as pickle\n"
        f"found = pickle.loads(open({str(content)!r}, 'rb').read())\n"
        "print(found.model(torch.ones(1, 1, 2, 2)).tolist(), 'my_network' in sys.modules)"
    )
    shown = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path.parent
    )
    assert shown.stdout.strip() == "[[3.0, 3.0, 3.0]] False"
