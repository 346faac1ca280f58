"""Entries of RobustBench's model zoo on CIFAR: the networks that are built here, and the names of the others."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from robustly.models import PreActResNet, ResNet, WideResNet

Family = Literal["wide", "deepmind", "resnet", "preact"]
CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}
THREATS = ("Linf", "L2", "corruptions")


@dataclass(frozen=True)
class Entry:
    """A network of the zoo.

    Args:
        family: "wide" for TRADES's wide ResNet; "deepmind" for DeepMind's, with SiLU and TensorFlow's padding;
            "resnet" and "preact" for ResNet-18 for small images.
        depth: number of layers.
        widen: widening factor of a wide ResNet.
        classes: number of logits.
        mean: per-channel mean of the input normalisation; None for none. Values in a file replace it.
        std: its standard deviation.
        key: the state dict in the file, if the file has one of this name.
    """

    family: Family
    depth: int = 18
    widen: int = 1
    classes: int = 10
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    key: str = "state_dict"

    def network(self) -> nn.Module:
        """The network with new weights."""
        if self.family == "resnet":
            return ResNet(classes=self.classes, mean=self.mean, std=self.std)
        if self.family == "preact":
            return PreActResNet(classes=self.classes, mean=self.mean, std=self.std)
        deepmind = self.family == "deepmind"
        return WideResNet(
            self.depth,
            self.widen,
            classes=self.classes,
            activation="silu" if deepmind else "relu",
            same_padding=deepmind,
            mean=self.mean,
            std=self.std,
        )


@dataclass(frozen=True)
class _Constants:
    """Mean and standard deviation of an input normalisation."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


_HALF = _Constants((0.5,) * 3, (0.5,) * 3)  # 2 x - 1
_C10 = _Constants((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
_C10_SHORT = _Constants((0.491, 0.482, 0.447), (0.247, 0.243, 0.262))
_C10_LONG = _Constants(
    (0.4913997551666284, 0.48215855929893703, 0.4465309133731618),
    (0.24703225141799082, 0.24348516474564, 0.26158783926049628),
)
_C100 = _Constants((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
_C100_DEEPMIND = _Constants((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
_C100_LONG = _Constants(
    (0.5070751592371323, 0.48654887331495095, 0.4409178433670343),
    (0.2673342858792401, 0.2564384629170883, 0.27615047132568404),
)


def _normalised(entry: Entry, constants: _Constants) -> Entry:
    return replace(entry, mean=constants.mean, std=constants.std)


def _wide(depth: int, widen: int, constants: _Constants | None = None) -> Entry:
    entry = Entry("wide", depth, widen)
    return entry if constants is None else _normalised(entry, constants)


def _deepmind(depth: int, widen: int) -> Entry:
    return _normalised(Entry("deepmind", depth, widen), _C10)


def _with_100_classes(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    wider = {name: replace(entry, classes=100) for name, entry in entries.items()}
    return {
        name: _normalised(entry, _C100_DEEPMIND) if entry.family == "deepmind" else entry
        for name, entry in wider.items()
    }


def _each(names: str, entry: Entry) -> dict[str, Entry]:
    return dict.fromkeys(names.split(), entry)


_RESNET, _PREACT = Entry("resnet"), Entry("preact")

_CIFAR10_LINF = {
    **_each(
        "Carmon2019Unlabeled Sehwag2020Hydra Wang2020Improving Wu2020Adversarial_extra Zhang2020Geometry "
        "Sridhar2021Robust Standard",
        _wide(28, 10),
    ),
    **_each(
        "Zhang2019Theoretically Huang2020Self Zhang2019You Zhang2020Attacks Wu2020Adversarial Sehwag2021Proxy "
        "Sitawarin2020Improving Cui2020Learnable_34_10 Addepalli2021Towards_WRN34 Chen2021LTD_WRN34_10 "
        "Jia2022LAS-AT_34_10 Addepalli2022Efficient_WRN_34_10 Cui2023Decoupled_WRN-34-10 Chen2024Data_WRN_34_10",
        _wide(34, 10),
    ),
    **_each("Cui2020Learnable_34_20 Chen2021LTD_WRN34_20 Chen2024Data_WRN_34_20", _wide(34, 20)),
    "Sridhar2021Robust_34_15": _wide(34, 15),
    "Jia2022LAS-AT_70_16": _wide(70, 16),
    "Hendrycks2019Using": _wide(28, 10, _HALF),
    "Rice2020Overfitting": _wide(34, 20, _C10),
    "Chen2020Efficient": _wide(34, 10, _C10),
    **_each("Sehwag2021Proxy_R18 Addepalli2021Towards_RN18 Addepalli2022Efficient_RN18", _RESNET),
    **_each(
        "Gowal2020Uncovering_28_10_extra Rebuffi2021Fixing_28_10_cutmix_ddpm Rade2021Helper_ddpm "
        "Gowal2021Improving_28_10_ddpm_100m Pang2022Robustness_WRN28_10 Wang2023Better_WRN-28-10 "
        "Xu2023Exploring_WRN-28-10 Cui2023Decoupled_WRN-28-10",
        _deepmind(28, 10),
    ),
    "Rade2021Helper_extra": _deepmind(34, 10),
    "Gowal2020Uncovering_34_20": _deepmind(34, 20),
    **_each(
        "Gowal2020Uncovering_70_16 Gowal2020Uncovering_70_16_extra Rebuffi2021Fixing_70_16_cutmix_ddpm "
        "Rebuffi2021Fixing_70_16_cutmix_extra Gowal2021Improving_70_16_ddpm_100m Pang2022Robustness_WRN70_16 "
        "Wang2023Better_WRN-70-16",
        _deepmind(70, 16),
    ),
    "Bartoldson2024Adversarial_WRN-82-8": _deepmind(82, 8),
    "Bartoldson2024Adversarial_WRN-94-16": _deepmind(94, 16),
    "Rebuffi2021Fixing_106_16_cutmix_ddpm": _deepmind(106, 16),
}
_CIFAR10_L2 = {
    "Standard": _wide(28, 10),
    "Rony2019Decoupling": _wide(28, 10, _C10_SHORT),
    **_each("Wu2020Adversarial Sehwag2021Proxy", _wide(34, 10)),
    **_each("Augustin2020Adversarial_34_10 Augustin2020Adversarial_34_10_extra", _wide(34, 10, _C10_LONG)),
    "Sehwag2021Proxy_R18": _RESNET,
    "Rice2020Overfitting": _normalised(_PREACT, _C10),
    **_each("Rebuffi2021Fixing_28_10_cutmix_ddpm Wang2023Better_WRN-28-10", _deepmind(28, 10)),
    **_each(
        "Gowal2020Uncovering Gowal2020Uncovering_extra Rebuffi2021Fixing_70_16_cutmix_ddpm "
        "Rebuffi2021Fixing_70_16_cutmix_extra Wang2023Better_WRN-70-16",
        _deepmind(70, 16),
    ),
}
_CIFAR10_CORRUPTIONS = {
    "Standard": _wide(28, 10),
    "Hendrycks2020AugMix_WRN": _wide(40, 2, _HALF),
    **_each("Addepalli2021Towards_WRN34 Addepalli2022Efficient_WRN_34_10", _wide(34, 10)),
    "Modas2021PRIMEResNet18": _normalised(_RESNET, _HALF),
    **_each(
        "Kireev2021Effectiveness_Gauss50percent Kireev2021Effectiveness_AugMixNoJSD Kireev2021Effectiveness_RLAT "
        "Kireev2021Effectiveness_RLATAugMixNoJSD Kireev2021Effectiveness_RLATAugMix",
        replace(_normalised(_PREACT, _C10), key="last"),
    ),
    **_each("Rebuffi2021Fixing_70_16_cutmix_extra_Linf Rebuffi2021Fixing_70_16_cutmix_extra_L2", _deepmind(70, 16)),
}
_CIFAR100_LINF = {
    **_each(
        "Cui2020Learnable_34_10_LBGAT0 Cui2020Learnable_34_10_LBGAT6 Cui2020Learnable_34_10_LBGAT9_eps_8_255 "
        "Sehwag2021Proxy Sitawarin2020Improving Addepalli2021Towards_WRN34 Chen2021LTD_WRN34_10 "
        "Jia2022LAS-AT_34_10 Addepalli2022Efficient_WRN_34_10 Cui2023Decoupled_WRN-34-10 "
        "Cui2023Decoupled_WRN-34-10_autoaug Chen2024Data_WRN_34_10",
        _wide(34, 10),
    ),
    **_each("Cui2020Learnable_34_20_LBGAT6 Jia2022LAS-AT_34_20", _wide(34, 20)),
    "Hendrycks2019Using": _wide(28, 10, _HALF),
    "Chen2020Efficient": _wide(34, 10, _C100),
    "Wu2020Adversarial": _wide(34, 10, _C100_LONG),
    "Addepalli2022Efficient_RN18": _RESNET,
    "Addepalli2021Towards_PARN18": _PREACT,
    "Rice2020Overfitting": _normalised(_PREACT, _C100_LONG),
    **_each(
        "Rebuffi2021Fixing_28_10_cutmix_ddpm Pang2022Robustness_WRN28_10 Wang2023Better_WRN-28-10 "
        "Cui2023Decoupled_WRN-28-10",
        _deepmind(28, 10),
    ),
    **_each(
        "Gowal2020Uncovering Gowal2020Uncovering_extra Rebuffi2021Fixing_70_16_cutmix_ddpm "
        "Pang2022Robustness_WRN70_16 Wang2023Better_WRN-70-16",
        _deepmind(70, 16),
    ),
}
_CIFAR100_CORRUPTIONS = {
    "Hendrycks2020AugMix_WRN": _wide(40, 2, _HALF),
    **_each("Addepalli2021Towards_WRN34 Addepalli2022Efficient_WRN_34_10", _wide(34, 10)),
    "Addepalli2021Towards_PARN18": _PREACT,
    "Modas2021PRIMEResNet18": _normalised(_RESNET, _HALF),
    **_each("Gowal2020Uncovering_Linf Gowal2020Uncovering_extra_Linf", _deepmind(70, 16)),
}

ENTRIES: Mapping[tuple[str, str], Mapping[str, Entry]] = {
    ("cifar10", "Linf"): _CIFAR10_LINF,
    ("cifar10", "L2"): _CIFAR10_L2,
    ("cifar10", "corruptions"): _CIFAR10_CORRUPTIONS,
    ("cifar100", "Linf"): _with_100_classes(_CIFAR100_LINF),
    ("cifar100", "corruptions"): _with_100_classes(_CIFAR100_CORRUPTIONS),
}
"""Entries by data set and threat model, under RobustBench's names."""


def _others(groups: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    return ((name, network) for network, names in groups.items() for name in names.split())


OTHER_NETWORKS: Mapping[str, str] = dict(
    _others(
        {
            "a PreActResNet-18 whose shortcut starts before the activation, without the last normalisation": (
                "Andriushchenko2020Understanding Wong2020Fast"
            ),
            "a ResNet-50 for images of 32x32": "Engstrom2019Robustness Augustin2020Adversarial",
            "an ensemble of three ResNet-50": "Chen2020Adversarial",
            "a WideResNet-34-20 with normalised features and weights": "Pang2020Boosting",
            "a WideResNet-28-4 that standardises each image": "Ding2020MMA",
            "a ResNeSt-152": "Sehwag2021Proxy_ResNest152",
            "DeepMind's PreActResNet-18, with shortcuts of 3x3": (
                "Rebuffi2021Fixing_R18_ddpm Rebuffi2021Fixing_R18_cutmix_ddpm Rade2021Helper_R18_extra "
                "Rade2021Helper_R18_ddpm Gowal2021Improving_R18_ddpm_100m"
            ),
            "a WideResNet-34-R": "Huang2021Exploring Huang2021Exploring_ema",
            "a WideResNet-28-10 with PSSiLU": "Dai2021Parameterizing",
            "a WideResNet-70-16 with a layer of a differential equation": "Kang2021Stable",
            "an XCiT of timm": (
                "Debenedetti2022Light_XCiT-S12 Debenedetti2022Light_XCiT-M12 Debenedetti2022Light_XCiT-L12"
            ),
            "a WideResNet-A4": "Huang2022Revisiting_WRN-A4",
            "a mixture of two networks": "Bai2023Improving_edm Bai2023Improving_trades Bai2024MixedNUTS",
            "a RaWideResNet-70-16": "Peng2023Robust",
            "a network with MeanSparse layers": (
                "Amini2024MeanSparse_Ra_WRN_70_16 Amini2024MeanSparse_S-WRN-94-16 Amini2024MeanSparse_S-WRN-70-16"
            ),
            "a ResNet-18 of its own form, or an ensemble of six": (
                "Diffenderfer2021Winning_LRR Diffenderfer2021Winning_LRR_CARD_Deck Diffenderfer2021Winning_Binary "
                "Diffenderfer2021Winning_Binary_CARD_Deck"
            ),
            "a ResNeXt-29": "Hendrycks2020AugMix_ResNeXt",
        }
    )
)
"""Networks, in words, of the entries on CIFAR that are not built here."""
