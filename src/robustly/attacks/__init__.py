"""Attacks: one file per family, all under one contract. A new attack adds a line to `ATTACK_KINDS`."""

from collections.abc import Callable

from robustly.attacks.adaptive import BPDA, Detected, ExpectationOverTransformation
from robustly.attacks.apgd import APGD, TargetedAPGD
from robustly.attacks.boundary import Boundary
from robustly.attacks.carlini_wagner import CarliniWagner
from robustly.attacks.composite import Composite
from robustly.attacks.core.contract import Attack, AttackError, AttackResult
from robustly.attacks.core.gradient_estimators import NES, SPSA, Averaged
from robustly.attacks.ddn import DDN
from robustly.attacks.deepfool import DeepFool
from robustly.attacks.ead import EAD
from robustly.attacks.exhaustive import ExhaustiveSearch
from robustly.attacks.expected_patch import ExpectedPatch
from robustly.attacks.fab import FAB
from robustly.attacks.fmn import FMN
from robustly.attacks.grid_search import GridSearch
from robustly.attacks.hopskipjump import HopSkipJump
from robustly.attacks.jsma import JSMA
from robustly.attacks.mim import MIM, InputDiversity
from robustly.attacks.parameter_search import ParameterSearch
from robustly.attacks.patch_search import PatchSearch
from robustly.attacks.pgd import PGD
from robustly.attacks.pma import PMA
from robustly.attacks.random_draws import RandomDraws
from robustly.attacks.registry import ATTACKS, TITLES, dynat_pgd, fgsm, r_fgsm
from robustly.attacks.route_pgd import RoutePGD
from robustly.attacks.sigma_zero import SigmaZero
from robustly.attacks.smooth_pgd import SmoothPGD, recoloradv
from robustly.attacks.sparse_rs import SparseRS
from robustly.attacks.square import Square
from robustly.attacks.transfer import Transfer
from robustly.attacks.vmi import VMI

ATTACK_KINDS: dict[str, Callable[[], Attack]] = {
    "pgd": PGD,
    "mim": MIM,
    "vmi": VMI,
    "apgd": APGD,
    "apgd_t": TargetedAPGD,
    "pma": PMA,
    "fab": FAB,
    "deepfool": DeepFool,
    "ddn": DDN,
    "fmn": FMN,
    "cw_l2": CarliniWagner,
    "ead": EAD,
    "sigma_zero": SigmaZero,
    "jsma": JSMA,
    "square": Square,
    "sparse_rs": SparseRS,
    "composite": Composite,
    "stadv": SmoothPGD,
    "recoloradv": recoloradv,
    "route_pgd": RoutePGD,
    "patch": PatchSearch,
    "expected_patch": ExpectedPatch,
    "boundary": Boundary,
    "hopskipjump": HopSkipJump,
    "random_draws": RandomDraws,
    "parameter_search": ParameterSearch,
    "grid": GridSearch,
    "exhaustive": ExhaustiveSearch,
}
"""Attacks by the names that files of suites use."""

__all__ = [
    "APGD",
    "ATTACKS",
    "ATTACK_KINDS",
    "BPDA",
    "DDN",
    "EAD",
    "FAB",
    "FMN",
    "JSMA",
    "MIM",
    "NES",
    "PGD",
    "PMA",
    "SPSA",
    "TITLES",
    "VMI",
    "Attack",
    "AttackError",
    "AttackResult",
    "Averaged",
    "Boundary",
    "CarliniWagner",
    "Composite",
    "DeepFool",
    "Detected",
    "ExhaustiveSearch",
    "ExpectationOverTransformation",
    "ExpectedPatch",
    "GridSearch",
    "HopSkipJump",
    "InputDiversity",
    "ParameterSearch",
    "PatchSearch",
    "RandomDraws",
    "RoutePGD",
    "SigmaZero",
    "SmoothPGD",
    "SparseRS",
    "Square",
    "TargetedAPGD",
    "Transfer",
    "dynat_pgd",
    "fgsm",
    "r_fgsm",
]
