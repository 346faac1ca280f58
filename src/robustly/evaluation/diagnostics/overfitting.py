"""Catastrophic overfitting: robustness to the single step of training and to nothing else."""

from robustly.evaluation.diagnostics.probe import Probe
from robustly.evaluation.diagnostics.significance import Excess, most_significant
from robustly.evidence import Finding
from robustly.threats import ThreatModel

NAME, TITLE = "catastrophic_overfitting", "robustness is not to one step of length epsilon only"
SHORTER = (0.25, 0.5)  # lengths of shorter steps, as factors of epsilon
FAR = 1 / 3  # share of images that one step may miss; undefended networks resist FGSM at a large epsilon too
MISSED = 0.25  # the same, if a shorter step is better
SHORTER_IS_BETTER = 0.05  # share of images that only a shorter step may break


def catastrophic_overfitting(probe: Probe) -> Finding:
    """Find networks on which one step of length epsilon is far weaker than PGD.

    Single-step training can end so (Wong, Rice and Kolter, ICLR 2020; de Jorge et al., NeurIPS 2022): the loss
    bends between the image and the end of the step. If a shorter step breaks images that the whole one does not,
    that is a second sign, and a smaller distance from PGD is enough. Each sign is an exact test.
    """
    threat = probe.target.threat
    if not isinstance(threat, ThreatModel) or threat.norm not in ("linf", "l2"):
        return Finding(NAME, TITLE, None, None, "", f"One step of length epsilon is not tested under {threat}.")
    one, many = probe.broken_by_fgsm, probe.broken_by_pgd
    missed, opposite = int((many & ~one).sum()), int((one & ~many).sum())
    far, weak = (Excess(missed, len(one), allowed, opposite, tests=2) for allowed in (FAR, MISSED))
    lengths = []
    for factor in SHORTER:
        less = probe.broken_by_one_step(factor)
        better, worse = int((less & ~one).sum()), int((one & ~less).sum())
        lengths.append(Excess(better, len(one), SHORTER_IS_BETTER, worse, tests=2 * len(SHORTER)))
    bent = most_significant(lengths)
    found = most_significant([far, max(weak, bent, key=lambda test: test.p_value)])
    words = (
        f"FGSM misses {missed} of {len(one)} images that PGD breaks; a shorter step breaks {bent.hits} that a step "
    )
    words += f"of length epsilon does not {found.words}."
    if not found.passed:
        words += " The network is robust to the step of its training only: catastrophic overfitting."
    threshold = f"not significantly above {100 * FAR:.3g} % of images missed by FGSM, or {100 * MISSED:.3g} % if "
    threshold += f"significantly more than {100 * SHORTER_IS_BETTER:.3g} % fall to a shorter step only"
    return Finding(NAME, TITLE, found.passed, far.share, threshold, words)
