"""`robustly verify --instances`: a list of instances, its results file, and continuing after a kill."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from robustly.certification.instances import Instance, InstancesError, read_instances
from robustly.cli.terminal import PlainConsole
from robustly.cli.verifying import decide
from robustly.cli.verifying_results import Result, read_results, write_results
from robustly.cli.verifying_table import watched
from robustly.cli.verifying_workers import Decide, Job, decided
from robustly.files import write_text
from robustly.output_text import listed

RESULTS, WITNESSES = "results.csv", "counterexamples"


@dataclass(frozen=True)
class ListOptions:
    """Options for a list.

    Args:
        instances: the list.
        output: folder for results; None for `runs/verify-NAME`, by the name of the list or its folder.
        resume: keep the answers of the results file that is there.
        timeout: seconds for each instance; None for those of the list.
        only: keep instances with this text in the name of network or property; None for all.
        count: keep the first of these; None for all.
        processes: instances at the same time.
    """

    instances: Path
    output: Path | None
    resume: bool
    timeout: float | None
    only: str | None
    count: int | None
    processes: int


def verify_list(options: ListOptions, usual: float, decide_one: Decide = decide) -> int:
    """Decide a list of instances, show the answers as they come, and write each at once.

    Args:
        options: what to verify.
        usual: seconds for an instance for which neither the options nor the list have a limit.
        decide_one: decides one instance, in a process of its own.

    Returns:
        1 if an answer contradicts the expected one of the list, else 0.

    Raises:
        ValueError: the list is wrong, or files of it are missing; or there are results and `resume` is not set.
        OSError: a file cannot be written.
    """
    chosen = _chosen(options)
    folder = options.output or Path("runs") / f"verify-{_name(options.instances)}"
    file = folder / RESULTS
    before = read_results(file) if file.exists() else {}
    if before and not options.resume:
        raise InstancesError(
            f"{file} has {len(before)} results: add --resume to continue, or name another --output"
        )
    limits = {one.key: options.timeout or one.timeout or usual for one in chosen}
    results = {key: result for key, result in before.items() if result.is_final(limits.get(key, 0.0))}
    (folder / WITNESSES).mkdir(parents=True, exist_ok=True)
    jobs = [
        Job(number, one.network, one.property_, limits[one.key])
        for number, one in enumerate(chosen)
        if one.key not in results and one.network is not None and one.property_ is not None
    ]
    console, names = PlainConsole(highlight=False, soft_wrap=True), _witness_names(options.instances)
    shown = [results[one.key] for one in chosen if one.key in results]
    with watched(console, len(chosen), shown) as table:
        for job, found in decided(
            jobs, options.processes, decide_one, lambda job: table.started(chosen[job.number])
        ):
            one = chosen[job.number]
            results[one.key] = Result.of(one, job.timeout, found)
            if found.witness:
                write_text(folder / WITNESSES / f"{names[one.key]}.txt", f"sat\n{found.witness}")
            write_results(file, results.values())
            table.finished(results[one.key])
    final = [results[one.key] for one in chosen]
    console.print(f"results: {file.resolve().as_uri()}", markup=False)
    return 1 if any(result.is_wrong for result in final) else 0


def _chosen(options: ListOptions) -> Sequence[Instance]:
    """The instances to decide.

    Raises:
        InstancesError: there are none, or some of their files are missing.
    """
    every = read_instances(options.instances)
    text = options.only
    chosen = [one for one in every if text is None or text in one.onnx or text in one.vnnlib][: options.count]
    if not chosen:
        raise InstancesError(
            f"no network or property of the {len(every)} in {options.instances} has the text {text!r}"
        )
    missing = [
        name
        for one in chosen
        for name, found in ((one.onnx, one.network), (one.vnnlib, one.property_))
        if not found
    ]
    if missing:
        raise InstancesError(
            f"{options.instances}: missing files (also with the ending .gz): {listed(dict.fromkeys(missing))}; "
            "names are relative to the folder of the list or to its folders onnx and vnnlib"
        )
    return chosen


def _name(instances: Path) -> str:
    return instances.resolve().parent.name if instances.stem == "instances" else instances.stem


def _witness_names(instances: Path) -> dict[tuple[str, str], str]:
    """Names of counterexamples, by the names of the files; where these are equal, by their folders too."""
    parts = {
        one.key: [Path(name.removesuffix(".gz")).with_suffix("") for name in one.key]
        for one in read_instances(instances)
    }
    short = {key: "-".join(path.name for path in paths) for key, paths in parts.items()}
    count = Counter(short.values())
    return {
        key: short[key] if count[short[key]] == 1 else "-".join("-".join(p.parts).strip("/-") for p in parts[key])
        for key in parts
    }
