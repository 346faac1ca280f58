"""Public sets through the pipeline: lists of the verification competition, and images of the ERAN networks."""

import csv
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch

from robustly.certification.answers import Answer
from robustly.certification.deadline import Deadline
from robustly.certification.instances import read_instances
from robustly.certification.readers.torch_reader import read_module
from robustly.certification.sets import InputSet
from robustly.certification.specification import robustness
from robustly.certification.verify import Budget, Problem, verify
from robustly.cli.verifying import decide
from robustly.cli.verifying_workers import Job, decided
from robustly.evidence import Verdict
from robustly.files import whole_file
from robustly.threats.lp import ThreatModel
from verification_parts.networks import eran, shared_folder

LISTS = ("rl_benchmarks", "reach_prob_density", "mnist_fc", "verivital", "acasxu")
ERAN = (
    "mnist_6_100_nat",
    "mnist_conv_small_nat",
    "mnist_9_100_nat",
    "cifar_conv_small_pgd",
    "cifar_conv_small_sigmoid",
)
BARS = {"rl_benchmarks": 200, "reach_prob_density": 34, "mnist_fc": 30, "verivital": 58, "acasxu": 180}
SHARES = {"mnist_6_100_nat": 0.35, "mnist_conv_small_nat": 0.40}
IMAGES, SECONDS = 100, 60.0
_KINDS = {"limit": float, "wall": float, "cpu": float, "lower_bound": float, "work": int}
_WORDS = {
    Verdict.VERIFIED: "unsat",
    Verdict.FALSIFIED: "sat",
    Verdict.TIMEOUT: "timeout",
    Verdict.UNKNOWN: "unknown",
}


@dataclass(frozen=True)
class Row:
    """The answer to one instance; `wall` and `cpu` in seconds, without the start of the process."""

    network: str
    property: str
    limit: float
    expected: str
    result: str
    wall: float
    cpu: float
    stage: str
    work: int
    lower_bound: float
    reason: str

    @property
    def is_wrong(self) -> bool:
        return bool(self.expected) and self.result in ("sat", "unsat") and self.result != self.expected


def timed(network: Path, property_: Path, end: float) -> Answer:
    """Answer an instance of a list, or the image of this number for an ERAN network, with its CPU time."""
    begin = time.process_time()
    run = _image if network.suffix == ".safetensors" else decide
    found = run(network, property_, end)
    return replace(found, reason=f"{time.process_time() - begin:.3f}|{found.reason}")


def _image(network: Path, number: Path, end: float) -> Answer:
    given, index, begin = eran(network.stem), int(number.name), time.monotonic()
    x, y = given.x[index : index + 1], given.y[index : index + 1]
    graph = read_module(given.model, tuple(x.shape[1:]))

    def confirm(points: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return given.model(points.float())

    inputs = InputSet.of(ThreatModel("linf", given.epsilon), x, torch.float64)
    problem = Problem(graph, inputs, robustness(y, graph.outputs, torch.float64), confirm)
    deadline = Deadline(end - min(0.5, 0.05 * Deadline(end).left))
    one = verify(problem, budget=Budget(domains=10**9), deadline=deadline)[0]
    word = _WORDS[Verdict(one.verdict)]
    return Answer(word, one.reason, time.monotonic() - begin, one.stage, one.work, one.lower_bound)


def run(name: str, folder: Path, processes: int, count: int | None, again: bool) -> None:
    """Run what is missing of a set, and write each row at once.

    Args:
        name: one of `LISTS` or `ERAN`.
        folder: folder of the rows, `NAME.csv`.
        processes: instances at the same time.
        count: only the first of them; None for all.
        again: repeat those that are open.
    """
    jobs, keys, expected = _jobs(name)
    file = folder / f"{name}.csv"
    rows = read(file)
    kept = {key for key, row in rows.items() if row.result in ("sat", "unsat") or not again}
    jobs = [job for job in jobs[:count] if keys[job.number] not in kept]
    print(f"{name}: {len(kept)} answers are there, {len(jobs)} to do", flush=True)
    for job, found in decided(jobs, processes, timed, lambda job: None):
        cpu, _, reason = found.reason.partition("|")
        if not cpu.replace(".", "").isdigit():  # a process that was killed
            cpu, reason = str(found.seconds), found.reason
        row = Row(
            *(
                *keys[job.number],
                job.timeout,
                expected[job.number],
                found.word,
                round(found.seconds, 3),
                float(cpu),
            ),
            *(found.stage, found.work, found.lower_bound, reason),
        )
        rows[keys[job.number]] = row
        with whole_file(file) as temporary, temporary.open("w", encoding="utf-8", newline="") as content:
            writer = csv.DictWriter(content, [field.name for field in fields(Row)])
            writer.writeheader()
            writer.writerows(asdict(one) for one in rows.values())
        wrong = f" WRONG, expected {row.expected}" if row.is_wrong else ""
        print(f"{name} {len(rows)}: {row.network} {row.property} {row.result} {row.wall:.1f} s "
              f"({row.cpu:.1f} s of CPU time) {row.stage} {row.work}{wrong} {row.reason}", flush=True)  # fmt: skip


def _jobs(name: str) -> tuple[list[Job], list[tuple[str, str]], list[str]]:
    """Jobs, keys of rows, and expected answers; of ERAN networks the images that are classified correctly."""
    if name not in ERAN:
        found = read_instances(shared_folder() / name / "instances.csv")
        jobs = [
            Job(number, one.network, one.property_, one.timeout or SECONDS)
            for number, one in enumerate(found)
            if one.network is not None and one.property_ is not None
        ]
        return jobs, [one.key for one in found], [one.expected for one in found]
    given = eran(name)
    with torch.no_grad():
        right = given.model(given.x[:IMAGES]).argmax(1) == given.y[:IMAGES]
    images = right.nonzero()[:, 0].tolist()
    file = Path(f"{name}.safetensors")
    jobs = [Job(place, file, Path(str(image)), SECONDS) for place, image in enumerate(images)]
    return jobs, [(name, str(image)) for image in images], [""] * len(images)


def read(file: Path) -> dict[tuple[str, str], Row]:
    """The rows of a file by network and property; none if there is no file."""
    if not file.is_file():
        return {}
    with file.open(encoding="utf-8", newline="") as content:
        rows = [
            Row(**{name: _KINDS.get(name, str)(text) for name, text in one.items()})
            for one in csv.DictReader(content)
        ]
    return {(row.network, row.property): row for row in rows}


def table(rows: Mapping[str, Mapping[tuple[str, str], Row]]) -> str:
    """A line for each set that has rows."""
    lines = [
        "| set | done | solved | unsat | sat | wrong | open | median, s | longest, s | CPU time, s | goal |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in (*LISTS, *ERAN):
        found = list(rows.get(name, {}).values())
        if not found:
            continue
        counts = {word: sum(row.result == word for row in found) for word in ("unsat", "sat")}
        wall, cpu = [row.wall for row in found], sum(row.cpu for row in found)
        lines.append(
            f"| {name} | {len(found)} | {sum(counts.values())} | {counts['unsat']} | {counts['sat']} | "
            f"{sum(row.is_wrong for row in found)} | {len(found) - sum(counts.values())} | "
            f"{statistics.median(wall):.2f} | {max(wall):.1f} | {cpu:.0f} | {_goal(name, found, counts['unsat'])} |"
        )
    return "\n".join(lines) if len(lines) > 2 else "No set has run."


def _goal(name: str, found: list[Row], verified: int) -> str:
    if name in BARS:
        return f"solve {BARS[name]}"
    goal = f", goal {SHARES[name]:.0%}" if name in SHARES else ""
    return f"verified {verified / len(found):.0%} of clean{goal}"
