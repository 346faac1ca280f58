"""How the adversary searches: one file per family, all under one contract."""

from robustly.attacks.contract import Attack, AttackError, AttackResult
from robustly.attacks.pgd import PGD
from robustly.attacks.presets import ATTACKS, TITLES, dynat_pgd, fgsm, r_fgsm

__all__ = ["ATTACKS", "PGD", "TITLES", "Attack", "AttackError", "AttackResult", "dynat_pgd", "fgsm", "r_fgsm"]
