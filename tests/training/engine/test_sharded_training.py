"""FSDP: processes that hold a share of the weights each train what whole copies train."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from group import in_group
from torch import Tensor, nn
from training_tools import Block, Stop, blocks_net, last, make_job, mlp, run, small_digits

from robustly.attacks.core.contract import frozen
from robustly.cli import main
from robustly.cli.recipes import read_recipe
from robustly.data import Splits
from robustly.experiments.configuration import build_config
from robustly.experiments.overrides import apply_overrides
from robustly.runtime import Runtime, RuntimeConfig
from robustly.sharding import (
    ShardedModule,
    ShardingError,
    check_shardable,
    import_shards,
    is_shard,
    leave_groups,
    local,
    shard,
    shards_like,
    whole,
    whole_weights,
)
from robustly.training import (
    AdversarialLoss,
    AuxiliaryNetwork,
    ExponentialAverage,
    GuideLabels,
    Job,
    Method,
    MethodError,
    Moment,
    Observer,
    OptimizerConfig,
    PGDInner,
    WeightPerturbation,
    train,
)
from robustly.training.engine.metrics import Totals
from robustly.training.engine.recomputation import recomputed_activations
from robustly.training.engine.stepping import Stepper
from robustly.training.engine.stopping import DivergenceError, check_weights
from robustly.training.engine.synchronised_norms import synchronised_norms
from robustly.training.inner.early_stopped import FriendlyInner
from robustly.training.losses.consistency import TradesLoss
from robustly.training.losses.mean_teacher import MeanTeacherLoss
from robustly.training.parameters.averaging import EpochAverage, WeightAverage
from robustly.training.parameters.gradalign import GradAlign

SGD = OptimizerConfig(learning_rate=0.02, clip_norm=0.5)
ADAMW = OptimizerConfig(name="adamw", learning_rate=0.002, layer_decay=0.8)
TRADES = Method(
    inner=PGDInner(objective="kl", steps=2, start="random"),
    loss=TradesLoss(),
    parameters=(ExponentialAverage(decay=0.9),),
)
GUIDED = Method(
    labels=GuideLabels(warm_up=0),
    inner=FriendlyInner(steps=3, taus=(0,), boundaries=()),  # processes take different numbers of passes
    loss=AdversarialLoss(),
    parameters=(WeightAverage(start=0),),
)
AT = Method(inner=PGDInner(steps=2, mode="train"), loss=AdversarialLoss())


def job_of(method: Method, **changes: Any) -> Job:
    splits = small_digits(35)  # three processes have 6, 5 and 5 images of a batch, and 1 each of the last one
    guide = {"guide": AuxiliaryNetwork(blocks_net(5), optimizer=SGD)} if "guide" in method.networks else {}
    training = {"batch_size": 16, "measure_train": 7} | changes.pop("training", {})
    model = blocks_net().to(changes.pop("dtype", torch.float32))
    return make_job(splits, method, model, training=training, networks=guide, **({"optimizer": SGD} | changes))


JOBS: dict[str, Callable[[], Job]] = {
    "trades": lambda: job_of(TRADES, pretrain=1),
    "guided": lambda: job_of(GUIDED),
    "parts": lambda: job_of(
        replace(TRADES, parameters=(EpochAverage(0.5),)), optimizer=ADAMW, training={"accumulate": 3}
    ),
    "double": lambda: job_of(AT, dtype=torch.float64),
    "recomputed": lambda: job_of(AT, training={"recompute_activations": True, "sync_batch_norm": True}),
    "half": lambda: job_of(AT),
}


def go(job: Job, strategy: str, folder: Path, observer: Observer | None = None, precision: str = "32-true") -> None:
    folder.mkdir(exist_ok=True, parents=True)
    settings: dict[str, Any] = {"device": "cpu", "processes": 3, "strategy": strategy, "precision": precision}
    train(job, Runtime(RuntimeConfig(**settings)), folder, config_digest="test", observer=observer)


def cut_job() -> Job:
    return job_of(TRADES, pretrain=1, training={"checkpoint_every": 1})


def _trained(rank: int, folder: Path) -> None:
    for name, made in JOBS.items():
        for strategy in ("ddp", "fsdp"):
            go(made(), strategy, folder / name / strategy, precision="bf16-mixed" if name == "half" else "32-true")
            assert torch.is_autocast_cache_enabled()
    for first, second in (("fsdp", "fsdp"), ("ddp", "fsdp"), ("fsdp", "ddp")):
        cut = folder / "trades" / f"{first}_{second}"
        with pytest.raises(KeyboardInterrupt):
            go(cut_job(), first, cut, Stop(5))
        go(cut_job(), second, cut)
    runtime = Runtime(RuntimeConfig(device="cpu", processes=3, strategy="fsdp"))
    torch.save(_sizes(runtime), folder / f"sizes{rank}.pt")
    _refuses_broken_shard(rank, runtime)
    _refuses_weights_elsewhere(runtime)
    runtime.close()


def _sizes(runtime: Runtime) -> dict[str, float]:
    """Share of weights, gradients and optimiser state that this process holds after a step, and some checks."""
    job = job_of(TRADES)
    stepper = Stepper(job, runtime)
    names = list(stepper.networks.model.state_dict())
    with stepper.prepared():
        stepper.begin_epoch(0)
        batch = next(stepper.batches(0))
        stepper.step(batch, Moment(0, 0, 3, 2), 0, Totals(runtime.device))
    model = stepper.networks.model
    assert list(model.state_dict()) == names == list(blocks_net().state_dict())
    parameters = list(model.parameters())
    buffers = [s["momentum_buffer"] for s in stepper.optimizers._optimizers["model"].state.values()]
    average = [value for name, value in next(iter(stepper.memory.values())).items() if "norm.running" not in name]
    total = sum(p.numel() for p in parameters)
    whole = runtime.whole(model.state_dict())
    assert not any(is_shard(value) for value in whole.values())
    if runtime.rank == 0:
        again = shards_like(whole, model.state_dict())
        assert all(torch.equal(local(again[name]), local(value)) for name, value in model.state_dict().items())
    with whole_weights(model), torch.no_grad():
        assert not any(is_shard(p) for p in model.parameters())
        for _ in range(runtime.rank):  # numbers of passes may differ
            model(batch.x)
    assert all(is_shard(p) for p in model.parameters())
    kinds = {
        "weights": parameters,
        "gradients": [p.grad for p in parameters],
        "momentum": buffers,
        "average": average,
    }
    return {kind: sum(local(value).numel() for value in values) / total for kind, values in kinds.items()}


def _refuses_broken_shard(rank: int, runtime: Runtime) -> None:
    network = blocks_net()
    runtime.shard({"model": network})
    if rank == 1:
        with torch.no_grad():
            local(network[0].weight).fill_(torch.nan)  # type: ignore[arg-type]
    with pytest.raises(DivergenceError, match=r"0\.weight of the model is not finite"):  # in all processes
        check_weights({"model": network}, 0, total=runtime.sum)


class Elsewhere(nn.Module):
    """Blocks whose weights are used by another module."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.blocks[0].conv.weight)  # type: ignore[union-attr, arg-type]


def _refuses_weights_elsewhere(runtime: Runtime) -> None:
    network = Elsewhere()
    runtime.shard({"model": network})
    with pytest.raises(
        ShardingError, match="uses weights outside of the forward pass of the block that they belong"
    ):
        ShardedModule(network, nullcontext, False)(torch.rand(2, 4, 5, 5))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    in_group(_trained, folder, count=3)
    return folder


def tensors_in(value: Any, place: str = "") -> dict[str, Tensor]:
    if isinstance(value, Tensor):
        return {place: value.double()}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {key: found for name, item in items for key, found in tensors_in(item, f"{place}/{name}").items()}


def difference(one: Path, other: Path) -> float:
    """Largest difference of two checkpoints: networks, optimisers and averages."""
    first, second = (
        tensors_in({key: last(path)[key] for key in ("networks", "optimizers", "memory")}) for path in (one, other)
    )
    assert first.keys() == second.keys()
    assert all(value.shape == second[key].shape for key, value in first.items())
    return max(float((value - second[key]).abs().max()) for key, value in first.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_shards_train_what_whole_copies_train(name: str, trained: Path) -> None:
    limit = 1e-2 if name == "half" else 1e-12 if name == "double" else 1e-5
    assert difference(trained / name / "ddp", trained / name / "fsdp") < limit
    first, second = (last(trained / name / strategy)["rows"] for strategy in ("ddp", "fsdp"))
    for mine, theirs in zip(first, second, strict=True):
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-2 if name == "half" else 1e-5)
        assert mine["validation_clean_accuracy"] == pytest.approx(theirs["validation_clean_accuracy"], abs=0.02)
    assert first[0].keys() == second[0].keys()


@pytest.mark.slow
@pytest.mark.parametrize("order", ["fsdp_fsdp", "ddp_fsdp", "fsdp_ddp"])
def test_a_stopped_run_goes_on_with_either_strategy(order: str, trained: Path) -> None:
    exact = "fsdp" if order.startswith("fsdp_fsdp") else "ddp"
    assert difference(trained / "trades" / order, trained / "trades" / exact) < 1e-5


@pytest.mark.slow
def test_each_process_holds_a_share_and_one_process_goes_on_with_the_whole(trained: Path, tmp_path: Path) -> None:
    shares = [torch.load(trained / f"sizes{rank}.pt", weights_only=True) for rank in range(3)]
    for kind in shares[0]:
        found = [sizes[kind] for sizes in shares]
        assert sum(found) == pytest.approx(1, abs=0.01), kind
        assert max(found) < 0.5  # rows of small tensors do not divide evenly
    # the checkpoint of three processes is read by one
    folder = trained / "trades" / "fsdp"
    (folder / "model.safetensors").unlink()
    longer = replace(cut_job(), training=replace(cut_job().training, epochs=3, checkpoint_every=None))
    assert run(longer, folder).epochs == 3


def _alone(rank: int, device: str) -> None:
    """Passes of a network in one shard, as of a plain one; on a GPU the same calls as in several processes."""
    import_shards()
    torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo", rank=rank, world_size=1)
    plain, divided = blocks_net().to(device), blocks_net().to(device)
    shard(divided, 1)
    x = torch.rand(6, 1, 16, 16, device=device)
    found = []
    for network in (plain, divided):
        with synchronised_norms([network]), recomputed_activations(network):
            here = x.clone().requires_grad_()
            with whole_weights(network), frozen(network):
                (moved,) = torch.autograd.grad(network(here).logsumexp(1).sum(), here)
            (network(x).logsumexp(1) + network(x + moved).square().sum(1)).sum().backward()
        gradients = [whole(p.grad).cpu() for p in network.parameters()]
        found.append([moved.cpu(), *gradients, *(buffer.cpu() for buffer in network.buffers())])
    assert all(torch.allclose(one, other, rtol=1e-4, atol=1e-5) for one, other in zip(*found, strict=True))
    leave_groups()


@pytest.mark.slow
@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
            ],
        ),
    ],
)
def test_one_shard_passes_as_a_plain_network(device: str) -> None:
    in_group(_alone, device, count=1)


def test_the_digest_of_a_run_does_not_depend_on_the_strategy() -> None:
    recipe = read_recipe("mnist5k/trades")
    words = ["--runtime.strategy", "fsdp", "--runtime.processes", "2"]
    assert build_config(apply_overrides(recipe, words)).digest() == build_config(recipe).digest()


def test_networks_that_cannot_be_divided_are_refused() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))

    with pytest.raises(ShardingError, match="the parameter scale of the model is a single number without dim"):
        check_shardable({"model": Scaled()})
    net = mlp()
    with pytest.raises(ShardingError, match=r"the guide and the model share the parameter 0\.weight"):
        check_shardable({"model": net, "guide": nn.Sequential(net[0])})  # type: ignore[index]
    traced = torch.jit.trace(mlp(), torch.rand(2, 6, dtype=torch.float64))
    with pytest.raises(ShardingError, match="the model is a TorchScript program"):
        check_shardable({"model": traced})


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (replace(AT, parameters=(WeightPerturbation(),)), r"parameters\.awp perturbs the weights"),
        (replace(AT, parameters=(GradAlign(),)), r"parameters\.grad_align differentiates the gradient"),
        (replace(AT, loss=MeanTeacherLoss()), "loss runs the network with the average of its weights"),
    ],
)
def test_parts_that_need_whole_weights_are_refused_by_name(method: Method, message: str, little: Splits) -> None:
    job = make_job(little, method, blocks_net())
    job.check_processes(2)
    with pytest.raises(MethodError, match=f"runtime.strategy fsdp: {message}.*: set it to ddp"):
        job.check_processes(2, sharded=True)


def test_one_process_and_commands_that_read_all_weights_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--runtime.strategy", "fsdp", "--runtime.device", "cpu"]
    for mode in ([], ["--dry-run"]):
        assert main(["train", "mnist5k/trades", *words, *mode]) == 2
        assert "and there is one: set runtime.processes to at least 2" in " ".join(capsys.readouterr().err.split())
    assert main(["train", "mnist5k/at_awp", *words, "--runtime.processes", "2", "--dry-run"]) == 2
    assert "parameters.awp perturbs the weights" in " ".join(capsys.readouterr().err.split())
    for command in ("certify", "bench", "corruptions"):
        assert main([command, "run", "--model", "small_cnn", *words, "--runtime.processes", "2"]) == 2, command
        assert "--runtime.strategy fsdp: " in " ".join(capsys.readouterr().err.split()), command
    assert list(tmp_path.iterdir()) == []
