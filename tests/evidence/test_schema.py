"""The schema: names, types, documentation, and a room without PyTorch."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import robustly
from half_space import HalfSpaceProof, StraightAcross
from robustly.evaluation import Suite
from robustly.evidence.schema import (
    CLASSIFICATION,
    RESERVED,
    AttackColumns,
    Verdict,
    column_fields,
    described_columns,
)

ROOM = Path(robustly.__file__).parent / "evidence"


def test_every_column_has_a_name_of_its_own_a_type_and_a_meaning() -> None:
    described = described_columns()
    names = [name for name, _ in described]
    assert len(set(names)) == len(names)
    assert {"id", "NAME.broken", "worst_case.broken", "certificate.NAME.verdict", "curve.distance"} <= set(names)
    assert all(len(column.meaning) > 9 for _, column in described)
    of_classes = {name for name, column in described if column.goal == CLASSIFICATION}
    assert {"label", "clean_prediction", "clean_margin", "NAME.prediction", "NAME.margin"} <= of_classes
    assert of_classes.isdisjoint({"id", "NAME.broken", "NAME.distance", "worst_case.broken", "curve.distance"})


def test_an_attack_that_was_not_run_has_the_columns_of_the_schema() -> None:
    columns = AttackColumns.untried(5)
    for name, column in column_fields(AttackColumns).items():
        values = getattr(columns, name)
        assert (values.shape, values.dtype) == ((5,), column.dtype)
    assert np.isnan(columns.distance).all()
    assert np.isnan(columns.margin).all()
    assert (columns.prediction == -1).all()
    assert not columns.broken.any()
    assert not columns.tried.any()


def test_verdicts_have_words() -> None:
    assert [one.word for one in Verdict] == ["unknown", "verified", "falsified", "timeout", "error"]


@pytest.mark.parametrize("name", RESERVED)
def test_no_attack_and_no_certificate_has_a_name_of_the_schema(name: str) -> None:
    with pytest.raises(ValueError, match=f"plain words other than.*{name}"):
        Suite("s", {name: StraightAcross()})
    with pytest.raises(ValueError, match=f"plain words other than.*{name}"):
        Suite("s", {}, certificates={name: HalfSpaceProof()})


@pytest.mark.parametrize("room", ["evidence", "reports"])
def test_the_room_needs_no_pytorch(room: str) -> None:
    """With the package's own `__init__` out of the way, every module can be imported without torch."""
    code = f"""
import importlib, json, pkgutil, sys, types
package = types.ModuleType("robustly")
package.__path__ = [{str(ROOM.parent)!r}]
sys.modules["robustly"] = package
for name in ("torch", "safetensors.torch", "jaxtyping"):
    sys.modules[name] = None
room = importlib.import_module("robustly.{room}")
for found in pkgutil.walk_packages(room.__path__, "robustly.{room}."):
    importlib.import_module(found.name)
print(json.dumps(sorted({{name.split(".")[1] for name in sys.modules if name.startswith("robustly.")}})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    allowed = {
        "evidence",
        "array_files",
        "cost_matrix",
        "documents",
        "files",
        "memory",
        "output_text",
        "statistics",
        room,
    }
    assert set(json.loads(done.stdout)) <= allowed


def test_names_of_columns_are_written_in_this_room_only() -> None:
    """Elsewhere columns, tensors and summary fields are attributes of records."""
    fields = {name.rpartition(".")[2] for name, _ in described_columns()} | {"ids", "images", "theta"}
    built = re.compile(rf"\}}\.({'|'.join(sorted(fields))})\b")
    whole = re.compile(r"""["'](worst_case\.|certificate\.|curve\.|clean_prediction|clean_margin)|summary\[""")
    for path in ROOM.parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if ROOM not in path.parents:
            assert not built.search(text), path
            assert not whole.search(text), path
    for forbidden in ('f"{name}.broken"', "'worst_case.broken'", 'summary["clean"]', 'table["clean_prediction"]'):
        assert built.search(forbidden) or whole.search(forbidden), forbidden
