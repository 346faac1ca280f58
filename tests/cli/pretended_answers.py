"""A stand-in for the verifier, in a module of its own for other processes to import."""

import os
import signal
import time
from pathlib import Path

from robustly.certification.answers import Answer


def pretended(network: Path, property_: Path, end: float) -> Answer:
    """The answer that the property's name begins with; "slow", "killed" and "fault" misbehave."""
    word = property_.name.split("_")[0]
    if word == "slow":
        time.sleep(3600)
    if word == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "fault":
        raise KeyError("no such node")
    witness = "((X_0 1)\n(Y_0 0))\n" if word == "sat" else ""
    return Answer(word, seconds=0.25, stage="split", work=3, lower_bound=-1.5, witness=witness)
