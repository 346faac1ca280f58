"""Count the lines that a user writes for six tasks, beside torchattacks, and run both.

    python benchmarks/user_code.py [--only TASK]

`benchmarks/user_code/TASK/` has a script for each side. Both run in one temporary folder with the same model and
images (`victim.py`), and set `verdict`; the verdicts must agree within the tolerance of the task. Counted are lines
that are not empty, not a comment, and not an import, as `ruff format` writes them. Takes about two minutes of CPU
time. Writes `benchmarks/results/user_code.md`.
"""

import argparse
import ast
import platform
import runpy
import sys
import tempfile
import time
from contextlib import chdir
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent / "user_code"
RESULTS = Path(__file__).parent / "results" / "user_code.md"


@dataclass(frozen=True)
class Task:
    """A task; `tolerance` is the largest difference of the verdicts, in shares of images."""

    name: str
    words: str
    tolerance: float
    more: str


TASKS = (
    Task(
        "autoattack",
        "AutoAttack's robust accuracy of a model on 40 images",
        0.05,
        "intervals, evidence, diagnostics",
    ),
    Task("curve", "security curve of PGD at four sizes, as a picture", 0.05, "intervals, axes, the evaluation"),
    Task(
        "training",
        "adversarial training of a network for an epoch, robust accuracy afterwards",
        0.25,
        "accuracy before, best epoch on held-out images, resumption, a run folder",
    ),
    Task(
        "masking",
        "does the model mask its gradients",
        0.0,
        "all twelve tests and a dozen flags, p-values, remedies",
    ),
    Task(
        "page", "a page with the accuracy under each attack and intervals", 0.05, "curve, images, audit, strength"
    ),
    Task(
        "folder",
        "a model with 1,000 outputs on a folder with three classes",
        0.05,
        "other sizes and formats of images",
    ),
)

TEXT = """# Lines of user code

`python benchmarks/user_code.py`: torchattacks {version}, Python {python}, one thread. Lines without imports,
comments and empty lines; the scripts are in `benchmarks/user_code/`. Both sides run on the same network and 40
digits (12 images for the folder), under linf 0.05 (folder: 1/255).

| task | lines, ours | lines, peers | verdict, ours | verdict, peers | CPU s, ours | CPU s, peers | ours also |
| --- | --- | --- | --- | --- | --- | --- | --- |
{rows}

Peers are torchattacks, and PyTorch, NumPy and Pillow by hand where torchattacks has no function. RobustBench 1.1.1
is not among them: it needs timm and torchvision (10 MB to download), and torchvision cannot be imported where this
was run. Its `benchmark` would be one call for the first task. torchattacks' AutoAttack takes 10 steps in each gradient
attack where AutoAttack and `aa_standard` take 100; `small_jobs.md` has both with 100. The training task is a command
of robustly; its verdicts differ because optimiser, batches and random numbers do.
"""


def lines(file: Path) -> int:
    """Lines of code without imports."""
    text = file.read_text(encoding="utf-8")
    imports = {
        number
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    numbered = enumerate(text.splitlines(), start=1)
    return sum(1 for number, line in numbered if line.strip() and line.strip()[0] != "#" and number not in imports)


def run(file: Path) -> tuple[Any, float]:
    """Verdict and CPU seconds of a script."""
    torch.manual_seed(0)  # torchattacks draws from the global generator
    began = time.process_time()
    verdict = runpy.run_path(str(file))["verdict"]
    return list(verdict) if isinstance(verdict, tuple) else verdict, time.process_time() - began


def difference(ours: Any, theirs: Any) -> float:
    """Largest difference of two verdicts."""
    if isinstance(ours, list):
        return max(abs(one - other) for one, other in zip(ours, theirs, strict=True))
    return abs(float(ours) - float(theirs))


def shown(verdict: Any) -> str:
    """Verdict in words."""
    if isinstance(verdict, bool):
        return "masked" if verdict else "not masked"
    return " ".join(f"{100 * share:.1f}" for share in (verdict if isinstance(verdict, list) else [verdict])) + " %"


def table(rows: list[tuple[Task, int, int, Any, Any, float, float]]) -> str:
    """Markdown of the results."""
    body = [
        f"| {task.words} | {ours} | {theirs} | {shown(verdict)} | {shown(other)} | {seconds:.1f} | {others:.1f} "
        f"| {task.more} |"
        for task, ours, theirs, verdict, other, seconds, others in rows
    ]
    total = f"| **all** | **{sum(row[1] for row in rows)}** | **{sum(row[2] for row in rows)}** | | | | | |"
    return TEXT.format(
        version=version("torchattacks"), python=platform.python_version(), rows="\n".join([*body, total])
    )


def main() -> int:
    """Run all tasks; 1 if two verdicts differ by more than the tolerance."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--only", choices=[task.name for task in TASKS])
    only = arguments.parse_args().only
    sys.path.insert(0, str(FOLDER))
    rows, differ = [], []
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        runpy.run_path(str(FOLDER / "autoattack" / "robustly.py"))  # warm-up; makes model and folder
        for task in TASKS:
            if only in (None, task.name):
                files = [FOLDER / task.name / f"{side}.py" for side in ("robustly", "peers")]
                (ours, time_ours), (theirs, time_theirs) = map(run, files)
                rows.append((task, *map(lines, files), ours, theirs, time_ours, time_theirs))
                if difference(ours, theirs) > task.tolerance + 1e-6:
                    differ.append(f"{task.name}: {shown(ours)} against {shown(theirs)}")
    text = table(rows)
    print(text, *differ, sep="\n")
    if only is None and not differ:
        RESULTS.write_text(text, encoding="utf-8")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
