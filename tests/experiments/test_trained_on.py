"""The threats that a network was trained on, from the settings of its run and of those before it."""

from pathlib import Path

from robustly.experiments.configuration import RunConfig, build_config
from robustly.experiments.keys import UNTRAINED
from robustly.experiments.run_folder import create_run
from robustly.experiments.trained_on import trained_on


def config(weights: Path | None = None, inner: str | None = "pgd", **settings: object) -> RunConfig:
    model = {} if weights is None else {"weights": str(weights)}
    method = {"inner": inner, "loss": "adversarial" if inner else "clean"}
    return build_config({"method": method, "model": model, **settings})


def texts(found: RunConfig) -> list[str] | None:
    threats = trained_on(found)
    return None if threats is None else [str(threat) for threat in threats]


def test_an_inner_maximisation_uses_the_first_threat_or_all() -> None:
    assert texts(config(threat="l2:1")) == ["l2:1"]
    assert texts(config(inner="max", threats=["linf:0.1", "l2:1"])) == ["linf:0.1", "l2:1"]
    assert texts(config(inner=None, threats=["linf:0.1", "l2:1"])) == []


def test_earlier_runs_count_and_unknown_weights_do_not(tmp_path: Path) -> None:
    create_run(tmp_path / "first", config(threat="rotation:9"))
    create_run(tmp_path / "second", config(tmp_path / "first" / "checkpoints" / "best.safetensors", threat="l2:1"))
    weights = tmp_path / "second" / "model.safetensors"
    assert texts(config(weights, threat="linf:0.1")) == ["linf:0.1", "l2:1", "rotation:9"]
    assert texts(config(weights, inner=None)) == ["l2:1", "rotation:9"]
    assert texts(config(weights, recipe=UNTRAINED)) == ["l2:1", "rotation:9"]
    assert texts(config(tmp_path / "elsewhere.pt", recipe=UNTRAINED)) is None
    assert texts(config(recipe=UNTRAINED)) is None


def test_a_circle_of_weights_ends(tmp_path: Path) -> None:
    create_run(tmp_path / "one", config(tmp_path / "two" / "model.safetensors", threat="l1:3"))
    create_run(tmp_path / "two", config(tmp_path / "one" / "model.safetensors", threat="l2:1"))
    assert texts(config(tmp_path / "two" / "model.safetensors", threat="l2:1")) == ["l2:1", "l1:3"]
