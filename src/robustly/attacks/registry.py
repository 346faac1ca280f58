"""Published attacks by name, each PGD with an objective."""

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


ATTACKS: dict[str, PGD] = {
    "fgsm": fgsm(),
    "r_fgsm": r_fgsm(),
    "pgd_10": dynat_pgd(10),
    "pgd_20": dynat_pgd(20),
    "pgd_50": dynat_pgd(50),
    "pgd_100": dynat_pgd(100),
    "cw_20": dynat_pgd(20, margin),
}
TITLES: dict[str, str] = {
    "fgsm": "FGSM",
    "r_fgsm": "R-FGSM",
    "pgd_10": "PGD-10",
    "pgd_20": "PGD-20",
    "pgd_50": "PGD-50",
    "pgd_100": "PGD-100",
    "cw_20": "C&W",
}
