"""Compare adversarial fine-tuning of a standard network with adversarial training from scratch.

    ROBUSTLY_SHARED_DATA=FOLDER python benchmarks/finetune.py [mnist] [cifar]

Every row is a run: `robustly train` from scratch, or `robustly finetune` of a naturally trained network.
All robust accuracies are those of the suite `quick` on the same test images. FOLDER/cifar10-jpeg holds CIFAR-10
as Parquet files (JPEG of quality 75). Writes `benchmarks/results/finetune.md`, part by part.
"""

import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import torch

from robustly.cli import main
from robustly.data import load_test
from robustly.experiments.finetune import Measured, measure, read_record, test_images
from robustly.experiments.run_folder import load_trained, open_run
from robustly.threats import parse_threat

RESULTS = Path(__file__).parent / "results" / "finetune.md"
COUNT = 500
MNIST = (
    *("--data.image_size", "16", "--model.width", "0.25"),
    *("--data.validation", "300", "--training.validation_steps", "5"),
)
THREAT = ("--threat", "linf:0.2")
CIFAR = (
    *("--data.source", str(Path(os.environ.get("ROBUSTLY_SHARED_DATA", ".")) / "cifar10-jpeg")),
    *("--data.train_limit", "1500", "--data.validation", "200", "--data.image_size", "16"),
    *("--data.flip", "true"),
    *("--model.name", "resnet18", "--model.width", "0.125", "--training.batch_size", "100"),
    *("--training.validation_steps", "5", "--schedule.name", "one_cycle", "--schedule.peak", "0.4"),
    *("--optimizer.learning_rate", "0.1"),
)


class Runs:
    """Runs in a folder; each is a row of a table."""

    def __init__(self, folder: Path, threats: tuple[str, ...]) -> None:
        self.folder, self.threats = folder, threats
        self.rows: list[str] = []

    def train(self, name: str, *words: str) -> Path:
        """Train from scratch."""
        seconds = self._run("train", *words, out=self.folder / name)
        config = open_run(self.folder / name)
        data = test_images(load_test(config.data), COUNT)
        model, _ = load_trained(self.folder / name, config, data, lambda _: False)
        found = measure(model, data, {text: parse_threat(text) for text in self.threats}, seed=0)
        self.add(name, config.training.epochs, seconds, found)
        return self.folder / name

    def finetune(self, name: str, source: Path, *words: str) -> None:
        """Fine-tune a run."""
        seconds = self._run("finetune", str(source), "--count", str(COUNT), *words, out=self.folder / name)
        config = open_run(self.folder / name)
        record = read_record(self.folder / name, self.threats, COUNT)
        self.add(name, config.training.epochs, seconds, record["after"])

    def _run(self, *words: str, out: Path) -> float:
        began = time.process_time()
        if main([*words, "--out", str(out)]) != 0:
            raise SystemExit(f"{out.name} failed")
        return time.process_time() - began

    def add(self, name: str, epochs: int, seconds: float, found: Measured) -> None:
        """Add a row."""
        shares = " | ".join(str(found.robust[text]) for text in self.threats)
        self.rows.append(f"| {name} | {epochs} | {found.clean} | {shares} | {seconds:.0f} |")
        print(self.rows[-1], flush=True)

    def table(self) -> str:
        """Markdown of all rows."""
        head = " | ".join(f"under {text}" for text in self.threats)
        rule = "| --- | --- | --- |" + " --- |" * (len(self.threats) + 1)
        lines = [f"| run | epochs | clean | {head} | CPU seconds, evaluation included |", rule, *self.rows]
        return "\n".join(lines)


def mnist(folder: Path, seed: int = 0) -> str:
    """Digits of 16x16 pixels under linf 0.2: 12 epochs from scratch against 3 of fine-tuning; then to l2."""
    runs = Runs(folder, ("linf:0.2",))
    seeded = (*MNIST, *THREAT, "--seed", str(seed))
    natural = runs.train("standard", "mnist5k/standard", *seeded)
    scratch = runs.train("scratch", "mnist5k/pgd_at", *seeded)
    quarter = ("--training.epochs", "3", "--training.epsilon_ramp", "1")
    runs.train("scratch, quarter", "mnist5k/pgd_at", *seeded, *quarter)
    shared = ("--method", "mnist5k/pgd_at", "--epochs", "3")
    runs.finetune("full, rate / 4", natural, *shared)
    for name, words in {
        "full": (),
        "layer decay 0.75": ("--layer-decay", "0.75"),
        "head first": ("--mode", "head_first"),
        "head only": ("--mode", "head_only"),
    }.items():
        runs.finetune(name, natural, *shared, *words, "--optimizer.learning_rate", "0.004")
    other = Runs(folder, ("l2:1.5", "linf:0.2"))
    transfer = "linf 0.2 to l2 1.5"
    other.finetune(transfer, scratch, "--threat", "l2:1.5", *shared)
    other.add("before it", 12, 0, read_record(folder / transfer, other.threats, COUNT)["before"])
    return f"{runs.table()}\n\n{other.table()}"


def cifar(folder: Path) -> str:
    """CIFAR-10 of 16x16 pixels under linf 4/255: 8 epochs from scratch against 2 of fine-tuning."""
    runs = Runs(folder, ("linf:4/255",))
    threat = ("--threat", "linf:4/255")
    attack = ("--method.inner.steps", "5", "--method.inner.step_size", "null")
    attack = (*attack, "--method.inner.relative_step_size", "0.35")
    epochs = ("--training.epochs", "8")
    clean = ("--training.select_by", "clean")
    natural = runs.train("standard", "cifar10/standard", *CIFAR, *threat, *epochs, *clean)
    runs.train("scratch", "cifar10/pgd_at", *CIFAR, *threat, *attack, *epochs)
    runs.train("scratch, quarter", "cifar10/pgd_at", *CIFAR, *threat, *attack, "--training.epochs", "2")
    shared = ("--method", "cifar10/pgd_at", "--epochs", "2", *attack)
    runs.finetune("full, rate / 4", natural, *shared)
    runs.finetune("full", natural, *shared, "--optimizer.learning_rate", "0.1")
    return runs.table()


PARTS = {
    "mnist": ("MNIST digits of 16x16 pixels, linf 0.2", mnist),
    "cifar": ("CIFAR-10 (JPEG) of 16x16 pixels, linf 4/255", cifar),
}


if __name__ == "__main__":
    torch.set_num_threads(1)
    texts = []
    for part in sys.argv[1:] or list(PARTS):
        title, measured = PARTS[part]
        with tempfile.TemporaryDirectory() as temporary:
            texts.append(f"## {title}\n\n{measured(Path(temporary))}\n")
        made = f"PyTorch {torch.__version__}, {platform.machine()}, 1 thread, one seed, {COUNT} test images"
        RESULTS.write_text(f"# Fine-tuning against training from scratch\n\n{made}.\n\n" + "\n".join(texts))
