"""Named domains: sources of the same classes, one of which is left out of training and selection.

The protocol is that of domain generalisation (Gulrajani and Lopez-Paz, ICLR 2021), with robust accuracy as in
Alhamoud et al., "Generalizability of adversarial robustness under distribution shifts" (TMLR 2023). The left-out
domain is the target, the others are the sources.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from robustly.data.class_names import folded
from robustly.data.digests import row_digests
from robustly.data.images import ImageData
from robustly.data.rows import Rows
from robustly.data.splits import Chosen, SplitRule, Splits, choose_splits, choose_test
from robustly.output_text import listed
from robustly.settings import nearest

Part = Literal["target", "source"]
"""Test images of the left-out domain, or those of the others."""
STRIDE = 10**9
"""Ids of examples: STRIDE times the place of the domain, from 1, plus the number of the row in its source."""
MOST = 999
"""Largest number of domains; ids of extra images begin above theirs."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")
_FORM = "write domains as NAME=SOURCE,NAME=SOURCE, or as a mapping from names to sources"


@dataclass(frozen=True)
class Domain:
    """A domain: its name, and the source of its images as `DataConfig.source` takes it."""

    name: str
    source: str

    def __str__(self) -> str:
        return f"{self.name}={self.source}"


@dataclass(frozen=True, eq=False)
class DomainRows:
    """The rows of a domain.

    Args:
        domain: name and source.
        place: place among the domains, from 1.
        parts: the parts of the source.
        rule: rule of its splits.
    """

    domain: Domain
    place: int
    parts: Mapping[str, Rows]
    rule: SplitRule

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names of the source."""
        return next(iter(self.parts.values())).classes

    def read(self, chosen: Chosen) -> ImageData:
        """Decode rows; their ids name the domain.

        Raises:
            ValueError: the source has too many rows for ids.
        """
        found = chosen.read()
        if int(found.ids.max()) >= STRIDE:
            raise ValueError(f"{found.source}: a domain has at most {STRIDE:,} rows")
        return replace(found, ids=found.ids + self.place * STRIDE)


def parse_domains(given: Any) -> tuple[Domain, ...]:
    """Domains of a text `NAME=SOURCE,NAME=SOURCE`, a list of `NAME=SOURCE`, or a mapping from names to sources.

    Only in a list or a mapping may a source hold a comma.

    Raises:
        ValueError: a part of another form, a name or a source that occurs twice, fewer than two domains.
    """
    if isinstance(given, Mapping):
        pairs = [(str(name), "=", str(source)) for name, source in given.items()]
    else:
        parts = given.split(",") if isinstance(given, str) else given
        pairs = [str(part).partition("=") for part in parts]
    found = []
    for left, equals, right in pairs:
        name, source = left.strip(), right.strip()
        if not equals or not source:
            raise ValueError(f"domains: {f'{name}{equals}'!r} names no source: {_FORM}")
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"domains: {name[:60]!r} is not a name of a domain: use at most 40 letters, digits and _ . -"
            )
        found.append(Domain(name, source))
    twice = [name for name, count in Counter(one.name for one in found).items() if count > 1]
    if twice:
        raise ValueError(f"domains: the name {twice[0]!r} occurs twice: each domain has a name of its own")
    by_source: dict[str, str] = {}
    for one in found:
        other = by_source.setdefault(str(Path(one.source).expanduser().resolve()), one.name)
        if other != one.name:
            raise ValueError(
                f"domains: {other} and {one.name} have the same source {one.source!r}: the gap between them would "
                "be 0 by construction"
            )
    if len(found) < 2:
        named = f"only {found[0].name}" if found else "none"
        raise ValueError(f"domains: there is {named}: name at least two, as one is left out of training")
    if len(found) > MOST:
        raise ValueError(f"domains: there are {len(found)}: at most {MOST} are possible")
    return tuple(found)


def check_left_out(domains: Sequence[Domain], name: str | None) -> None:
    """Check that one of the domains is left out.

    Raises:
        ValueError: no name, or an unknown one.
    """
    names = [one.name for one in domains]
    if name is None:
        raise ValueError(f"leave_out is missing: name the domain to leave out of training: {', '.join(names)}")
    if name not in names:
        near = nearest(name, names)
        raise ValueError(f"leave_out: there is no domain {name[:60]!r}{near}: the domains are {', '.join(names)}")


def domain_title(domains: Sequence[Domain], left_out: str, part: Part | None = None) -> str:
    """The domains in messages and reports: all, or those of one part."""
    sources = ", ".join(one.name for one in domains if one.name != left_out)
    noun = "domain" if len(domains) == 2 else "domains"
    if part == "target":
        return f"domain {left_out} (left out of training)"
    return f"{noun} {sources}" + ("" if part == "source" else f" without {left_out}")


def with_sources(domains: Sequence[Domain], change: Callable[[str], str]) -> tuple[str, ...]:
    """The texts of domains with changed sources, such as absolute paths."""
    return tuple(str(Domain(one.name, change(one.source))) for one in domains)


def matched(domains: Sequence[DomainRows], left_out: str) -> list[DomainRows]:
    """Domains with the classes of the first source domain, in its order; classes are matched by name.

    Names are compared without case, and with `_` and `-` as spaces.

    Raises:
        ValueError: the domains have different classes; the message names those that are missing, and where.
    """
    own = {one.domain.name: {folded(name): name for name in one.classes} for one in domains}
    every = {key: name for names in own.values() for key, name in names.items()}
    lacking = {domain: [name for key, name in every.items() if key not in names] for domain, names in own.items()}
    problems = [f"{domain} lacks {listed(names)}" for domain, names in lacking.items() if names]
    if problems:
        raise ValueError(
            f"the domains have different classes: {'; '.join(problems)}: give all the same classes, or name all "
            "classes with --data.classes FILE"
        )
    classes = next(one.classes for one in domains if one.domain.name != left_out)
    return [
        replace(one, parts={name: rows.renumbered(classes) for name, rows in one.parts.items()}) for one in domains
    ]


def domain_splits(domains: Sequence[DomainRows], left_out: str) -> Splits:
    """Training and validation images of the source domains; test images of the target and of the sources.

    Args:
        domains: all domains, with the same classes.
        left_out: name of the target domain. It gives test images only.

    Raises:
        ValueError: as `choose_splits`; different shapes; test images of the target among the training or
            validation images.
    """
    groups: dict[str, list[ImageData]] = {"train": [], "validation": [], "test": []}
    for one in domains:
        if one.domain.name != left_out:
            for name, chosen in zip(groups, choose_splits(one.parts, one.rule), strict=True):
                groups[name].append(one.read(chosen))
    target = domain_test(domains, left_out, "target")
    names = [one.domain.name for one in domains if one.domain.name != left_out]
    check_shapes([*zip(names, groups["train"], strict=True), (left_out, target)])
    train, validation, test = (_joined(some, f"domains {', '.join(names)} {key}") for key, some in groups.items())
    rows = row_digests(target)
    seen = int((rows.found_in(row_digests(train)) | rows.found_in(row_digests(validation))).sum())
    if seen:
        raise ValueError(
            f"{seen} of the {len(target)} test images of the left-out domain {left_out} are among the training or "
            "validation images of the other domains: take them out"
        )
    return Splits(train, validation, target, test)


def domain_test(domains: Sequence[DomainRows], left_out: str, part: Part) -> ImageData:
    """Test images of the target or of all source domains; a domain has the same ones in both roles.

    Raises:
        ValueError: as `choose_test`; source domains with images of different shapes.
    """
    chosen = [one for one in domains if (one.domain.name == left_out) is (part == "target")]
    found = [one.read(choose_test(one.parts, one.rule)) for one in chosen]
    names = [one.domain.name for one in chosen]
    check_shapes(list(zip(names, found, strict=True)))
    return _joined(found, domain_title([one.domain for one in domains], left_out, part))


def check_shapes(domains: Sequence[tuple[str, ImageData]]) -> None:
    """Check that the images of all domains have one shape.

    Raises:
        ValueError: they differ; the message names two domains.
    """
    first, images = domains[0]
    for name, other in domains[1:]:
        if other.shape != images.shape:
            raise ValueError(
                f"the domains {first} and {name} have images of the shapes {images.shape} and {other.shape} "
                "(channels, height, width): set data.image_size or data.channels to make them equal"
            )


def _joined(parts: Sequence[ImageData], source: str) -> ImageData:
    """Several sets as one, in turns, so that the first examples are of all domains."""
    turns = torch.cat([torch.arange(len(one)) for one in parts])
    order = turns.argsort(stable=True)
    images, labels, ids = (
        torch.cat([getattr(one, name) for one in parts])[order] for name in ("images", "labels", "ids")
    )
    return ImageData(images, labels, ids, parts[0].classes, source)
