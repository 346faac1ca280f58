"""Names of domains and of their sources, and the ids of their examples.

Domains are several sources of the same classes. One is left out of training and selection (the target); the others
are the sources.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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


def domain_title(domains: Sequence[Domain], left_out: str, part: Part | None = None) -> str:
    """The domains in messages and reports: all, or those of one part."""
    sources = ", ".join(one.name for one in domains if one.name != left_out)
    noun = "domain" if len(domains) == 2 else "domains"
    if part == "target":
        return f"domain {left_out} (target)"
    return f"{noun} {sources}" + ("" if part == "source" else f" without {left_out}")


def with_sources(domains: Sequence[Domain], change: Callable[[str], str]) -> tuple[str, ...]:
    """The texts of domains with changed sources, such as absolute paths."""
    return tuple(str(Domain(one.name, change(one.source))) for one in domains)
