"""Attacks shortened to a few steps, which are timed in place of the whole ones."""

from dataclasses import fields, is_dataclass, replace
from typing import Any

from robustly.attacks import Attack

STEPS = 8
"""Steps of a shortened attack with one run; with more runs, down to `FEWEST`."""
FEWEST = 3
SHORTER = {"queries": 4 * STEPS, "restarts": 5, "targets": 9, "search_steps": 1, "draws": STEPS}
"""Other settings of a shortened attack, where it has more. Several runs remain, because they are one batch."""
THRIFTY = SHORTER | {"queries": 2 * FEWEST, "restarts": 1, "targets": 1, "draws": FEWEST, "odi_steps": 1}


def shortened(attack: Attack, thrift: bool = False) -> Attack:
    """The attack with a few steps and queries; the time of a pass is that of the whole attack.

    An attack without steps and without any of the settings in `SHORTER` stays as it is.

    Args:
        attack: the attack.
        thrift: for slow networks: fewer steps, and one run.
    """
    if not is_dataclass(attack):
        return attack
    given: Any = attack
    names = {item.name for item in fields(given) if item.init}
    changes = {
        name: most
        for name, most in (THRIFTY if thrift else SHORTER).items()
        if name in names and isinstance(getattr(given, name), int) and getattr(given, name) > most
    }
    steps = getattr(given, "steps", None)
    if steps == 0 and "restarts" in names:  # random points
        changes["restarts"] = min(given.restarts, STEPS)
    elif isinstance(steps, int):
        runs = [changes.get(name, getattr(given, name, 1)) or 1 for name in ("restarts", "targets")]
        changes["steps"] = min(steps, FEWEST if thrift else max(2 * STEPS // (1 + runs[0] * runs[1]), FEWEST))
    changed: Attack = replace(given, **changes) if changes else given
    return changed


def lengthened(short: Attack, attack: Attack) -> Attack | None:
    """A shortened attack with twice its steps or queries, None if the whole attack has not as many.

    The difference in time is that of passes alone; what both take beside it is the fixed time of a call.

    Args:
        short: the result of `shortened`.
        attack: the whole attack.
    """
    if not is_dataclass(short):
        return None
    given: Any = short
    names = [name for name in ("steps", "queries", "draws") if isinstance(getattr(short, name, None), int)]
    for name in names:
        least, most = getattr(given, name), getattr(attack, name)
        if least > 0:
            longer: Attack | None = replace(given, **{name: 2 * least}) if 2 * least <= most else None
            return longer
    return None
