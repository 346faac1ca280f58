"""Compare adversarial fine-tuning of a standard network with adversarial training from scratch, at several rates.

    python benchmarks/finetune.py FOLDER [MINUTES]

Real digits of 16x16 pixels (mnist5k), small_cnn of a quarter of the width, linf 0.2, PGD-AT with 7 steps. 12 epochs
from scratch against 3 epochs from scratch and 3 epochs of fine-tuning, each at several peak learning rates, because
the best one differs. Robust accuracies are of the suite `quick` on the first 500 test images. Runs are kept in
FOLDER, so that the command continues after a stop; no run begins after MINUTES. Writes
`benchmarks/results/finetune.md` after each row.
"""

import platform
import sys
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
NETWORK = ("--data.image_size", "16", "--model.width", "0.25", "--data.validation", "300", "--threat", "linf:0.2")
SCRATCH = ("train", "mnist5k/pgd_at", *NETWORK, "--training.validation_steps", "5")
QUARTER = ("--training.epochs", "3", "--training.epsilon_ramp", "1")
TUNED = ("--method", "mnist5k/pgd_at", "--epochs", "3", "--count", str(COUNT), "--training.validation_steps", "5")


def rate(value: float) -> tuple[str, str]:
    return "--optimizer.learning_rate", f"{value:g}"


def finetuned(name: str, value: float, *words: str) -> tuple[str, str, tuple[str, ...]]:
    return name, f"{value:g}", ("finetune", "standard", *TUNED, *rate(value), *words)


ROWS: list[tuple[str, str, tuple[str, ...]]] = [
    ("standard", "0.004", ("train", "mnist5k/standard", *NETWORK, "--training.validation_steps", "1")),
    finetuned("fine-tuning", 0.03),
    finetuned("fine-tuning", 0.012),
    ("scratch, 3 epochs", "0.012", (*SCRATCH, *QUARTER, *rate(0.012))),
    ("scratch, 12 epochs", "0.004", (*SCRATCH, *rate(0.004))),
    ("scratch, 3 epochs", "0.03", (*SCRATCH, *QUARTER, *rate(0.03))),
    finetuned("head first", 0.03, "--mode", "head_first"),
    ("scratch, 12 epochs", "0.012", (*SCRATCH, *rate(0.012))),
    finetuned("layer decay 0.75", 0.03, "--layer-decay", "0.75"),
    finetuned("fine-tuning", 0.004),
    (
        "l2 1.5 from scratch at 0.004",
        "0.004",
        ("finetune", "scratch_12_epochs_0.004", *TUNED, "--threat", "l2:1.5"),
    ),
    finetuned("head only", 0.03, "--mode", "head_only"),
    ("scratch, 12 epochs", "0.03", (*SCRATCH, *rate(0.03))),
    ("scratch, 3 epochs", "0.004", (*SCRATCH, *QUARTER, *rate(0.004))),
]


def measured(folder: Path) -> Measured:
    config = open_run(folder)
    threats = {str(config.threat): config.threat, "linf:0.2": parse_threat("linf:0.2")}
    record = read_record(folder, threats, COUNT)
    if "after" in record:
        return record["after"]
    data = test_images(load_test(config.data), COUNT)
    model = load_trained(folder, config, data, lambda _: False)[0]
    return measure(model, data, threats, seed=0)


def run(root: Path, minutes: float) -> None:
    began, lines = time.monotonic(), []
    for name, peak, words in ROWS:
        key = name.replace(",", "").replace(" ", "_")
        folder = root / (key if name == "standard" else f"{key}_{peak}")
        if time.monotonic() - began > 60 * minutes and not (folder / "model.safetensors").is_file():
            continue
        source = str(root / words[1]) if words[0] == "finetune" else words[1]
        if main([words[0], source, *words[2:], "--out", str(folder)]) != 0:
            raise SystemExit(f"{folder} failed")
        found = measured(folder)
        robust = ", ".join(f"{text}: {share}" for text, share in found.robust.items())
        lines.append(f"| {name} | {peak} | {open_run(folder).training.epochs} | {found.clean} | {robust} |")
        print(lines[-1], flush=True)
        write(lines)


def write(lines: list[str]) -> None:
    made = f"PyTorch {torch.__version__}, {platform.machine()}, one seed, {COUNT} test images, 95 % intervals"
    head = "| run | peak rate | epochs | clean | robust |\n| --- | --- | --- | --- | --- |"
    table = "\n".join(sorted(lines))
    RESULTS.write_text(f"# Fine-tuning against training from scratch\n\n{made}.\n\n{head}\n{table}\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 1e9)
