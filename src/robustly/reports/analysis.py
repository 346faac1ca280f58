"""`analysis.json`: input gradients, loss surfaces, and the union of several threats."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from robustly.evidence import EvidenceError
from robustly.evidence.partial_unions import LeftOut
from robustly.evidence.records import Inline, from_json, read_object
from robustly.evidence.unions import ThreatUnion

SCHEMA = 2
"""The version of `analysis.json` that this package reads."""


@dataclass(frozen=True)
class Histogram:
    """Numbers of examples between edges; the last bin also counts larger values.

    Raises:
        ValueError: the edges are not one more than the counts.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.edges) != len(self.counts) + 1:
            raise ValueError("edges should be one more than counts")


@dataclass(frozen=True)
class Spread:
    """The distribution of a quantity over `count` examples: median and deciles, None without an example."""

    count: int
    median: float | None = None
    low: float | None = None
    high: float | None = None
    histogram: Histogram | None = None


@dataclass(frozen=True)
class FirstOrderRadii:
    """First-order distances to the boundary of the correctly classified images.

    Args:
        spread: distribution of the finite radii.
        epsilon: the evaluated epsilon.
        beyond_epsilon: images with a larger radius.
        unreachable: images without a gradient.
    """

    spread: Annotated[Spread, Inline()]
    epsilon: float
    beyond_epsilon: int
    unreachable: int


@dataclass(frozen=True)
class Gradients:
    """Input gradients on `count` clean images: measures by name, and first-order radii of the `correct` ones."""

    count: int
    correct: int
    measures: Mapping[str, Spread]
    radius: FirstOrderRadii


@dataclass(frozen=True)
class Surface:
    """A loss surface on a square grid; rows follow the second direction.

    Raises:
        ValueError: the grid does not have the size of the axis.
    """

    axis: tuple[float, ...]
    loss: NDArray[np.float64]
    roughness: float
    largest_roughness: float
    misclassified_share: float
    margin: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        size = len(self.axis)
        if size < 3:
            raise ValueError("axis should be at least three numbers")
        for name, grid in (("loss", self.loss), ("margin", self.margin)):
            if grid is not None and grid.shape != (size, size):
                raise ValueError(f"{name} should be {size} rows of {size} numbers")


@dataclass(frozen=True)
class InputSurface:
    """The surface around one image."""

    id: int
    label: str
    surface: Annotated[Surface, Inline()]

    @property
    def title(self) -> str:
        """The image, in words."""
        return f"example {self.id} ({self.label})"


@dataclass(frozen=True)
class WeightSurface:
    """The mean surface of some images around the weights."""

    images: int
    surface: Annotated[Surface, Inline()]

    @property
    def title(self) -> str:
        """The images, in words."""
        return f"{self.images} examples"


@dataclass(frozen=True)
class Landscapes:
    """Surfaces around images and around the weights."""

    inputs: tuple[InputSurface, ...] = ()
    weights: WeightSurface | None = None


@dataclass(frozen=True)
class AnalysedModel:
    """The network that was analysed."""

    weights_sha256: str | None = None


@dataclass(frozen=True)
class AnalysedThreat:
    """The threat of the analysis, as users write it."""

    text: str


@dataclass(frozen=True)
class Analysis:
    """The content of `analysis.json`; missing parts are None or empty."""

    threat: AnalysedThreat
    model: AnalysedModel = AnalysedModel()
    gradients: Gradients | None = None
    landscapes: Landscapes | None = field(default=None)
    union: ThreatUnion | None = None
    left_out: tuple[LeftOut, ...] = ()


def read_analysis(file: Path) -> Analysis:
    """Read an analysis.

    Raises:
        EvidenceError: the file has another schema, or a field is missing or of the wrong kind.
    """
    values = read_object(file)
    schema = values.get("schema")
    if schema != SCHEMA:
        raise EvidenceError(
            f"{file} is written in schema {str(schema)[:20]}, but this robustly reads schema {SCHEMA}: "
            "run robustly analyse again."
        )
    return from_json(Analysis, values, str(file), strict=False)
