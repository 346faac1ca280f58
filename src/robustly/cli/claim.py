"""`robustly export --robustbench`: the entry of an evaluation for RobustBench's leaderboard."""

from pathlib import Path

from robustly.cli.targets import check_new_file
from robustly.cli.terminal import PlainConsole
from robustly.compat.robustbench import claim


def write_claim(run: Path, target: Path, overwrite: bool) -> None:
    """Write the JSON file of an entry, and beside it the text of the issue as `.md`.

    Args:
        run: a run, or the folder of an evaluation.
        target: the JSON file; its name is that of the entry.
        overwrite: whether files that exist may be replaced.

    Raises:
        ValueError: a target that exists or has another ending, or an evaluation that the leaderboard does not take.
        OSError: a file cannot be written.
    """
    issue = target.with_suffix(".md")
    for path, suffix in ((target, ".json"), (issue, ".md")):
        check_new_file("robustbench", path, suffix, overwrite)
    found = claim(run, target.stem)
    found.write(target, issue)
    console = PlainConsole()
    lines = [f"robustbench: {target}", f"robustbench: {issue}", *(f"! {remark}" for remark in found.remarks)]
    lines += [f"to be filled in by the authors: {', '.join(found.missing)}"] if found.missing else []
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
