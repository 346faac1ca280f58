"""`robustly suites`."""

import argparse

SUITE_WORDS = {
    "quick": "a screen, the three nearest classes, and long runs on the closest tenth; for monitoring",
    "standard": "AutoAttack's verdict at about a fifteenth of its passes, with a sentinel against masking",
    "strong": "all stages of standard, then more attacks on every unbroken image",
    "semantic": "random draws, PGD, random search and a grid, for threats that are not Lp balls",
    "tafd_v10": "seven threats of the TaFD paper, with its attacks, its mean, and the union that it leaves out",
    "tafd_v20": "five threats of the TaFD paper, with its attacks, its mean, and the union that it leaves out",
    "unforeseen": "threats of all kinds that the model was not trained on, compared with those of its training",
    "aa_standard": "AutoAttack as published: APGD-CE, APGD-T, FAB-T, Square",
    "aa_plus": "AutoAttack's plus version, with restarts and the untargeted forms",
    "aa_rand": "AutoAttack's version for randomised models",
    "dynat": "PGD-10, PGD-20, PGD-50 and CW-20, as in papers on adversarial training",
    "dynat_100": "the attacks of dynat, and PGD-100",
    "single_step": "FGSM, R-FGSM and PGD-20, for models of single-step training",
}
"""One line for each suite of `robustly.evaluation.SUITES`, in its order."""
CERTIFICATE_NAMES = ("certify", "ibp", "crown", "alpha_crown", "bab")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `robustly suites` to a parser."""
    parser.add_argument("name", nargs="?", help="a suite, to print its stages; with certificates: quick+certify")
    parser.add_argument(
        "threat",
        nargs="?",
        help="such as l2:0.5 or rotation:30 (default: linf:8/255; of the suite semantic, rotation:30; of suites "
        "of several threats, all of them)",
    )


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    """Print the suites with a line about each, or the stages of one; returns the exit code."""
    if options.name is None:
        width = max(map(len, SUITE_WORDS))
        print("\n".join(f"{name:{width}}  {words}" for name, words in SUITE_WORDS.items()))
        names = ", ".join(f"+{name}" for name in CERTIFICATE_NAMES)
        print(f"proofs behind any of them: {names}, as in quick+certify")
        return 0
    from robustly.cli.suites import show_protocol, show_suite
    from robustly.evaluation import PROTOCOLS
    from robustly.threats import parse_threat

    if options.threat is None and options.name in PROTOCOLS:
        return show_protocol(PROTOCOLS[options.name])
    usual = "rotation:30" if options.name.partition("+")[0] == "semantic" else "linf:8/255"
    return show_suite(options.name, parse_threat(options.threat or usual))
