"""Averaged weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from training_tools import NormNet, Splits, final, last, make_job, make_step, mlp, run, same

from robustly.training import (
    ExponentialAverage,
    FreeInner,
    Method,
    MethodError,
    Moment,
    Observer,
    Part,
)


def test_the_decay_grows_as_published() -> None:
    average = ExponentialAverage(decay=0.995, warm_up=0.0)
    expected = {0: 0.1, 10: 0.55, 1000: 0.99108911, 1789: 0.99499722, 1790: 0.995, 10**6: 0.995}
    for count, decay in expected.items():
        assert average.decay_at(count, 10**7) == pytest.approx(decay, abs=1e-8)
    late = ExponentialAverage(decay=0.995, warm_up=0.025)
    assert [late.decay_at(count, 4000) for count in (0, 99)] == [0.0, 0.0]
    assert [late.decay_at(count, 4000) for count in (100, 110)] == pytest.approx([0.1, 0.55])


class Weights(Observer):
    """Keep the weights after every step."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.seen = model, list[dict[str, Tensor]]()

    def stepped(self, moment: Moment, loss: float, images: int) -> None:
        self.seen.append({name: value.clone() for name, value in self.model.state_dict().items()})


def test_the_average_follows_its_recursion_and_buffers_are_copied(little: Splits, tmp_path: Path) -> None:
    part = ExponentialAverage(decay=0.3, warm_up=0.2)  # of 10 steps: the first 2 only follow
    job = make_job(little, Method(parameters=(part,)), NormNet(), training={"select_by": "clean"})
    weights = Weights(job.model)
    outcome = run(job, tmp_path, weights)
    trained = {name for name, _ in job.model.named_parameters()}
    average: dict[str, Tensor] = {}
    by_epoch = []
    for count, now in enumerate(weights.seen):
        d = 0.0 if count < 2 else min(0.3, (1 + count - 2) / (10 + count - 2))
        for name, value in now.items():
            average[name] = d * average[name] + (1 - d) * value if name in trained and count else value
        if count % 5 == 4:
            by_epoch.append(dict(average))
    memory = last(tmp_path)["memory"]["parameters.ExponentialAverage"]
    released = final(tmp_path)
    assert memory.keys() == released.keys() == average.keys()
    for name, value in average.items():
        assert torch.allclose(memory[name], value, atol=1e-6), name
        assert torch.allclose(released[name], by_epoch[outcome.best_epoch - 1][name], atol=1e-6), name
        if name not in trained:
            assert torch.equal(memory[name], weights.seen[-1][name]), name
    assert not torch.allclose(memory["head.weight"], weights.seen[-1]["head.weight"])


def test_an_average_that_forgets_at_once_is_the_model(little: Splits, tmp_path: Path) -> None:
    averaged = make_job(little, Method(parameters=(ExponentialAverage(decay=0.0, warm_up=0.0),)), NormNet())
    rows = run(averaged, tmp_path / "averaged").rows
    plain = make_job(little, Method(), NormNet())
    assert [row["validation_clean_accuracy"] for row in run(plain, tmp_path / "plain").rows] == [
        row["validation_clean_accuracy"] for row in rows
    ]
    assert same(final(tmp_path / "averaged"), final(tmp_path / "plain"))
    assert same(last(tmp_path / "averaged")["networks"]["model"], last(tmp_path / "plain")["networks"]["model"])


def test_replays_of_a_batch_are_steps_of_the_average() -> None:
    """Free-AT with four replays: the fifth step of the run has the fifth factor."""
    net, memory, expected = mlp(norm=False), {}, None  # type: ignore[var-annotated]
    part, inner = ExponentialAverage(decay=0.99, warm_up=0.25), FreeInner(replays=4)
    factors = [0.0, 0.0, 0.1, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15]
    x, y = torch.rand(4, 6, dtype=torch.float64), torch.arange(4)
    for count, factor in enumerate(factors):
        with torch.no_grad():
            net[0].weight.normal_(generator=torch.Generator().manual_seed(count))  # type: ignore[union-attr, operator]
        weight = net[0].weight.detach().clone()  # type: ignore[union-attr, operator]
        expected = weight if expected is None else factor * expected + (1 - factor) * weight
        moment = Moment(0, count // 4, 2, 1)
        part.after_step(make_step(x, y, net, inner=inner, moment=moment, memory=memory, replay=count % 4))
        assert torch.allclose(memory["ExponentialAverage"]["0.weight"], expected, atol=1e-12), count


def test_an_average_does_not_change_training(little: Splits, tmp_path: Path) -> None:
    run(make_job(little, Method(parameters=(ExponentialAverage(0.9, 0.0),)), NormNet()), tmp_path / "averaged")
    run(make_job(little, Method(), NormNet()), tmp_path / "plain")
    assert same(last(tmp_path / "averaged")["networks"]["model"], last(tmp_path / "plain")["networks"]["model"])
    assert not same(final(tmp_path / "averaged"), final(tmp_path / "plain"))


def test_the_average_of_constant_weights_is_them(little: Splits, tmp_path: Path) -> None:
    model = NormNet()
    before = model.conv.weight.detach().clone()
    model.conv.requires_grad_(False)
    run(make_job(little, Method(parameters=(ExponentialAverage(0.9, 0.0),)), model), tmp_path)
    assert torch.allclose(
        last(tmp_path)["memory"]["parameters.ExponentialAverage"]["conv.weight"], before, atol=1e-7
    )


@pytest.mark.parametrize("settings", [{"decay": 1.0}, {"decay": -0.1}, {"warm_up": 1.1}])
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must lie"):
        ExponentialAverage(**settings)


class Recorder(Part):
    """Record the moments of its calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def before_outer(self, step: object, loss: object) -> None:
        assert step.quantities.computed("adversarial") is None
        self.calls.append("before")

    def extra_terms(self, step: object) -> dict[str, Tensor]:
        self.calls.append("terms")
        return {"extra": torch.zeros(len(step.y))}  # type: ignore[attr-defined]

    def after_step(self, step: object) -> None:
        self.calls.append("after")


def test_parts_are_called_in_order_once_a_step(little: Splits, tmp_path: Path) -> None:
    part = Recorder()
    outcome = run(make_job(little, Method(parameters=(part,)), training={"epochs": 1}), tmp_path)
    assert part.calls == ["before", "terms", "after"] * 5
    assert outcome.rows[0]["loss_extra"] == 0


def test_a_part_stands_once_in_a_method() -> None:
    with pytest.raises(MethodError, match="once"):
        Method(parameters=(ExponentialAverage(), ExponentialAverage(0.9)))


def test_the_best_checkpoint_holds_the_average_and_the_resumed_run_the_weights(
    little: Splits, tmp_path: Path
) -> None:
    method = Method(parameters=(ExponentialAverage(0.9, 0.0),))
    run(make_job(little, method, NormNet(), training={"epochs": 1}), tmp_path)
    best = load_file(tmp_path / "checkpoints/best.safetensors")
    state = last(tmp_path)
    assert same(best, state["memory"]["parameters.ExponentialAverage"])
    assert not same(best, state["networks"]["model"])
