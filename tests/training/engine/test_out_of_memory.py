"""Steps that run out of memory: they leave no trace, and the run goes on in more parts, with the same result."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_tools import THREAT, Stop, final, make_job, run, small_digits

from robustly.attacks import dynat_pgd
from robustly.cli.progress import split_words
from robustly.data import Augmentation, Splits
from robustly.memory import is_out_of_memory
from robustly.training import (
    AdversarialLoss,
    CleanLoss,
    EatInner,
    ExponentialAverage,
    FreeInner,
    Job,
    Method,
    MethodError,
    Moment,
    Observer,
    OptimizerConfig,
    Part,
    PGDInner,
    Step,
    TrainingConfig,
)
from robustly.training.engine import pretraining
from robustly.training.engine.checkpoint import load_state
from robustly.training.engine.splitting import BatchMemoryError, fewest_parts
from robustly.training.engine.validation import clean_accuracy, validate
from robustly.training.losses.consistency import TradesLoss
from robustly.training.parameters import PARAMETER_PARTS
from robustly.training.weights import WEIGHTS

pytestmark = pytest.mark.slow

ROBUST = Method(inner=PGDInner(steps=2), loss=AdversarialLoss())
BATCH = 32


class Small(nn.Module):
    """A network whose passes fit the memory for some images only, when they train its weights.

    Args:
        most: images that fit.
        begin: passes of training that all fit, before the limit counts.
        where: "forward", or "backward" after the pass forward.
        error: the error.
        norm: whether it has batch normalisation, of vectors, so that a part needs two images.
    """

    def __init__(
        self, most: int, begin: int = 0, where: str = "forward", error: Exception | None = None, norm: bool = False
    ) -> None:
        super().__init__()
        torch.manual_seed(1)
        layers = [nn.Flatten(), nn.Linear(256, 12), *([nn.BatchNorm1d(12)] if norm else []), nn.ReLU()]
        self.net: nn.Module = nn.Sequential(*layers)
        self.head: nn.Module = nn.Sequential(nn.Dropout(0.2), nn.Linear(12, 10))
        self.most, self.begin, self.where, self.passes = most, begin, where, 0
        self.error = torch.OutOfMemoryError("CUDA out of memory") if error is None else error
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        counts = self.training and torch.is_grad_enabled() and len(x) > 4  # not the trial before the run
        self.passes += counts
        short = counts and self.passes > self.begin and len(x) > self.most
        if counts and not short:
            self.sizes.append(len(x))
        logits: Tensor = self.head(self.net(x))
        if short and self.where == "forward":
            raise self.error
        if short:
            logits.register_hook(self._fail)
        return logits

    def _fail(self, _: Tensor) -> None:
        raise self.error


class Parts(Observer):
    def __init__(self) -> None:
        self.seen: list[tuple[int, int, int, bool]] = []

    def split(self, moment: Moment, parts: int, *, found: bool) -> None:
        self.seen.append((moment.epoch, moment.index, parts, found))


@pytest.fixture(scope="module")
def digits() -> Splits:
    return small_digits(100)  # in batches of 32: the last one has 4 images


def job(splits: Splits, method: Method, model: nn.Module, accumulate: Any = 1, **changes: Any) -> Job:
    return make_job(
        splits,
        method,
        model,
        training={"accumulate": accumulate} | changes.pop("training", {}),
        augmentation=Augmentation(pad_crop=2),
        optimizer=OptimizerConfig(learning_rate=0.05),
        **changes,
    )


def status(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "status.json").read_text())
    return found


def same_weights(one: Path, other: Path) -> bool:
    first, second = final(one), final(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


EMA = (ExponentialAverage(decay=0.5, buffers="average"),)
METHODS = {
    "clean": Method(loss=CleanLoss()),
    "pgd": Method(inner=PGDInner(steps=2, mode="train"), loss=AdversarialLoss(), parameters=EMA),
    "trades": Method(inner=PGDInner(objective="kl", steps=1), loss=TradesLoss()),
}


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_a_step_without_memory_leaves_no_trace(
    digits: Splits, name: str, norm: bool, where: str, tmp_path: Path
) -> None:
    """The run is that of `accumulate: 4` to the last bit: weights, averages, statistics, random numbers."""
    method, seen = METHODS[name], Parts()
    run(job(digits, method, Small(99, norm=norm), 4), tmp_path / "set")
    outcome = run(job(digits, method, Small(8, where=where, norm=norm)), tmp_path / "found", seen)
    assert same_weights(tmp_path / "set", tmp_path / "found")
    assert seen.seen == [(0, 0, 4, False)]
    assert [row["accumulate"] for row in outcome.rows] == [4, 4]
    assert status(tmp_path / "found")["accumulate"] == 4
    assert "accumulate" not in status(tmp_path / "set")


def test_weights_before_are_those_of_whole_batches(digits: Splits, tmp_path: Path) -> None:
    """Memory that lacks in the second epoch changes nothing in the first."""
    method, seen = METHODS["pgd"], Parts()
    passes = 9  # of an epoch: two of the attack and one of the loss, of the three batches with more than 4 images
    whole = run(job(digits, method, Small(99), training={"epochs": 1}), tmp_path / "whole")
    model = Small(16, begin=passes)
    outcome = run(job(digits, method, model), tmp_path / "found", seen)
    assert seen.seen == [(1, 0, 2, False)]
    keys = ("train_loss", "train_robust_accuracy", "validation_robust_accuracy")
    assert [outcome.rows[0][key] for key in keys] == [whole.rows[0][key] for key in keys]
    assert "accumulate" not in outcome.rows[0]
    with (tmp_path / "found/metrics.csv").open() as file:
        assert [row["accumulate"] for row in csv.DictReader(file)] == ["", "2"]
    assert max(model.sizes[passes:]) == 16


def test_parts_grow_from_those_that_are_set(digits: Splits, tmp_path: Path) -> None:
    seen = Parts()
    run(job(digits, ROBUST, Small(5), 3), tmp_path, seen)
    assert seen.seen == [(0, 0, 12, False)]  # 3 images at most; 6 parts have 6 at most


@pytest.mark.parametrize(("most", "parts"), [(32, 1), (31, 2), (11, 3), (10, 4), (6, 6), (5, 7)])
def test_auto_finds_the_fewest_parts(digits: Splits, most: int, parts: int, tmp_path: Path) -> None:
    seen = Parts()
    method = METHODS["pgd"]
    run(job(digits, method, Small(most), "auto"), tmp_path / "auto", seen)
    run(job(digits, method, Small(99), parts), tmp_path / "set")
    assert seen.seen == [(0, 0, parts, True)]
    assert same_weights(tmp_path / "auto", tmp_path / "set")
    assert status(tmp_path / "auto")["accumulate"] == parts


def test_batch_normalisation_keeps_two_images_in_a_part(digits: Splits, tmp_path: Path) -> None:
    seen = Parts()
    run(job(digits, ROBUST, Small(5, norm=True), "auto"), tmp_path, seen)
    assert seen.seen == [(0, 0, 7, True)]
    seen = Parts()  # the last batch has 4 images, and is left out as with a setting of 4 parts
    outcome = run(job(digits, ROBUST, Small(8, norm=True)), tmp_path / "four", seen)
    assert outcome.rows[0]["train_loss"] is not None


@pytest.mark.parametrize("accumulate", [1, "auto"])
def test_a_resumed_run_begins_with_the_parts_that_were_found(
    digits: Splits, accumulate: int | str, tmp_path: Path
) -> None:
    method = METHODS["pgd"]
    run(job(digits, method, Small(8), accumulate), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(job(digits, method, Small(8), accumulate, training={"checkpoint_every": 2}), tmp_path / "cut", Stop(3))
    assert load_state(tmp_path / "cut/checkpoints/last.pt", "test").parts == 4
    model, seen = Small(8), Parts()
    run(job(digits, method, model, accumulate, training={"checkpoint_every": 2}), tmp_path / "cut", seen)
    assert seen.seen == []
    assert same_weights(tmp_path / "whole", tmp_path / "cut")


def test_a_run_that_fits_is_saved_as_before(digits: Splits, tmp_path: Path) -> None:
    run(job(digits, ROBUST, Small(99)), tmp_path)
    content = torch.load(tmp_path / "checkpoints/last.pt", weights_only=True)
    assert not {"parts", "within"} & content.keys()  # versions without these keys read the file


@dataclass(frozen=True)
class InPlace(Part):
    """A part that counts its passes in place, which cannot be undone."""

    reads = ("adversarial",)

    def __call__(self, step: Step) -> dict[str, Tensor]:
        memory = step.remember(self)
        memory.setdefault("count", torch.zeros(())).add_(1)
        return {"adversarial": nn.functional.cross_entropy(step.adversarial_logits, step.y, reduction="none")}


def test_memory_that_changed_in_place_ends_the_run(digits: Splits, tmp_path: Path) -> None:
    method = Method(inner=PGDInner(steps=1), loss=InPlace())
    model = Small(8, begin=3, where="backward")
    with pytest.raises(BatchMemoryError, match="had changed its memory in place by then"):
        run(job(digits, method, model), tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"parameters": (PARAMETER_PARTS["awp"](gamma=0.1),)}, r"parameters\.awp perturbs the weights"),
        ({"weights": WEIGHTS["gairat"](burn_in=0)}, "instance weights are those of a whole batch"),
        ({"parameters": (PARAMETER_PARTS["grad_align"](),)}, "averages over the whole batch"),
        ({"inner": EatInner(steps=1)}, "averages over the whole batch"),
        ({"inner": FreeInner(replays=2)}, "Free-AT keeps a perturbation"),
    ],
)
def test_a_method_of_the_whole_batch_stops_with_the_size_that_fits(
    digits: Splits, changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    method = Method(**({"inner": PGDInner(steps=1), "loss": AdversarialLoss()} | changes))
    model = Small(9)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made = job(digits, method, model)
    with pytest.raises(
        BatchMemoryError, match=rf"{BATCH} images do not fit .* because .*{reason}.*: 8 fit, set training\.batch"
    ):
        run(made, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    assert status(tmp_path)["state"] == "failed"


def test_auto_is_refused_at_the_door_for_such_methods(digits: Splits) -> None:
    method = Method(inner=PGDInner(steps=1), loss=AdversarialLoss(), parameters=(PARAMETER_PARTS["awp"](),))
    with pytest.raises(MethodError, match=r"accumulate: parameters\.awp perturbs the weights: set it to 1"):
        job(digits, method, Small(99), "auto")


@pytest.mark.parametrize("accumulate", [1, "auto"])
def test_one_image_that_does_not_fit_is_one_sentence(
    digits: Splits, accumulate: int | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Never(Small):
        def forward(self, x: Tensor) -> Tensor:
            if self.training and torch.is_grad_enabled() and self.ready:
                raise self.error
            return super().forward(x)

        ready = False

    model = Never(99)
    made = job(digits, ROBUST, model, accumulate)
    observer = Observer()
    monkeypatch.setattr(observer, "started", lambda *_: setattr(model, "ready", True))
    with pytest.raises(BatchMemoryError, match="not even a single image at a time fit"):
        run(made, tmp_path, observer)


def test_other_errors_are_not_taken_for_it(digits: Splits, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="of its own"):
        run(job(digits, ROBUST, Small(8, error=RuntimeError("of its own"))), tmp_path)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("in the TorchScript interpreter: torch.OutOfMemoryError: CUDA out of memory."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("DefaultCPUAllocator"), False),
    ],
)
def test_errors_of_memory_are_recognised(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


@pytest.mark.parametrize("most", [1, 2, 3, 7, 64, 100])
def test_the_fewest_parts_are_found_in_few_trials(most: int) -> None:
    for wanted in range(1, most + 1):
        trials: list[int] = []

        def fits(count: int, wanted: int = wanted, trials: list[int] = trials) -> bool:
            trials.append(count)
            return count >= wanted

        assert fewest_parts(fits, most) == wanted
        assert len(trials) == len(set(trials)) <= 2 * most.bit_length()
    assert fewest_parts(lambda count: False, most) is None


def test_settings() -> None:
    assert TrainingConfig(accumulate="auto").parts == 1
    assert TrainingConfig(accumulate=3).parts == 3
    with pytest.raises(ValueError, match="accumulate must lie between 1"):
        TrainingConfig(accumulate=0)


@pytest.mark.parametrize("most", [1, 7, 19])
def test_validation_takes_smaller_batches_where_memory_lacks(digits: Splits, most: int) -> None:
    class Tight(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.sizes = nn.Sequential(nn.Flatten(), nn.Linear(256, 10).double()), [0]

        def forward(self, x: Tensor) -> Tensor:
            if len(x) > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            self.sizes.append(len(x))
            logits: Tensor = self.net(x)
            return logits

    torch.manual_seed(0)
    model = Tight().eval()
    attack, data = dynat_pgd(2), digits.validation
    settings: dict[str, Any] = {"seed": 0, "dtype": torch.float64}
    found = validate(model, data, attack, THREAT, batch_size=25, **settings)
    assert found == validate(model.net, data, attack, THREAT, batch_size=25, **settings)
    assert found.clean == clean_accuracy(model, data, batch_size=40, dtype=torch.float64).share
    assert max(model.sizes) <= most


def test_one_validation_image_without_memory_is_an_error(digits: Splits) -> None:
    def never(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = nn.Linear(1, 1)
    model.forward = never  # type: ignore[method-assign]
    with pytest.raises(torch.OutOfMemoryError):
        clean_accuracy(model, digits.validation, batch_size=8)


def test_a_position_before_a_batch_that_is_left_out_can_be_resumed(digits: Splits, tmp_path: Path) -> None:
    """With four parts the last batch is too small for batch normalisation, so the third step is the last one."""
    settings = {"checkpoint_every": 3, "epochs": 1}
    run(job(digits, ROBUST, Small(8, norm=True), training=settings), tmp_path / "whole")
    stop = Stop(3)
    with pytest.raises(KeyboardInterrupt):
        run(job(digits, ROBUST, Small(8, norm=True), training=settings), tmp_path / "cut", stop)
    assert not (tmp_path / "cut/checkpoints/last.pt").exists()
    run(job(digits, ROBUST, Small(8, norm=True), training=settings), tmp_path / "cut")
    assert same_weights(tmp_path / "whole", tmp_path / "cut")
    settings = {"checkpoint_every": 2, "epochs": 1}
    with pytest.raises(KeyboardInterrupt):
        run(job(digits, ROBUST, Small(8, norm=True), training=settings), tmp_path / "again", Stop(3))
    assert load_state(tmp_path / "again/checkpoints/last.pt", "test").within is not None
    run(job(digits, ROBUST, Small(8, norm=True), training=settings), tmp_path / "again")
    assert same_weights(tmp_path / "whole", tmp_path / "again")


def test_a_buffer_that_is_replaced_in_a_pass_comes_back(digits: Splits, tmp_path: Path) -> None:
    class Replacing(Small):
        def __init__(self, most: int) -> None:
            super().__init__(most)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            if self.training and torch.is_grad_enabled():
                self.seen = self.seen + x.detach().sum()
            return super().forward(x)

    run(job(digits, ROBUST, Replacing(99), 4), tmp_path / "set")
    run(job(digits, ROBUST, Replacing(8)), tmp_path / "found")
    assert float(final(tmp_path / "set")["seen"]) > 0
    assert same_weights(tmp_path / "set", tmp_path / "found")


@pytest.mark.parametrize(("parts", "words"), [(1, "pass whole"), (3, "pass in 3 parts")])
def test_the_lines_about_parts(parts: int, words: str) -> None:
    moment = Moment(2, 4, 10, 20)
    assert split_words(128, moment, parts, found=True) == f"training.accumulate: auto: batches of 128 {words}"
    said = split_words(128, moment, 4, found=False)
    assert "out of memory in epoch 3, step 5" in said
    assert "training.accumulate: 4" in said


def test_epochs_before_the_run_take_parts_where_batches_do_not_fit(
    digits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the first try had had the same parts; batches that fit are whole."""
    settings: dict[str, Any] = {"pretrain": 1, "training": {"epochs": 1}}
    run(job(digits, ROBUST, Small(8), **settings), tmp_path / "found")
    run(job(digits, ROBUST, Small(99), **settings), tmp_path / "whole")
    made = pretraining.Pretraining.__init__

    def with_parts(self: Any, *arguments: Any) -> None:
        made(self, *arguments)
        self._parts = 4

    monkeypatch.setattr(pretraining.Pretraining, "__init__", with_parts)
    run(job(digits, ROBUST, Small(99), 4, **settings), tmp_path / "set")
    assert same_weights(tmp_path / "found", tmp_path / "set")
    assert not same_weights(tmp_path / "found", tmp_path / "whole")


def test_epochs_before_the_run_keep_two_images_for_batch_normalisation(digits: Splits, tmp_path: Path) -> None:
    found = run(job(digits, ROBUST, Small(5, norm=True), pretrain=2, training={"epochs": 1}), tmp_path)
    assert len(found.rows) == 1
    with (tmp_path / "model_pretraining.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2


def test_epochs_before_the_run_end_where_nothing_fits(digits: Splits, tmp_path: Path) -> None:
    model = Small(3, norm=True, error=MemoryError())
    with pytest.raises(BatchMemoryError, match="not even 2 images at a time fit"):
        run(job(digits, ROBUST, NothingFits(model), pretrain=1), tmp_path)


class NothingFits(nn.Module):
    """A network without memory for any pass of training, after the trial before the run."""

    def __init__(self, inner: Small) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x)
        if self.inner.passes and self.training and torch.is_grad_enabled():
            raise self.inner.error
        return logits
