"""Published numbers of training methods, for comparison: of another network, all data, another budget."""

import csv
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

ATTACKS = ("clean", "pgd_10", "pgd_20", "pgd_50", "pgd_100", "cw", "aa")
"""The columns of `published.csv` that hold accuracies, in per cent."""


@dataclass(frozen=True)
class Published:
    """One published row.

    Args:
        data: data set, such as `cifar10`.
        methods: the method by the names that recipes may give it.
        name: what the source calls it.
        architecture: of the network, and of its guide or teacher.
        epsilon: of the attacks, under linf.
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
        """Everything but the numbers, on one line."""
        return f"{self.name}, {self.data}, {self.architecture}, linf {self.epsilon}; {self.source}"


@cache
def published_rows() -> tuple[Published, ...]:
    """All rows that the package ships."""
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
    """All rows of a method, by what recipes may call it, such as `at_awp`."""
    wanted = _parts(method)
    return [row for row in published_rows() if any(wanted == _parts(known) for known in row.methods)]


def published_row(
    recipe: str, attacks: Collection[str], *, model: str, epsilon: float, source: str = ""
) -> Published | None:
    """The published row of a recipe's method, if any: with a common attack, of the same network and epsilon.

    Args:
        recipe: `cifar10/trades`, or the path of such a file.
        attacks: the columns of the table; a row without a number in any of them is left out.
        model: name of the network.
        epsilon: of the evaluation, under linf.
        source: where the data come from; it names the data set where the recipe's folder does not.
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
    """The data set that a folder or an address names; the longest one that fits."""
    plain = re.sub(r"[^a-z0-9]", "", text.lower())
    known = sorted({row.data for row in published_rows()}, key=len, reverse=True)
    return next((name for name in known if re.search(rf"{name}(?!\d)", plain)), None)


def _parts(method: str) -> frozenset[str]:
    """A method's parts; their order does not matter, nor do a network's name or plain adversarial training."""
    words = frozenset(re.split(r"[^a-z0-9]+", method.lower())) - {"", "at", "pgd", "adv", "adversarial"}
    parts = frozenset(word for word in words if not re.match(r"(wrn|wide|rn|resnet|preact)", word))
    return parts or frozenset({"pgd_at"} if method else ())


def _same_network(model: str, architecture: str) -> bool:
    ours, theirs = (re.sub(r"[^a-z0-9]", "", text.lower()) for text in (model, architecture.partition(" ")[0]))
    return ours.startswith(theirs)


def _number(text: str) -> float:
    numerator, _, denominator = text.partition("/")
    return float(numerator) / float(denominator or 1)
