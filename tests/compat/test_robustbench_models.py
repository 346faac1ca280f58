"""`load_model` gives the networks of the zoo: the same logits as networks written here from their description."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustly.compat.robustbench import RobustBenchError, load_model
from robustly.compat.robustbench.loading import empty_network, network_from
from robustly.compat.robustbench.zoo import ENTRIES, OTHER_NETWORKS, Entry
from robustly.models import WeightsError, WideResNet, load_weights, save_weights

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def randomised(net: nn.Module) -> nn.Module:
    """Different numbers in every tensor, so that exchanged names show."""
    drawn = torch.Generator().manual_seed(3)
    for name, value in net.state_dict().items():
        if not value.dtype.is_floating_point or name in ("mean", "std", "mu", "sigma"):
            continue
        fan = max(1, value[0].numel()) if value.dim() > 1 else 1
        noise = torch.randn(value.shape, generator=drawn)
        value.copy_(noise.abs() + 0.5 if "var" in name else noise / math.sqrt(fan) + (value.dim() == 1) * 0.5)
    return net.eval()


class TheirUnit(nn.Module):
    """A residual unit of DeepMind's networks: pads as TensorFlow does, first the activation, then the shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.batchnorm_0, self.batchnorm_1 = nn.BatchNorm2d(before), nn.BatchNorm2d(after)
        self.conv_0 = nn.Conv2d(before, after, 3, stride, bias=False)
        self.conv_1 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        if before != after:
            self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.silu(self.batchnorm_0(x))
        skipped = self.shortcut(active) if hasattr(self, "shortcut") else x
        edges = (1, 1, 1, 1) if self.stride == 1 else (0, 1, 0, 1)
        inner = self.conv_1(F.silu(self.batchnorm_1(self.conv_0(F.pad(active, edges)))))
        return skipped + inner


class TheirGroup(nn.Module):
    def __init__(self, units: list[nn.Module]) -> None:
        super().__init__()
        self.block = nn.Sequential(*units)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return out


class TheirDeepMind(nn.Module):
    def __init__(self, depth: int, widen: int, classes: int, keeps_constants: bool) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=keeps_constants)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=keeps_constants)
        count, widths = (depth - 4) // 6, [16, 16 * widen, 32 * widen, 64 * widen]
        self.init_conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        groups = []
        for place, stride in enumerate((1, 2, 2)):
            before, after = widths[place], widths[place + 1]
            rest = [TheirUnit(after, after, 1) for _ in range(count - 1)]
            groups.append(TheirGroup([TheirUnit(before, after, stride), *rest]))
        self.layer = nn.Sequential(*groups)
        self.batchnorm = nn.BatchNorm2d(widths[3])
        self.logits = nn.Linear(widths[3], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(self.init_conv((x - self.mean) / self.std))
        logits: Tensor = self.logits(F.avg_pool2d(F.silu(self.batchnorm(x)), 8).flatten(1))
        return logits


class TradesUnit(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(before), nn.BatchNorm2d(after)
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.convShortcut = None if before == after else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = torch.relu(self.bn1(x))
        inner = self.conv2(torch.relu(self.bn2(self.conv1(active))))
        return (x if self.convShortcut is None else self.convShortcut(active)) + inner


class TradesGroup(nn.Module):
    def __init__(self, units: list[nn.Module]) -> None:
        super().__init__()
        self.layer = nn.Sequential(*units)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


class TheirTrades(nn.Module):
    """TRADES's wide ResNet with the block that it never uses, and constants as RobustBench registers them."""

    def __init__(self, depth: int, widen: int, classes: int, normalised: bool) -> None:
        super().__init__()
        if normalised:
            self.register_buffer("mu", torch.tensor(MEAN).view(1, 3, 1, 1))
            self.register_buffer("sigma", torch.tensor(STD).view(1, 3, 1, 1))
        count, widths = (depth - 4) // 6, [16, 16 * widen, 32 * widen, 64 * widen]
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)

        def group(place: int, stride: int) -> TradesGroup:
            before, after = widths[place], widths[place + 1]
            rest = [TradesUnit(after, after, 1) for _ in range(count - 1)]
            return TradesGroup([TradesUnit(before, after, stride), *rest])

        self.block1, self.sub_block1, self.block2, self.block3 = group(0, 1), group(0, 1), group(1, 2), group(2, 2)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], classes)

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "mu"):
            x = (x - self.mu) / self.sigma
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        logits: Tensor = self.fc(F.avg_pool2d(torch.relu(self.bn1(x)), 8).flatten(1))
        return logits


class BasicUnit(nn.Module):
    def __init__(self, before: int, after: int, stride: int, first: bool) -> None:
        super().__init__()
        self.first = first  # activations come first
        self.bn1, self.bn2 = nn.BatchNorm2d(before if first else after), nn.BatchNorm2d(after)
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        if stride != 1:
            norm = [] if first else [nn.BatchNorm2d(after)]
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), *norm)

    def forward(self, x: Tensor) -> Tensor:
        source = torch.relu(self.bn1(x)) if self.first else x
        skipped = self.shortcut(source) if hasattr(self, "shortcut") else x
        if self.first:
            inner: Tensor = self.conv2(torch.relu(self.bn2(self.conv1(source))))
            return inner + skipped
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + skipped)


class TheirResNet(nn.Module):
    """ResNet-18 for small images, or its pre-activation form with a normalisation before the last layer."""

    def __init__(self, first: bool, classes: int) -> None:
        super().__init__()
        self.first = first
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        if first:
            self.bn = nn.BatchNorm2d(512)
        else:
            self.bn1 = nn.BatchNorm2d(64)
        for place in range(4):
            before, after = 64 * 2 ** max(0, place - 1), 64 * 2**place
            units = (BasicUnit(before, after, 1 if place == 0 else 2, first), BasicUnit(after, after, 1, first))
            setattr(self, f"layer{place + 1}", nn.Sequential(*units))
        self.linear = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = x if self.first else torch.relu(self.bn1(x))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = torch.relu(self.bn(x)) if self.first else x
        logits: Tensor = self.linear(F.avg_pool2d(x, 4).flatten(1))
        return logits


def saved(net: nn.Module, path: Path, wrapped: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({f"{wrapped}{name}": value for name, value in net.state_dict().items()}, path)
    return path


def agree(ours: nn.Module, theirs: nn.Module) -> None:
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert not ours.training
    with torch.no_grad():
        expected = theirs(images)
        assert float(expected.std()) > 0.05
        torch.testing.assert_close(ours(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("keeps_constants", [True, False])
def test_deepmind_networks_have_equal_logits(keeps_constants: bool, tmp_path: Path) -> None:
    theirs = randomised(TheirDeepMind(16, 2, 7, keeps_constants))
    given = (0.0,) * 3 if keeps_constants else MEAN  # the constants of the file count first
    entry = Entry("deepmind", 16, 2, 7, given, STD)
    ours = network_from(entry, saved(theirs, tmp_path / "net.pt", "module."))
    agree(ours, theirs)
    with torch.no_grad():
        shifted = WideResNet(16, 2, classes=7, activation="silu", mean=MEAN, std=STD).eval()
        shifted.load_state_dict(ours.state_dict())
        images = torch.rand(1, 3, 32, 32)
        assert not torch.allclose(shifted(images), theirs(images), atol=1e-2)  # the padding matters


@pytest.mark.parametrize("normalised", [True, False])
def test_trades_networks_have_equal_logits(normalised: bool, tmp_path: Path) -> None:
    theirs = randomised(TheirTrades(10, 2, 4, normalised))
    entry = Entry("wide", 10, 2, 4, *((MEAN, STD) if normalised else (None, None)))
    path = tmp_path / "net.pt"
    torch.save({"state_dict": {f"module.{name}": v for name, v in theirs.state_dict().items()}, "epoch": 3}, path)
    agree(network_from(entry, path), theirs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "name", "threat"),
    [(True, "Addepalli2021Towards_PARN18", "Linf"), (False, "Addepalli2022Efficient_RN18", "Linf")],
)
def test_whole_entries_are_read_from_the_zoo_s_folder(first: bool, name: str, threat: str, tmp_path: Path) -> None:
    theirs = randomised(TheirResNet(first, 100))
    saved(theirs, tmp_path / "cifar100" / threat / f"{name}.pt")
    ours = load_model(name, tmp_path, dataset="cifar100", threat_model=threat)
    agree(ours, theirs)
    assert all(value.requires_grad for value in ours.parameters())
    with pytest.warns(DeprecationWarning, match="threat_model"):
        load_model(name, tmp_path, "cifar100", "corruptions", norm=threat)


def test_the_last_weights_of_a_file_with_two_are_read(tmp_path: Path) -> None:
    entry = Entry("wide", 10, 1, 3, key="last")
    last, best = (randomised(TheirTrades(10, 1, 3, False)) for _ in range(2))
    nn.init.zeros_(best.fc.weight)  # type: ignore[union-attr, arg-type]
    torch.save({"last": last.state_dict(), "best": best.state_dict()}, tmp_path / "net.pt")
    agree(network_from(entry, tmp_path / "net.pt"), last)


def test_the_trained_weights_are_those_under_state_dict(tmp_path: Path) -> None:
    """RobustBench takes this key; averaged weights beside it would be taken elsewhere in this package."""
    trained, averaged = (randomised(TheirTrades(10, 1, 3, False)) for _ in range(2))
    nn.init.zeros_(averaged.fc.weight)  # type: ignore[union-attr, arg-type]
    content = {"state_dict": trained.state_dict(), "ema_state_dict": averaged.state_dict()}
    torch.save(content, tmp_path / "net.pt")
    agree(network_from(Entry("wide", 10, 1, 3), tmp_path / "net.pt"), trained)


def test_a_loaded_network_can_be_saved_and_read_again(tmp_path: Path) -> None:
    entry = Entry("deepmind", 10, 1, 3, MEAN, STD)
    ours = network_from(entry, saved(randomised(TheirDeepMind(10, 1, 3, False)), tmp_path / "net.pt"))
    save_weights(ours, tmp_path / "ours.safetensors")
    again = entry.network().eval()
    load_weights(again, tmp_path / "ours.safetensors")
    agree(again, ours)
    agree(network_from(entry, tmp_path / "ours.safetensors"), ours)


@pytest.mark.parametrize(
    ("dataset", "threat", "name", "millions"),
    [
        ("cifar10", "Linf", "Wang2023Better_WRN-28-10", 36.5),
        ("cifar10", "Linf", "Zhang2019Theoretically", 46.2),
        ("cifar10", "Linf", "Gowal2020Uncovering_34_20", 184.5),
        ("cifar10", "L2", "Wang2023Better_WRN-70-16", 266.8),
        ("cifar10", "Linf", "Bartoldson2024Adversarial_WRN-94-16", 365.9),
        ("cifar10", "Linf", "Sehwag2021Proxy_R18", 11.2),
        ("cifar10", "L2", "Rice2020Overfitting", 11.2),
    ],
)
def test_entries_have_the_published_numbers_of_parameters(
    dataset: str, threat: str, name: str, millions: float
) -> None:
    net = empty_network(ENTRIES[dataset, threat][name])
    assert round(sum(value.numel() for value in net.parameters()) / 1e6, 1) == millions


def test_every_entry_can_be_built_for_its_classes() -> None:
    for (dataset, _), entries in ENTRIES.items():
        for name, entry in entries.items():
            assert entry.classes == (100 if dataset == "cifar100" else 10), name
            assert name not in OTHER_NETWORKS
            assert entry.mean is not None or entry.family != "deepmind"
    assert sum(len(entries) for entries in ENTRIES.values()) > 100


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"model_name": "Wong2020Fast"}, r"Wong2020Fast is a PreActResNet-18 .* not built here; .*--model package"),
        ({"model_name": "Wang2023Better_WRN-28-1"}, "did you mean"),
        ({"model_name": "Xu2023Exploring_WRN-28-10", "threat_model": "L2"}, "has for cifar10 Linf"),
        ({"model_name": "Standard", "dataset": "cifar"}, "dataset must be one of cifar10, cifar100"),
        ({"model_name": "Standard", "threat_model": "linf"}, "threat_model must be one of Linf, L2"),
        ({"model_name": "Salman2020Do_R50", "dataset": "imagenet"}, "ImageNet are not built here"),
        ({"model_name": "Standard", "dataset": "cifar100", "threat_model": "L2"}, "has for cifar10 Linf"),
        ({"model_name": "New2026", "dataset": "cifar100", "threat_model": "L2"}, "the entries are none"),
    ],
)
def test_other_entries_get_one_sentence(given: dict[str, str], sentence: str) -> None:
    with pytest.raises(RobustBenchError, match=sentence) as error:
        load_model(**given)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_missing_and_unfit_files_get_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"cifar10/L2/Sehwag2021Proxy_R18\.pt: .* downloads nothing"):
        load_model("Sehwag2021Proxy_R18", tmp_path, threat_model="L2")
    small = saved(TheirTrades(10, 1, 3, True), tmp_path / "small.pt")
    with pytest.raises(FileNotFoundError, match="absent"):
        load_model("Sehwag2021Proxy_R18", custom_checkpoint=tmp_path / "absent.pt")
    with pytest.raises(WeightsError, match="do not fit the network of this entry: missing"):
        load_model("Sehwag2021Proxy_R18", custom_checkpoint=small)
    with pytest.raises(WeightsError, match="unexpected mu, sigma"):
        network_from(Entry("wide", 10, 1, 3), small)
    broken = TheirTrades(10, 1, 3, False)
    broken.fc.weight.data[0, 0] = math.nan
    with pytest.raises(WeightsError, match=r"not finite: fc\.weight"):
        network_from(Entry("wide", 10, 1, 3), saved(broken, tmp_path / "broken.pt"))
    wrapped = {"normalizer.mean": torch.tensor(MEAN), "normalizer.std": torch.tensor(STD)}
    wrapped |= {f"net.{name}": value for name, value in TheirTrades(10, 1, 3, False).state_dict().items()}
    torch.save(wrapped, tmp_path / "wrapped.pt")
    with pytest.raises(WeightsError, match="has an input normalisation"):
        network_from(Entry("wide", 10, 1, 3), tmp_path / "wrapped.pt")


@pytest.mark.parametrize("side", [9, 32])
def test_padding_is_that_of_tensorflow(side: int) -> None:
    """SAME: as many outputs as inputs over the stride, rounded up; the larger half of the zeros comes last."""
    net = WideResNet(10, 1, classes=3, same_padding=True).eval()
    block = net.block2.layer[0]
    assert net(torch.rand(1, 3, side, side)).shape == (1, 3)
    active = torch.rand(1, 16, side, side)
    total = max((math.ceil(side / 2) - 1) * 2 + 3 - side, 0)
    edges = (total // 2, total - total // 2) * 2
    expected = F.conv2d(F.pad(active, edges), block.conv1.weight, stride=2)
    seen: list[Tensor] = []
    block.conv1.register_forward_hook(lambda _, __, out: seen.append(out))
    block.bn1, block.act1 = nn.Identity(), nn.Identity()
    block(active)
    torch.testing.assert_close(seen[0], expected)
