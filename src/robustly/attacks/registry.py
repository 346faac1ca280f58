"""Published attacks by name, each PGD with an objective."""

from robustly.attacks.core.gradient_estimators import NES, SPSA
from robustly.attacks.pgd import PGD
from robustly.objectives import Objective, cross_entropy, margin


def fgsm(objective: Objective = cross_entropy) -> PGD:
    """One step of length epsilon from the image itself (Goodfellow, Shlens and Szegedy, ICLR 2015)."""
    return PGD(steps=1, objective=objective, relative_step_size=1.0, start="none")


def r_fgsm(objective: Objective = cross_entropy) -> PGD:
    """A random step of epsilon / 2, then a gradient step of the other half (Tramer et al., ICLR 2018)."""
    return PGD(steps=1, objective=objective, relative_step_size=0.5, start="halfway")


def dynat_pgd(steps: int, objective: Objective = cross_entropy) -> PGD:
    """The PGD of the DYNAT and LBGAT tables: uniform start, one restart, steps of epsilon / 4.

    At 8/255 this is their step size of 2/255 (Liu et al., arXiv 2408.13102, released evaluation script). Their
    "C&W" column is the same search with the margin objective.
    """
    return PGD(steps=steps, objective=objective, relative_step_size=0.25, start="random")


def nes(samples: int = 50) -> PGD:
    """PGD on the margin with gradients from finite differences along Gaussian directions (Ilyas et al., ICML 2018).

    It uses logits alone: 30 steps of epsilon / 10, each for 2 * samples + 1 forward passes.
    """
    return PGD(steps=30, objective=margin, relative_step_size=0.1, estimator=NES(samples))


def spsa(samples: int = 128) -> PGD:
    """PGD on the margin with Adam and finite differences along random signs (Uesato et al., ICML 2018).

    It uses logits alone: 30 steps of epsilon / 4, each for 2 * samples + 1 forward passes. Uesato et al. use 1,024
    to 4,096 pairs for 100 steps.
    """
    return PGD(steps=30, objective=margin, relative_step_size=0.25, update="adam", estimator=SPSA(samples))


ATTACKS: dict[str, PGD] = {
    "fgsm": fgsm(),
    "r_fgsm": r_fgsm(),
    "pgd_10": dynat_pgd(10),
    "pgd_20": dynat_pgd(20),
    "pgd_50": dynat_pgd(50),
    "pgd_100": dynat_pgd(100),
    "cw_20": dynat_pgd(20, margin),
    "nes": nes(),
    "spsa": spsa(),
}
TITLES: dict[str, str] = {
    "fgsm": "FGSM",
    "r_fgsm": "R-FGSM",
    "pgd_10": "PGD-10",
    "pgd_20": "PGD-20",
    "pgd_50": "PGD-50",
    "pgd_100": "PGD-100",
    "cw_20": "C&W",
    "nes": "NES",
    "spsa": "SPSA",
    "random_draws": "Random draws",
    "parameter_search": "Random search",
    "grid": "Grid",
    "exhaustive": "All corruptions",
    "composite": "Composite (CAA)",
    "stadv": "StAdv",
    "recoloradv": "ReColorAdv",
    "route_pgd": "PGD on class and route",
    "patch": "Patch search",
    "expected_patch": "Patch in expectation (EOT)",
}
