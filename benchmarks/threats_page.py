"""The page of `threats.py`: tables of means over seeds, and statements that follow from the rows."""

import math
import platform
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime

import torch

from dynat_study import mean_and_error
from methods import RESULTS
from threats_plan import LP, METHODS, SETUPS

Row = dict[str, str]


def difference(rows: Sequence[Row], one: str, other: str, key: str) -> tuple[float, float, int] | None:
    """Mean difference of two methods over their common seeds in points, its standard error, and the seeds.

    The error of one seed is not known (NaN). None without a common seed, or without the numbers.
    """
    values = [
        {row["seed"]: float(row[key]) for row in rows if row["method"] == name and row[key]}
        for name in (one, other)
    ]
    common = sorted(values[0].keys() & values[1].keys())
    if not common:
        return None
    mean, error = mean_and_error([values[0][seed] - values[1][seed] for seed in common])
    return mean, error, len(common)


def words_of(found: tuple[float, float, int]) -> str:
    """A difference in words."""
    points, error, seeds = found
    spread = "one seed" if math.isnan(error) else f"SE {error:.1f}, {seeds} seeds"
    return f"{points:+.1f} points ({spread})"


def reaches(found: tuple[float, float, int]) -> str:
    """Decision of the rule "reaches"."""
    points, error, _ = found
    return "no decision with one seed" if math.isnan(error) else "yes" if points >= -2 * error else "no"


def above(found: tuple[float, float, int]) -> str:
    """Decision of the rule "above", with the reverse."""
    points, error, _ = found
    if math.isnan(error):
        return "no decision with one seed"
    return "above" if points > 2 * error else "below" if points < -2 * error else "no difference shown"


def eat_against_max(rows: Sequence[Row]) -> list[str]:
    """Does the union of E-AT reach that of MAX, at 1/m of the gradient passes?"""
    found = {key: difference(rows, "eat", "max", key) for key in ("lp_union", "union")}
    if found["lp_union"] is None or found["union"] is None:
        return ["- E-AT against MAX: one of the two is not run on the same seed."]
    costs = {row["method"]: (int(row["forward"]), int(row["backward"])) for row in rows}
    ours, theirs = costs["eat"], costs["max"]
    attack = (ours[1] - 1) / (theirs[1] - 1)  # each has one backward pass of the outer loss
    lines = [
        f"- Does the union of E-AT reach that of MAX? Lp union: {words_of(found['lp_union'])}: "
        f"**{reaches(found['lp_union'])}**. Union of all threats: {words_of(found['union'])}: "
        f"**{reaches(found['union'])}**.",
        f"  Passes per image and epoch, forward and backward: {ours[0]} + {ours[1]} of E-AT, "
        f"{theirs[0]} + {theirs[1]} of MAX under m = {len(LP)} threats. The training attack of E-AT has "
        f"{attack:.2f} of the gradient passes of that of MAX (1/m = {1 / len(LP):.2f}), with the outer loss "
        f"{sum(ours) / sum(theirs):.2f} of all passes.",
    ]
    if max(float(row["union"]) for row in rows if row["method"] in ("eat", "max")) < 1:
        lines.append("  The union of all threats is below 1 % for both, so only the Lp union tells them apart.")
    return lines


def tafd_against_matched(rows: Sequence[Row], routed: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """Does TaFD have less negative transfer than joint training at equal parameters, and under its own attack?"""
    lines = []
    others = [row for row in rows if row["method"] != "tafd"]
    for title, given, keys in (
        ("under the common attacks", rows, ("mean", "union", *columns)),
        ("under the common attacks and those on every branch", [*others, *routed], ("mean", "union", *columns)),
        ("under PGD on the network and on every branch", rows, ("forced_mean",)),
    ):
        found = {key: difference(given, "tafd", "tafd_matched", key) for key in keys}
        known = {key: one for key, one in found.items() if one is not None}
        if not known:
            lines.append(f"- TaFD against joint AT of equal parameters, {title}: not run.")
            continue
        parts = [f"{key.removeprefix('forced_')} {words_of(one)}: {above(one)}" for key, one in known.items()]
        first = known[keys[0]]
        holds = {"above": "holds", "below": "fails"}.get(above(first), "is not shown")
        lines.append(f"- TaFD minus joint AT of equal parameters, {title}: {'; '.join(parts)}.")
        lines.append(f"  The claim of a higher mean at equal parameters **{holds}** here.")
    routed = [row for row in rows if row["method"] == "tafd" and row["forced_mean"]]
    if routed:
        plain, worst = (statistics.fmean(float(row[key]) for row in routed) for key in ("pgd_mean", "forced_mean"))
        lines.append(
            f"- Forced routes: PGD-20 on TaFD itself leaves a mean of {plain:.1f} %, with its results on the "
            f"branches {worst:.1f} % (200 images, all threats but corruptions)."
        )
    single = difference(rows, "tafd", "pgd_at", "linf")
    if single is not None:
        lines.append(
            f"- Negative transfer to linf: TaFD minus PGD-AT of linf alone, under linf: {words_of(single)}: "
            f"**{above(single)}**."
        )
    return lines


def best(rows: Sequence[Row], key: str) -> str:
    """The methods of the highest mean of a column, with it."""
    means = {}
    for name in METHODS:
        values = [float(row[key]) for row in rows if row["method"] == name]
        if values:
            means[name] = statistics.fmean(values)
    highest = max(means.values())
    names = [METHODS[name].title for name, value in means.items() if value == highest]
    return f"{', '.join(names)} ({highest:.1f} %)"


def table_of(data: str, rows: Sequence[Row], routed: Sequence[Row]) -> list[str]:
    """A table of means and standard errors, methods by rows; further threats have columns once they have numbers.

    Args:
        data: name of the data.
        rows: the rows of the runs.
        routed: their rows with attacks on the branches.
    """
    columns = SETUPS[data].columns
    further = {name: one for name, one in SETUPS[data].further.items() if any(row.get(name) for row in rows)}
    keys = ("clean", *columns, "mean", "lp_union", "union", *further)
    titles = ("clean", *(one.title for one in columns.values()), "mean", "Lp union", "union")
    titles = (*titles, *(one.title for one in further.values()))
    lines = [
        f"| method | seeds | {' | '.join(titles)} | passes | parameters | minutes |",
        f"| --- | --- | {' | '.join('---' for _ in titles)} | --- | --- | --- |",
    ]
    for name, method in METHODS.items():
        own = [row for row in rows if row["method"] == name]
        if not own:
            continue
        cells = [_cell([float(row[key]) for row in own if row.get(key)]) for key in keys]
        minutes = statistics.fmean(float(row["train_minutes"]) for row in own)
        passes = f"{own[0]['forward']} + {own[0]['backward']}"
        cells += [passes, f"{int(own[0]['parameters']):,}", f"{minutes:.1f}"]
        lines.append(f"| {method.title} | {len(own)} | {' | '.join(cells)} |")
        branches = [row for row in routed if row["method"] == name]
        if branches:
            cells = [_cell([float(row[key]) for row in branches if row.get(key)]) for key in keys]
            title = f"{method.title}, attacks on every branch too"
            lines.append(f"| {title} | {len(branches)} | {' | '.join(cells)} | | | |")
    return lines


def branches_of(rows: Sequence[Row], seeds_attacked: int) -> list[str]:
    """A table of PGD on the network beside PGD on its branches, as far as rows have these numbers."""
    known = [row for row in rows if row["forced_mean"]]
    if not known:
        return []
    lines = [
        "",
        "With attacks on the branches: mean accuracy over all threats but corruptions under PGD-20 on the",
        "cross-entropy from one start, on 200 test images. A network without branches has one number.",
        "",
        "| method | seeds | PGD on the network | and on every branch |",
        "| --- | --- | --- | --- |",
    ]
    for name, method in METHODS.items():
        own = [row for row in known if row["method"] == name]
        if own:
            cells = [_cell([float(row[key]) for row in own]) for key in ("pgd_mean", "forced_mean")]
            lines.append(f"| {method.title} | {len(own)} | {' | '.join(cells)} |")
    if not seeds_attacked:
        lines += ["", "The attacks on the branches beside the suites of the table above are not run (`--routes`)."]
    return lines


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "not run"
    mean, error = mean_and_error(list(values))
    return f"{mean:.1f}" if math.isnan(error) else f"{mean:.1f} ± {error:.1f}"


def write_page(stored: dict[str, list[Row]], routed: dict[str, list[Row]], doc: str) -> None:
    """Write `threats.md` from the rows of all data sets.

    Args:
        stored: rows by data set.
        routed: rows with attacks on the branches, by data set.
        doc: docstring of the benchmark, whose paragraphs on the setting and the rules are repeated.
    """
    paragraphs = doc.split("\n\n")
    lines = ["# Training against several threats, under nine", ""]
    for number in (2, 3, 4):
        lines += [*paragraphs[number].splitlines(), ""]
    for data, rows in stored.items():
        setup = SETUPS[data]
        lines += [f"## {setup.title}", ""]
        if not rows:
            lines += ["Not run.", ""]
            continue
        lines += [*table_of(data, rows, routed[data]), *branches_of(rows, len(routed[data]))]
        lines += ["", "### What came out", ""]
        lines += eat_against_max(rows) + tafd_against_matched(rows, routed[data], tuple(setup.columns))
        lines += [
            f"- Highest mean over the threats: {best(rows, 'mean')}; highest Lp union: {best(rows, 'lp_union')}; "
            f"highest union: {best(rows, 'union')}."
        ]
        done = {row["method"] for row in rows}
        left = [method.title for name, method in METHODS.items() if name not in done]
        left += [
            f"the column {one.title}"
            for name, one in setup.further.items()
            if not any(row.get(name) for row in rows)
        ]
        if left:
            lines.append(f"- Not run: {'; '.join(left)}.")
        every = [*setup.columns.values(), *setup.further.values()]
        threats = "; ".join(f"{one.title} `{one.text}`" for one in every if one.title != one.text)
        lines += ["", f"Threats: {threats}.", ""]
    lines += [
        "Accuracy in %, means over seeds ± standard error of the mean; the 95 % interval of one number on 500 test",
        "images reaches at most 4.4 points each way. Passes: forward + backward for each training image and epoch,",
        "as `robustly train --dry-run` announces them. Minutes of training on one thread of a busy machine, pauses",
        "included: an order of magnitude. `python benchmarks/threats.py`, "
        f"{datetime.now(UTC):%Y-%m-%d}, torch {torch.__version__}, {platform.machine()}.",
    ]
    (RESULTS / "threats.md").write_text("\n".join(lines) + "\n")
