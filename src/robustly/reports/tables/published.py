"""Published numbers of training methods, on other networks, all data and other budgets."""

import csv
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

ATTACKS = ("clean", "pgd_10", "pgd_20", "pgd_50", "pgd_100", "apgd", "cw", "aa")
"""Columns of `published.csv` with accuracies in per cent."""


@dataclass(frozen=True)
class Published:
    """One published row.

    Args:
        data: data set, such as `cifar10`.
        methods: names of the method in recipes.
        name: name of the method in the source.
        architecture: architecture of the network, and of its guide or teacher.
        epsilon: epsilon of the attacks, under linf.
        accuracy: shares in [0, 1] by attack.
        source: the publication.
    """

    data: str
    methods: tuple[str, ...]
    name: str
    architecture: str
    epsilon: str
    accuracy: Mapping[str, float]
    source: str

    @property
    def words(self) -> str:
        """Name, data, architecture, epsilon and source on one line."""
        return f"{self.name}, {self.data}, {self.architecture}, linf {self.epsilon}; {self.source}"


@cache
def published_rows() -> tuple[Published, ...]:
    """All rows in the package."""
    text = resources.files("robustly.reports.tables").joinpath("published.csv").read_text(encoding="utf-8")
    return tuple(
        Published(
            data=row["data"],
            methods=tuple(row["method"].split()),
            name=row["name"],
            architecture=row["architecture"],
            epsilon=row["epsilon"],
            accuracy={key: float(row[key]) / 100 for key in ATTACKS if row[key]},
            source=row["source"],
        )
        for row in csv.DictReader(text.splitlines())
    )


def rows_of_method(method: str) -> list[Published]:
    """All rows of a method, by its name in recipes, such as `at_awp`."""
    wanted = _parts(method)
    return [row for row in published_rows() if any(wanted == _parts(known) for known in row.methods)]


def published_row(
    recipe: str, attacks: Collection[str], *, model: str, epsilon: float, source: str = ""
) -> Published | None:
    """The published row of a recipe's method with a common attack, best of the same network and epsilon; or None.

    Args:
        recipe: name such as `cifar10/trades`, or the path of a recipe.
        attacks: columns of the table; rows without a number in any of them are left out.
        model: name of the network.
        epsilon: epsilon of the evaluation, under linf.
        source: source of the data, used if the recipe's folder is not the name of a data set.
    """
    folder, method = _data_and_method(recipe)
    data = _known_data(folder) or _known_data(source)
    found = [
        row for row in rows_of_method(method) if row.data == data and not row.accuracy.keys().isdisjoint(attacks)
    ]
    return min(
        found,
        key=lambda row: (
            row.accuracy.keys().isdisjoint(set(attacks) - {"clean"}),
            not _same_network(model, row.architecture),
            abs(_number(row.epsilon) - epsilon) > 1e-5,
        ),
        default=None,
    )


def _data_and_method(recipe: str) -> tuple[str, str]:
    parts = [part for part in re.split(r"[/\\]", recipe) if part]
    if not parts:
        return "", ""
    return parts[-2] if len(parts) > 1 else "", re.sub(r"\.ya?ml$", "", parts[-1])


def _known_data(text: str) -> str | None:
    """The longest name of a data set in the name of a folder or address."""
    plain = re.sub(r"[^a-z0-9]", "", text.lower())
    known = sorted({row.data for row in published_rows()}, key=len, reverse=True)
    return next((name for name in known if re.search(rf"{name}(?!\d)", plain)), None)


def _parts(method: str) -> frozenset[str]:
    """A method's parts as a set, without the name of a network and plain adversarial training."""
    words = frozenset(re.split(r"[^a-z0-9]+", method.lower())) - {"", "at", "pgd", "adv", "adversarial"}
    parts = frozenset(word for word in words if not re.match(r"(wrn|wide|rn|resnet|preact)", word))
    return parts or frozenset({"pgd_at"} if method else ())


def _same_network(model: str, architecture: str) -> bool:
    ours, theirs = (re.sub(r"[^a-z0-9]", "", text.lower()) for text in (model, architecture.partition(" ")[0]))
    return ours.startswith(theirs)


def _number(text: str) -> float:
    numerator, _, denominator = text.partition("/")
    return float(numerator) / float(denominator or 1)
