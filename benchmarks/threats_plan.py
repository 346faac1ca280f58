"""The methods, the threats and the settings of `threats.py`."""

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from methods import NORMALISATION
from robustly.cli.recipes import read_recipe, recipe_names
from robustly.evaluation.suites import suite_named
from robustly.evaluation.suites.composed import suite_from
from robustly.evaluation.suites.suite import Suite
from robustly.experiments.shortening import shortened

Stages = Mapping[str, Mapping[str, Any]]
DRAWS = {"attack": "random_draws", "draws": 20, "precision": "bfloat16"}
ASCENT = {"attack": "pgd", "steps": 20, "objective": "margin", "restarts": 2, "precision": "bfloat16"}
SEMANTIC: Stages = {"draws": DRAWS, "pgd": ASCENT}
FLOW: Stages = {"pgd": ASCENT, "stadv": {"attack": "stadv", "steps": 20}}
ANY_ORDER: Stages = {
    "draws": DRAWS,
    "pgd": ASCENT,
    "composite": {"attack": "composite", "steps": 5, "rounds": 2, "schedule_steps": 1},
}


@dataclass(frozen=True)
class Column:
    """A threat of the table.

    Args:
        title: head of its column.
        text: the threat.
        stages: attacks of its suite; None for the suite `quick`.
    """

    title: str
    text: str
    stages: Stages | None = None

    @property
    def kind(self) -> str:
        """Kind of the threat for suites."""
        return "any_order" if "&" in self.text else "chain" if "+" in self.text else self.text.partition(":")[0]

    def suite(self, name: str) -> Suite:
        """The suite of the column."""
        return suite_named("quick", self.kind) if self.stages is None else suite_from(name, self.stages, self.kind)

    def words(self, name: str) -> list[str]:
        """Words of the command that evaluates it."""
        if self.stages is None:
            return ["--threat", self.text, "--suite", "quick"]
        stages = json.dumps(self.stages)
        return ["--threat", self.text, "--suite", f"{name} stages", "--evaluation.stages", stages]


@dataclass(frozen=True)
class Method:
    """A method of the table.

    Args:
        title: its row.
        recipes: names of its recipe, of which the first that exists is used.
        settings: settings in place of the recipe's.
        routed: whether its network has threat domains, whose branches are attacked too.
    """

    title: str
    recipes: tuple[str, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    routed: bool = False


@dataclass(frozen=True)
class Setup:
    """Data, network and budget.

    Args:
        recipes: folder of the recipes.
        title: heading of its tables.
        epochs: epochs of all methods.
        steps: steps of the training attack under each threat.
        examples: training images.
        images: test images of the evaluation, from the first.
        robust_share: share of test images that attacks last on, for estimates of the time.
        columns: threats of the table by name.
        settings: from a recipe to settings of all methods.
        further: threats that count neither in the mean nor in the union.
    """

    recipes: str
    title: str
    epochs: int
    steps: int
    examples: int
    images: int
    robust_share: float
    columns: Mapping[str, Column]
    settings: Callable[[Mapping[str, Any]], dict[str, str]]
    further: Mapping[str, Column] = field(default_factory=dict)


METHODS = {
    "standard": Method("standard training", ("standard",)),
    "pgd_at": Method("PGD-AT, linf", ("pgd_at",)),
    "max": Method("MAX", ("max",)),
    "avg": Method("AVG", ("avg",)),
    "msd": Method("MSD", ("msd",)),
    "eat": Method("E-AT", ("eat",)),
    "gat": Method("composite AT (GAT)", ("gat",), {"method.inner.steps": "2"}),
    "tafd": Method("TaFD", ("tafd",), routed=True),
    "tafd_matched": Method("joint AT, parameters of TaFD", ("tafd_matched",)),
}
LP = ("linf", "l2", "l1")
"""Threats of MAX, AVG and MSD; E-AT trains without l2."""


def recipe_of(data: str, method: str) -> str | None:
    """Name of a method's recipe; None if it does not exist."""
    known, folder = recipe_names(), SETUPS[data].recipes
    names = [f"{folder}/{name}" for name in METHODS[method].recipes]
    return next((name for name in names if name in known), None)


def settings_of(data: str, method: str, epochs: int | None = None) -> dict[str, str]:
    """Settings of a method in place of its recipe's, of a shorter run with `epochs`."""
    setup, name = SETUPS[data], recipe_of(data, method)
    assert name is not None
    recipe = read_recipe(name)
    values = shortened(recipe, setup.epochs, setup.steps)
    inner = (recipe.get("method") or {}).get("inner") or {}
    if "method.inner.relative_step_size" in values:  # every threat's own default: a fifth of the size for l1
        del values["method.inner.relative_step_size"]
        if "relative_step_size" in inner:
            values["method.inner.relative_step_size"] = "null"
    if inner.get("mode") == "train":
        values["method.inner.mode"] = "eval"
    values |= setup.settings(recipe) | METHODS[method].settings
    return values | ({} if epochs is None else {"training.epochs": str(epochs)})


def _mnist(recipe: Mapping[str, Any]) -> dict[str, str]:
    return {"training.validation_steps": "5", "runtime.precision": "bf16-mixed"}


def _cifar(recipe: Mapping[str, Any]) -> dict[str, str]:
    shared = os.environ.get("ROBUSTLY_SHARED_DATA")
    if not shared or not (Path(shared) / "cifar10-jpeg").is_dir():
        sys.exit("set ROBUSTLY_SHARED_DATA to a folder with cifar10-jpeg/train.parquet and test.parquet")
    network = recipe["model"]
    return {
        "data.source": str((Path(shared) / "cifar10-jpeg").resolve()),
        "data.train_limit": str(SETUPS["cifar10"].examples),
        "data.test_limit": str(SETUPS["cifar10"].images),
        "data.validation": "250",
        "model.name": network["name"] if network["name"].startswith("tafd") else "resnet18",
        "model.width": f"{0.25 * network.get('width', 1.0):.4g}",  # a wider one has the parameters of TaFD
        **{f"model.{key}": value for key, value in NORMALISATION.items()},
        "optimizer.learning_rate": "0.1",
        "optimizer.weight_decay": "0.0005",
        "schedule": "{name: one_cycle, peak: 0.3}",
        "training.batch_size": "64",
        "training.validation_steps": "5",
        "runtime.precision": "bf16-mixed",
    }


def _columns(
    balls: tuple[str, str, str], colour: Column, flow: str, three: Column, six: Column
) -> dict[str, Column]:
    return {
        **{name: Column(text, text) for name, text in zip(LP, balls, strict=True)},
        "geometry": Column("rotation, shift", "affine:rotation=30,shift=3", SEMANTIC),
        "colour": colour,
        "flow": Column("StAdv flow", flow, FLOW),
        "caa3": three,
        "caa6": six,
        "corruptions": Column("corruptions", "corruption:3"),
    }


SETUPS = {
    "mnist": Setup(
        "mnist5k",
        "MNIST: 3,500 digits, `small_cnn` of half the width, 4 epochs, 5 steps, 500 test images",
        epochs=4,
        steps=5,
        examples=3500,
        images=500,
        robust_share=0.8,
        columns=_columns(
            ("linf:0.3", "l2:2", "l1:10"),
            Column("brightness, contrast", "brightness:0.2+contrast:0.3", SEMANTIC),
            "flow:0.7",
            Column("CAA3", "brightness:0.2&contrast:0.3&linf:0.3", ANY_ORDER),
            Column("CAA6 less colour", "rotation:10&brightness:0.2&contrast:0.3&linf:0.3", ANY_ORDER),
        ),
        settings=_mnist,
        further={"mnist_c": Column("MNIST-C", "mnist_c:1")},
    ),
    "cifar10": Setup(
        "cifar10",
        "CIFAR-10 (JPEG q75): 5,000 images, quarter-width ResNet-18, 4 epochs, 4 steps, 500 test images",
        epochs=4,
        steps=4,
        examples=5000,
        images=500,
        robust_share=0.3,
        columns=_columns(
            ("linf:8/255", "l2:0.5", "l1:12"),
            Column("hue, saturation, brightness", "hue:0.5+saturation:0.3+brightness:0.2", SEMANTIC),
            "flow:0.8",
            Column("CAA3", "hue:3.1415&saturation:0.3&linf:8/255", ANY_ORDER),
            Column(
                "CAA6",
                "hue:3.1415&saturation:0.3&rotation:10&brightness:0.2&contrast:0.3&linf:8/255",
                ANY_ORDER,
            ),
        ),
        settings=_cifar,
    ),
}
