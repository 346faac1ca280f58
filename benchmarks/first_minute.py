"""Measure the first minute: start-up times beside those of PyTorch, and the size of what is installed.

    python benchmarks/first_minute.py [--repeats 5]

Times are CPU time, the least of some new processes. Sizes are those of the files installed in this environment;
PyTorch and the packages that it needs are not counted. Writes `benchmarks/results/first_minute.md`.
"""

import argparse
import platform
import re
import resource
import subprocess
import sys
import tempfile
import zipfile
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "first_minute.md"
COMMANDS = (["--version"], ["--help"], ["recipes"], ["suites"], ["train", "--help"], ["completion", "bash"])
IMPORTS = ("robustly", "robustly.ThreatModel", "robustly.read_evidence", "robustly.evaluate", "robustly.train")
AFTER_TORCH = """
import time, torch
began = time.process_time()
import robustly
robustly{rest}
print(time.process_time() - began)
"""
WHY = {
    "numpy": "evidence, data",
    "pyarrow": "the rows of evidence and data sets are Parquet; imported at the first read or write",
    "pillow": "image files; images of reports",
    "lightning-fabric": "several GPUs and nodes; imported when a run starts",
    "jaxtyping": "shapes in annotations",
    "rich": "tables and progress; imported when a command runs",
    "jinja2": "the page (PyTorch needs it too)",
    "pyyaml": "recipes",
    "safetensors": "weights",
}


def seconds(code: list[str], repeats: int) -> float:
    """Least CPU time of a new process."""
    times = []
    for _ in range(repeats):
        began = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *code], check=True, stdout=subprocess.DEVNULL)
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(ended.ru_utime - began.ru_utime + ended.ru_stime - began.ru_stime)
    return min(times)


def seconds_after_torch(name: str, repeats: int) -> float:
    """Least CPU time of the first use of a name in a process that has imported PyTorch."""
    code = AFTER_TORCH.format(rest=name.removeprefix("robustly"))
    return min(
        float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
        for _ in range(repeats)
    )


def needs(name: str) -> set[str]:
    """A package and all that it requires, by normalised name; extras and other platforms are left out."""
    found: set[str] = set()
    open_names = [name]
    while open_names:
        one = re.sub(r"[-_.]+", "-", open_names.pop()).lower()
        if one in found:
            continue
        try:
            required = metadata.requires(one) or []
        except metadata.PackageNotFoundError:
            continue  # of another platform
        found.add(one)
        open_names += [re.split(r"[\s<>=!~;\[(]", text)[0] for text in required if "extra ==" not in text]
    return found


def megabytes(name: str) -> float:
    """Size of the installed files of a package."""
    files = metadata.files(name) or []
    return sum(path.stat().st_size for path in (Path(str(file.locate())) for file in files) if path.is_file()) / 1e6


def install_rows() -> list[str]:
    """Lines of the table of sizes, the largest first, and their sum."""
    with_torch, counted, rows = needs("torch"), set(), []
    texts = metadata.requires("robustly") or []
    names = [re.split(r"[\s<>=!~;\[(]", text)[0] for text in texts if "extra ==" not in text]
    for name in (one.lower() for one in names if one != "torch"):
        new = needs(name) - with_torch - counted
        counted |= new
        also = sorted(new - {name})
        rows.append((sum(map(megabytes, new)), name, ", ".join(also)))
    total = sum(size for size, _, _ in rows)
    lines = [
        f"| {name} | {also} | {size:.1f} MB | {WHY.get(name, '')} |" for size, name, also in sorted(rows)[::-1]
    ]
    return [*lines, f"| **all but PyTorch** | | **{total:.1f} MB** | |"]


def wheel_lines() -> list[str]:
    """Size of the wheel and of its largest files."""
    with tempfile.TemporaryDirectory() as folder:
        build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, str(ROOT)]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
        wheel = next(Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            files = sorted(archive.infolist(), key=lambda one: -one.compress_size)
            total = wheel.stat().st_size
            lines = [f"| the wheel | {total / 1e6:.2f} MB | {sum(one.file_size for one in files) / 1e6:.2f} MB |"]
            lines += [
                f"| {one.filename} | {one.compress_size / 1e6:.2f} MB | {one.file_size / 1e6:.2f} MB |"
                for one in files[:3]
            ]
            code = [one for one in files if one.filename.endswith(".py")]
            sizes = sum(one.compress_size for one in code) / 1e6, sum(one.file_size for one in code) / 1e6
            return [*lines, f"| {len(code)} Python files | {sizes[0]:.2f} MB | {sizes[1]:.2f} MB |"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    bare = seconds(["-c", ""], options.repeats)
    commands = {" ".join(words): seconds(["-m", "robustly", *words], options.repeats) for words in COMMANDS}
    imports = {name: seconds_after_torch(name, options.repeats) for name in IMPORTS}
    alone = {name: seconds(["-c", f"import {name}"], options.repeats) for name in ("robustly", "torch")}
    lines = [
        "# The first minute\n",
        f"`python benchmarks/first_minute.py`, {datetime.now(UTC):%Y-%m-%d}, PyTorch {metadata.version('torch')}, "
        f"Python {platform.python_version()}, {platform.machine()}. Times are CPU time, the least of "
        f"{options.repeats} new processes; an empty one takes {bare:.2f} s, `import torch` {alone['torch']:.2f} s, "
        f"`import robustly` {alone['robustly']:.2f} s.\n",
        "| command | seconds |",
        "| --- | ---: |",
        *(f"| robustly {words} | {time:.2f} |" for words, time in commands.items()),
        "",
        "| first use, after `import torch` | seconds more |",
        "| --- | ---: |",
        *(f"| {name} | {time:.2f} |" for name, time in imports.items()),
        "\n## What is installed\nPyTorch and all that it requires are not counted.\n",
        "| package | and with it | installed | for |",
        "| --- | --- | ---: | --- |",
        *install_rows(),
        "",
        "| file | compressed | unpacked |",
        "| --- | ---: | ---: |",
        *wheel_lines(),
    ]  # fmt: skip
    RESULTS.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
