"""Named domains: sources of the same classes, one of which is left out of training and selection.

The protocol is that of domain generalisation (Gulrajani and Lopez-Paz, ICLR 2021), with robust accuracy as in
Alhamoud et al., "Generalizability of adversarial robustness under distribution shifts" (TMLR 2023). The left-out
domain is the target, the others are the sources.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from robustly.data.class_names import folded
from robustly.data.digests import row_digests
from robustly.data.images import ImageData
from robustly.data.rows import Rows
from robustly.data.splits import Chosen, SplitRule, Splits, choose_splits, choose_test
from robustly.evidence.domain_names import STRIDE, Domain, Part, domain_title
from robustly.output_text import listed
from robustly.settings import nearest


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


def all_images(domain: DomainRows) -> ImageData:
    """Every image of a domain, those without a label as class 0, to recognise them among others."""
    parts = [
        ImageData(
            rows.read(torch.arange(len(rows))),
            rows.labels.clamp(min=0),
            torch.arange(len(rows)),
            rows.classes,
            f"{domain.domain.source} (domain {domain.domain.name})",
        )
        for rows in domain.parts.values()
    ]
    check_shapes([(domain.domain.name, one) for one in parts])
    return _joined([replace(one, ids=one.ids + STRIDE * place) for place, one in enumerate(parts)], parts[0].source)


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
